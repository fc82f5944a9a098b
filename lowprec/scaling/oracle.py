"""The exact oracle of `quantize`: one tile after the other, in Python integers and fractions.

Slow and obvious, it spells out what `lowprec.quantize` and `QTensor.dequantize` must return. It
shares no arithmetic with them: scales come from the rules as their sources state them, and every
float32 operation of a source is an exact one, rounded once, by `lowprec.numerics.oracle`.
"""

import functools
import itertools
import math
import struct
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowprec.numerics import oracle
from lowprec.numerics.format import Format
from lowprec.numerics.oracle import divide, float32_bits, multiply
from lowprec.numerics.rounding import Rounding
from lowprec.scaling.block import Block, get_block

Index = tuple[int, ...]
_ONE, _NAN, _INFINITY = map(float32_bits, (1.0, math.nan, math.inf))
_MAX_FINITE = _INFINITY - 1


class Quantized(NamedTuple):
    """Codes, one scale a tile (a code or float32 bits), and float32 bits of the rest."""

    codes: NDArray[np.unsignedinteger]
    scales: NDArray[np.unsignedinteger]
    tensor_scale: int | None
    values: NDArray[np.uint32]


class TileScale(NamedTuple):
    """A scale as stored, as float32 bits, and what it makes of an element before it is encoded."""

    stored: int
    bits: int
    scaled: Callable[[int], float]


def quantize(
    bits: NDArray[np.uint32],
    block: str | Block,
    *,
    axis: int = -1,
    amax: float | None = None,
    rounding: Rounding | None = None,
    words: NDArray[np.uint32] | None = None,
) -> Quantized:
    """What `lowprec.quantize` returns for float32 bits, and the values that they decode to.

    `amax` is one number, for the tensor where it has a scale of its own, else for every tile.
    """
    block = get_block(block)
    tiles = _tiles(bits.shape, block, axis)
    measured = {where: largest([int(bits[i]) for i in tile]) for where, tile in tiles.items()}
    whole, tensor = largest(list(measured.values())), None
    if block.tensor_scale == "amax":
        tensor = tensor_encode_scale(whole if amax is None else float32_bits(amax), block)
    elif amax is not None:
        measured = dict.fromkeys(measured, float32_bits(amax))
    wide = block.scale_format.bits > 8
    codes = np.zeros(bits.shape, block.element.code_dtype)
    values = np.zeros(bits.shape, np.uint32)
    scales_shape = tuple(max(where[i] for where in tiles) + 1 for i in range(bits.ndim))
    scales = np.zeros(scales_shape, np.uint32 if wide else np.uint8)
    for where, tile in tiles.items():
        scale = tile_scale(measured[where], tensor, block)
        scales[where] = scale.stored
        for i in tile:
            scaled = scale.scaled(int(bits[i]))
            # A NaN has the sign of the element that it stands for.
            signed = math.copysign(scaled, _float(int(bits[i]))) if math.isnan(scaled) else scaled
            code = oracle.encode(
                signed,
                block.element,
                rounding=rounding or block.rounding,
                overflow=block.overflow,
                word=0 if words is None else int(words[i]),
                word_bits=block.random_bit_count or 32,
            )
            value = multiply(_decoded(code, block.element), scale.bits)
            codes[i], values[i] = code, value if tensor is None else multiply(value, tensor[1])
    return Quantized(codes, scales, None if tensor is None else tensor[1], values)


def tile_scale(amax: int, tensor: tuple[int, int] | None, block: Block) -> TileScale:
    """The scale of a tile whose largest magnitude has the float32 bits `amax`."""
    if block.scale_rule != "amax":
        return _power_of_two(amax, block)
    if block.scale_arithmetic == "two_level":
        assert tensor is not None
        return _two_level(amax, tensor, block)
    eps, largest_value = float32_bits(float(np.float32(block.min_amax))), _largest(block.element)
    amax = eps if _float(amax) < _float(eps) else amax
    small = block.unit_scale_amax is not None and _float(amax) <= block.unit_scale_amax
    if small or (block.nonfinite == "unit_scale" and not math.isfinite(_float(amax))):
        return TileScale(_ONE, _ONE, lambda x: _float(multiply(x, _ONE)))
    if block.scale_arithmetic == "divide":
        scale = divide(amax, largest_value)
        return TileScale(scale, scale, lambda x: _float(divide(x, scale)))
    encode_scale = _finite(divide(largest_value, amax))
    scale = divide(_ONE, encode_scale)
    return TileScale(scale, scale, lambda x: _float(multiply(x, encode_scale)))


