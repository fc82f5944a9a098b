"""Time: what a call takes on this machine, beside another in the same rounds."""

from lowprec.throughput.rows import GemmTime as GemmTime
from lowprec.throughput.rows import TrainingTime as TrainingTime
from lowprec.throughput.timing import Compiled as Compiled
from lowprec.throughput.timing import compiled as compiled
from lowprec.throughput.timing import in_turn as in_turn
from lowprec.throughput.timing import ratio as ratio
from lowprec.throughput.timing import write_table as write_table
