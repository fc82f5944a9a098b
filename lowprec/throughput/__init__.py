"""Time: what a call takes on this machine; what a product, or decoding, takes on another."""

from lowprec.throughput.architecture import get_architecture as get_architecture
from lowprec.throughput.architecture import list_architectures as list_architectures
from lowprec.throughput.cache import CacheCost as CacheCost
from lowprec.throughput.decode import largest_batch as largest_batch
from lowprec.throughput.decode import step as step
from lowprec.throughput.devices import get_device as get_device
from lowprec.throughput.devices import list_devices as list_devices
from lowprec.throughput.fit import fit as fit
from lowprec.throughput.fit import tokens_per_second as tokens_per_second
from lowprec.throughput.gemm import modelled as modelled
from lowprec.throughput.gemm_fit import gemm_fit as gemm_fit
from lowprec.throughput.measure import Measured as Measured
from lowprec.throughput.measure import measure as measure
from lowprec.throughput.rows import AppendTime as AppendTime
from lowprec.throughput.rows import AttendTime as AttendTime
from lowprec.throughput.rows import GemmTime as GemmTime
from lowprec.throughput.rows import TrainingTime as TrainingTime
from lowprec.throughput.tiles import Shape as Shape
from lowprec.throughput.timing import Compiled as Compiled
from lowprec.throughput.timing import compiled as compiled
from lowprec.throughput.timing import in_turn as in_turn
from lowprec.throughput.timing import ratio as ratio
from lowprec.throughput.timing import write_table as write_table
