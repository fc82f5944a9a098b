"""One dot product: engines, and the matrix product each of them computes."""

from lowprec.engines.engine import Engine as Engine
from lowprec.engines.engine import get_engine as get_engine
from lowprec.engines.engine import list_engines as list_engines
from lowprec.engines.matmul import matmul as matmul
