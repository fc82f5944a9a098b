"""One number: formats, rounding, codes, packing, and an exact oracle for all of them."""

from lowprec.numerics.codec import decode as decode
from lowprec.numerics.codec import encode as encode
from lowprec.numerics.compiler import compiler_options as compiler_options
from lowprec.numerics.format import Format as Format
from lowprec.numerics.format import get_format as get_format
from lowprec.numerics.format import list_formats as list_formats
from lowprec.numerics.packing import pack as pack
from lowprec.numerics.packing import unpack as unpack
from lowprec.numerics.rounding import Overflow as Overflow
from lowprec.numerics.rounding import Rounding as Rounding
