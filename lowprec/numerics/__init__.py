"""One number: formats, rounding, codes, packing, and an exact oracle for all of them."""

from lowprec.numerics.codec import decode as decode
from lowprec.numerics.codec import encode as encode
from lowprec.numerics.compiler import compiler_options as compiler_options
from lowprec.numerics.format import Format as Format
from lowprec.numerics.format import get_format as get_format
from lowprec.numerics.format import list_formats as list_formats
from lowprec.numerics.interop import from_codes as from_codes
from lowprec.numerics.interop import from_torch as from_torch
from lowprec.numerics.interop import to_codes as to_codes
from lowprec.numerics.interop import to_torch as to_torch
from lowprec.numerics.onnx import format_of_onnx as format_of_onnx
from lowprec.numerics.onnx import onnx_type as onnx_type
from lowprec.numerics.packing import pack as pack
from lowprec.numerics.packing import unpack as unpack
from lowprec.numerics.rounding import Overflow as Overflow
from lowprec.numerics.rounding import Rounding as Rounding