def _power_of_two(amax: int, block: Block) -> TileScale:
    """OCP MX 1.0, section 6.3, and the other rules; the exponent is clamped to the scale format."""
    if not math.isfinite(_float(amax)):
        nan = _encoded(math.nan, block.scale_format)
        return TileScale(nan, _NAN, lambda x: math.nan)
    size, largest_value = Fraction(_float(amax)), Fraction(_float(_largest(block.element)))
    top = floor_log2(largest_value)
    if size == 0:
        exponent = -block.scale_format.bias
    elif block.scale_rule == "floor":
        exponent = floor_log2(size) - top
    elif block.scale_rule == "even":
        ulp = Fraction(2) ** (floor_log2(size) - block.element.mantissa_bits)
        exponent = floor_log2(math.floor(size / ulp + Fraction(1, 2)) * ulp) - top
    elif block.scale_rule == "ceil":
        exponent = ceil_log2(size) - top
    else:
        exponent = ceil_log2(size / largest_value)
    lowest, highest = (-block.scale_format.bias, block.scale_format.max_code)
    exponent = min(max(exponent, lowest), lowest + highest)
    power = 2.0**exponent
    return TileScale(exponent - lowest, float32_bits(power), lambda x: _float(x) / power)


def tensor_encode_scale(amax: int, block: Block) -> tuple[int, int]:
    """TransformerEngine's S = SMAX * MAX / amax of the tensor, 1 for zero or Inf, and 1 / S."""
    product = multiply(_largest(block.scale_format), _largest(block.element))
    scale = _finite(divide(product, amax))
    scale = _ONE if _float(amax) == 0 or _float(scale) == 0 else scale
    return scale, divide(_ONE, scale)


def _two_level(amax: int, tensor: tuple[int, int], block: Block) -> TileScale:
    scale, inverse = tensor
    factor = multiply(scale, divide(_ONE, _largest(block.element)))
    stored = _encoded(_float(_finite(multiply(amax, factor))), block.scale_format)
    decoded = _decoded(stored, block.scale_format)
    encode_scale = _finite(divide(_ONE, multiply(decoded, inverse)))
    return TileScale(
        stored=stored, bits=decoded, scaled=lambda x: _float(multiply(x, encode_scale))
    )


def floor_log2(x: Fraction) -> int:
    """The exponent e of 2^e <= x < 2^(e + 1), x positive."""
    exponent = x.numerator.bit_length() - x.denominator.bit_length()
    return exponent if Fraction(2) ** exponent <= x else exponent - 1


def ceil_log2(x: Fraction) -> int:
    """The smallest e with x <= 2^e, x positive."""
    return -floor_log2(1 / x)


def largest(bits: list[int]) -> int:
    """Bits of the largest magnitude: NaN where any is NaN."""
    sizes = [abs(_float(x)) for x in bits]
    return _NAN if any(map(math.isnan, sizes)) else float32_bits(max(sizes))


def _tiles(shape: tuple[int, ...], block: Block, axis: int) -> dict[Index, list[Index]]:
    """The elements of each tile, by where the tile stands among the tiles."""
    ndim = len(shape)
    if block.tile == ("all", "all"):
        sizes = list(shape)
    else:
        along = axis % ndim
        others = [i for i in (ndim - 1, ndim - 2) if i != along and i >= 0]
        sizes = [1] * ndim
        for i, size in [(along, block.tile[1])] + [(i, block.tile[0]) for i in others[:1]]:
            sizes[i] = shape[i] if size == "all" else int(size)
    tiles: dict[Index, list[Index]] = {}
    for index in itertools.product(*map(range, shape)):
        where = tuple(i // size for i, size in zip(index, sizes, strict=True))
        tiles.setdefault(where, []).append(index)
    return tiles


@functools.cache
def _largest(fmt: Format) -> int:
    """Bits of a format's largest finite value, found among all codes."""
    codes = [oracle.decode(code, fmt) for code in range(2**fmt.bits)]
    return float32_bits(max(float(x) for x in codes if x.kind == "finite"))


def _encoded(x: float, fmt: Format) -> int:
    return oracle.encode(x, fmt, rounding="nearest_even", overflow="saturate")


def _decoded(code: int, fmt: Format) -> int:
    return float32_bits(float(oracle.decode(code, fmt)))


def _float(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def _finite(bits: int) -> int:
    return _MAX_FINITE if bits == _INFINITY else bits
