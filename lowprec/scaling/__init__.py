"""One tensor: tiles that share a scale, scale rules, and the quantized tensor they give."""

from lowprec.scaling.block import Block as Block
from lowprec.scaling.block import get_block as get_block
from lowprec.scaling.block import get_format_or_block as get_format_or_block
from lowprec.scaling.block import list_blocks as list_blocks
from lowprec.scaling.cast import cast as cast
from lowprec.scaling.codebook import lloyd_max as lloyd_max
from lowprec.scaling.qtensor import QTensor as QTensor
from lowprec.scaling.quantize import quantize as quantize
