"""The exact oracle of `quantize`: one tile after the other, in Python integers and fractions.

Slow and obvious, it spells out what `lowprec.quantize` and `QTensor.dequantize` must return. It
shares no arithmetic with them: scales come from the rules as their sources state them, and every
float32 operation of a source is an exact one, rounded once, by `lowprec.numerics.oracle`.
"""

import dataclasses
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
from lowprec.numerics.format import Format, get_format
from lowprec.numerics.oracle import (
    divide,
    float32_bits,
    fused_multiply_add,
    multiply,
    round_to_float32,
)
from lowprec.numerics.rounding import Rounding
from lowprec.scaling.block import Block, get_block

Index = tuple[int, ...]
_ONE, _NAN, _INFINITY = map(float32_bits, (1.0, math.nan, math.inf))
_MAX_FINITE, _SIGN = _INFINITY - 1, 1 << 31
_FOUR_THIRDS = round_to_float32(Fraction(4, 3))
_BFLOAT16 = get_format("bfloat16")


class Quantized(NamedTuple):
    """Codes, one scale a tile (a code or float32 bits), and float32 bits of the rest.

    `tensor_scale` is one number for the tensor, or an array of one a row.
    """

    codes: NDArray[np.unsignedinteger]
    scales: NDArray[np.unsignedinteger]
    tensor_scale: int | NDArray[np.uint32] | None
    values: NDArray[np.uint32]


class TensorLevel(NamedTuple):
    """The scale above tiles, as float32 bits: g, what multiplies values, and on decoding."""

    amax: int
    encode: int
    decode: int


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

    `amax` is one number, for the tensor or its rows where they have a scale of their own, else for
    every tile.
    """
    block = get_block(block)
    tiles = _tiles(bits.shape, block, axis)
    measured = {where: largest([int(bits[i]) for i in tile]) for where, tile in tiles.items()}
    rows = _rows(list(tiles), block, axis)
    levels: dict[Index, TensorLevel] = {}
    if block.tensor_scale != "none":
        for row, members in rows.items():
            whole = largest([measured[where] for where in members])
            levels[row] = tensor_level(whole if amax is None else float32_bits(amax), block)
    elif amax is not None:
        measured = dict.fromkeys(measured, float32_bits(amax))
    wide = block.scale_format.bits > 8
    codes = np.zeros(bits.shape, block.element.code_dtype)
    values = np.zeros(bits.shape, np.uint32)
    scales_shape = tuple(max(where[i] for where in tiles) + 1 for i in range(bits.ndim))
    scales = np.zeros(scales_shape, np.uint32 if wide else np.uint8)
    full = len(_lines(bits, tiles[(0,) * bits.ndim], axis))
    above = {where: levels.get(row) for row, members in rows.items() for where in members}
    for where, tile in tiles.items():
        level = above[where]
        if block.scale_rule in ("four_over_six", "minimum_error"):
            scale = _tried(_lines(bits, tile, axis, full), measured[where], level, block)
        else:
            scale = tile_scale(measured[where], level, block)
        scales[where] = scale.stored
        for i in tile:
            word = 0 if words is None else int(words[i])
            code = _code(int(bits[i]), scale, block, rounding or block.rounding, word)
            codes[i], values[i] = code, _value(code, scale, level, block)
    return Quantized(codes, scales, _tensor_scales(levels, block), values)


def _tensor_scales(
    levels: dict[Index, TensorLevel], block: Block
) -> int | NDArray[np.uint32] | None:
    if block.scale_rule == "three_quarter":
        return _FOUR_THIRDS
    if block.tensor_scale == "none":
        return None
    if block.tensor_scale == "amax":
        return levels[()].decode
    shape = tuple(size + 1 for size in np.max(list(levels), axis=0))
    scales = np.zeros(shape, np.uint32)
    for row, level in levels.items():
        scales[row] = level.decode
    return scales


def _rows(tiles: list[Index], block: Block, axis: int) -> dict[Index, list[Index]]:
    """Which tiles are below one tensor scale: those of a row, or all."""
    rows: dict[Index, list[Index]] = {}
    for where in tiles:
        row = tuple(0 if i == axis % len(where) else at for i, at in enumerate(where))
        rows.setdefault(row if block.tensor_scale == "row_amax" else (), []).append(where)
    return rows


def _code(x: int, scale: TileScale, block: Block, rounding: Rounding, word: int = 0) -> int:
    scaled = scale.scaled(x)
    # A NaN has the sign of the element that it stands for.
    signed = math.copysign(scaled, _float(x)) if math.isnan(scaled) else scaled
    return oracle.encode(
        signed,
        block.element,
        rounding=rounding,
        overflow=block.overflow,
        word=word,
        word_bits=block.random_bit_count or 32,
    )


def _value(code: int, scale: TileScale, level: TensorLevel | None, block: Block) -> int:
    value = multiply(_decoded(code, block.element), scale.bits)
    if block.scale_rule == "three_quarter":
        return multiply(value, _FOUR_THIRDS)
    return value if level is None else multiply(value, level.decode)


def tile_scale(amax: int, level: TensorLevel | None, block: Block) -> TileScale:
    """The scale of a tile whose largest magnitude has the float32 bits `amax`."""
    amax = _raised(amax, block)
    if block.power_of_two:
        return _power_scale(_power_code(amax, block), block)
    if block.scale_arithmetic == "encode_scale":
        encode_scale = _ONE if _is_unit(amax, block) else _finite(divide(_goal(block), amax))
        scale = divide(_ONE, encode_scale)
        return TileScale(scale, scale, lambda x: _float(multiply(x, encode_scale)))
    return _float_scale(_stored(_wanted(amax, level, block), block), level, block)


def _raised(amax: int, block: Block) -> int:
    eps = float32_bits(float(np.float32(block.min_amax)))
    return eps if _float(amax) < _float(eps) else amax


def _is_unit(amax: int, block: Block) -> bool:
    limit = block.unit_scale_amax
    small = limit is not None and _float(amax) <= float(np.float32(limit))
    return small or (block.nonfinite == "unit_scale" and not math.isfinite(_float(amax)))


def _power_scale(code: int, block: Block) -> TileScale:
    """A power of two, or NaN, by its code, and what it does."""
    if code == block.scale_format.nan_code:
        return TileScale(code, _NAN, lambda x: math.nan)
    power = 2.0 ** (code - block.scale_format.bias)
    if block.scale_rule == "three_quarter":
        whole = multiply(float32_bits(power), _FOUR_THIRDS)
        return TileScale(code, float32_bits(power), lambda x: _float(divide(x, whole)))
    return TileScale(code, float32_bits(power), lambda x: _float(x) / power)


def _power_code(amax: int, block: Block) -> int:
    """OCP MX 1.0, section 6.3, and the other rules; the exponent is clamped to the scale format."""
    lowest, highest = -block.scale_format.bias, block.scale_format.max_code
    if math.isnan(_float(amax)) and block.nonfinite in ("propagate", "largest_scale_for_inf"):
        return _encoded(math.nan, block.scale_format)
    if math.isinf(_float(amax)) and block.nonfinite == "propagate":
        return _encoded(math.nan, block.scale_format)
    if not math.isfinite(_float(amax)):
        return -lowest if block.nonfinite == "unit_scale" else highest
    if _is_unit(amax, block):
        return -lowest
    size = Fraction(_float(amax))
    if size == 0:
        return 0
    return min(max(_power_exponent(size, block) - lowest, 0), highest)


def _power_exponent(size: Fraction, block: Block) -> int:
    largest_value = Fraction(_float(_largest(block.element)))
    top = floor_log2(largest_value)
    match block.scale_rule:
        case "floor" | "three_quarter":
            return floor_log2(size) - top
        case "even":
            # The element's own numbers around its largest are 2^top * (1 + k * unit).
            below = max(x for x in _sizes(block.element) if x < largest_value)
            unit = (largest_value - below) / Fraction(2) ** top
            step = unit * Fraction(2) ** floor_log2(size)
            return floor_log2(math.floor(size / step + Fraction(1, 2)) * step) - top
        case "ceil":
            return ceil_log2(size) - top
        case "oas":
            factor = float32_bits(float(np.float32(block.oas_factor)))
            wanted = multiply(divide(float32_bits(float(size)), _largest(block.element)), factor)
            rounded = oracle.decode(_encoded(_float(wanted), _BFLOAT16), _BFLOAT16).value
            return floor_log2(rounded) if rounded else -(2**9)
        case "nearest_log2":
            exponent = floor_log2(size / largest_value)
            significand = size / largest_value / Fraction(2) ** exponent
            return exponent + (significand**2 > 2)
    return ceil_log2(size / largest_value)


def tensor_level(amax: int, block: Block) -> TensorLevel:
    """The tensor's (or row's) S = SMAX * MAX / g and T = 1 / S, or T = g / (SMAX * MAX)."""
    smax = Fraction(_float(_largest(block.scale_format)))
    if block.tensor_scale_max is not None:
        smax = Fraction(block.tensor_scale_max)
    reach = round_to_float32(smax * Fraction(_float(_goal(block))))
    if block.scale_arithmetic in ("two_level_divide", "two_level_inverse"):
        decode = divide(amax, reach)
        return TensorLevel(amax, divide(_ONE, decode), decode)
    scale = _finite(divide(reach, amax))
    scale = _ONE if _float(amax) == 0 or _float(scale) == 0 else scale
    return TensorLevel(amax, scale, divide(_ONE, scale))


def _goal(block: Block) -> int:
    """What amax becomes when it is scaled: MAX, less the guard."""
    guard = Fraction(float(np.float32(block.guard)))
    return round_to_float32(Fraction(_float(_largest(block.element))) * guard)


def _wanted(amax: int, level: TensorLevel | None, block: Block) -> int:
    """A tile's scale before it is rounded to the scale format."""
    goal = _goal(block)
    match block.scale_arithmetic, level:
        case "reciprocal_max", _:
            scale = multiply(amax, divide(_ONE, goal))
        case "two_level", TensorLevel():
            scale = multiply(amax, multiply(level.encode, divide(_ONE, goal)))
        case "two_level_divide_first", TensorLevel():
            scale = multiply(divide(amax, goal), level.encode)
        case "two_level_divide", TensorLevel():
            scale = divide(amax, multiply(goal, level.decode))
        case "two_level_inverse", TensorLevel():
            scale = divide(divide(amax, goal), level.decode)
        case _:
            scale = divide(amax, goal)
    limit = block.unit_scale_amax
    small = limit is not None and (_float(amax) <= float(np.float32(limit)) or _float(scale) == 0)
    not_finite = block.nonfinite == "unit_scale" and not math.isfinite(_float(amax))
    if (small and not math.isnan(_float(scale))) or not_finite:
        scale = _ONE
    if block.min_scale is not None and _float(scale) < float(np.float32(block.min_scale)):
        scale = float32_bits(float(np.float32(block.min_scale)))
    return scale


def _stored(scale: int, block: Block, rounding: Rounding | None = None) -> int:
    if block.scale_format.name == "float32":
        return scale
    code = oracle.encode(
        _float(scale),
        block.scale_format,
        rounding=rounding or block.scale_rounding,
        overflow="saturate",
    )
    return code if block.scale_format.bits <= 8 else _decoded(code, block.scale_format)


def _float_scale(stored: int, level: TensorLevel | None, block: Block) -> TileScale:
    """A scale with mantissa bits by what is stored, and what it does."""
    narrow = block.scale_format.bits <= 8
    decoded = _decoded(stored, block.scale_format) if narrow else stored
    match block.scale_arithmetic, level:
        case "multiply_inverse", _:
            factor = divide(_ONE, decoded)
        case "two_level" | "two_level_divide_first", TensorLevel():
            factor = _finite(divide(_ONE, multiply(decoded, level.decode)))
        case "two_level_inverse", TensorLevel():
            factor = divide(level.encode, decoded)
        case _:
            whole = decoded if level is None else multiply(decoded, level.decode)
            return TileScale(stored, decoded, lambda x: _float(divide(x, whole)))
    return TileScale(stored, decoded, lambda x: _float(multiply(x, factor)))


def _tried(lines: list[list[int]], amax: int, level: TensorLevel | None, block: Block) -> TileScale:
    """The scale with the smallest error: of two, or of all that the scale format has."""
    amax = _raised(amax, block)
    if block.scale_rule == "four_over_six":
        assert level is not None and block.tensor_scale_max is not None
        six = _wanted(amax, level, block)
        stored = [_stored(x, block) for x in (six, multiply(six, float32_bits(1.5)))]
        scales = [_float_scale(x, level, block) for x in stored]
        reach = float32_bits(_float(_largest(block.element)) * block.tensor_scale_max)

        def back(code: int, scale: TileScale) -> int:
            product = multiply(_decoded(code, block.element), scale.bits)
            return divide(multiply(product, level.amax), reach)

        errors = [_float(_error(lines, scale, block, back, 0)) for scale in scales]
        return scales[1] if errors[1] < errors[0] else scales[0]
    rule = "rceil" if block.power_of_two else "amax"
    plain = tile_scale(amax, level, dataclasses.replace(block, scale_rule=rule))
    size = _float(amax)
    if size == 0 or not math.isfinite(size):
        return plain
    return _smallest_error(lines, size, plain, level, block)


def _smallest_error(
    lines: list[list[int]],
    size: float,
    plain: TileScale,
    level: TensorLevel | None,
    block: Block,
) -> TileScale:
    """Of all codes of the scale format, the smallest with the smallest error."""
    exponent, best = floor_log2(Fraction(size)), (math.inf, -1)
    last = nothing = block.scale_format.max_code
    scales = [
        _power_scale(code, block) if block.power_of_two else _float_scale(code, level, block)
        for code in range(last + 1)
    ]
    # From the plain one outwards, so that most are ruled out by what the clipped maximum loses.
    for code in sorted(range(last + 1), key=lambda code: abs(code - plain.stored)):
        reach = _float(_value(block.element.max_code, scales[code], level, block))
        lost = max(Fraction(size) - Fraction(reach), Fraction(0)) if reach < size else Fraction(0)
        if code > nothing or Fraction(99, 100) * (lost / Fraction(2) ** exponent) ** 2 > best[0]:
            continue
        codes = {_code(x, scales[code], block, "nearest_even") for line in lines for x in line}
        if all(oracle.decode(c, block.element).value == 0 for c in codes):
            # So they are under every larger scale, with the same error.
            nothing = min(nothing, code)
        back = lambda c, s: _value(c, s, level, block)
        error = _float(_error(lines, scales[code], block, back, exponent))
        if error < best[0] or (error == best[0] and code < best[1]):
            best = error, code
    return plain if best[1] < 0 else scales[best[1]]


def _lines(
    bits: NDArray[np.uint32], tile: list[Index], axis: int, full: int = 0
) -> list[list[int]]:
    """The elements of a tile in lines along `axis`, the other places in ascending order.

    A ragged tile has empty lines at the end, to be as many as in a `full` one.
    """
    lines: dict[Index, list[int]] = {}
    for index in tile:
        across = tuple(at for i, at in enumerate(index) if i != axis % len(index))
        lines.setdefault(across, []).append(int(bits[index]))
    found = [lines[across] for across in sorted(lines)]
    return found + [[] for _ in range(full - len(found))]


def _error(
    lines: list[list[int]],
    scale: TileScale,
    block: Block,
    back: Callable[[int, TileScale], int],
    exponent: int,
) -> int:
    """The sum of errors, line by line in order, then the first half of the lines and the second."""
    sums = []
    for line in lines:
        total = 0
        for x in line:
            value = back(_code(x, scale, block, "nearest_even"), scale)
            error = fused_multiply_add(_ONE, value, x ^ _SIGN) & ~_SIGN
            if exponent and math.isfinite(_float(error)):
                error = round_to_float32(Fraction(_float(error)) / Fraction(2) ** exponent)
            term = error if block.error == "absolute" else multiply(error, error)
            total = fused_multiply_add(_ONE, total, term)
        sums.append(total)
    sums += [0] * ((1 << (len(sums) - 1).bit_length()) - len(sums))
    while len(sums) > 1:
        half = len(sums) // 2
        sums = [fused_multiply_add(_ONE, sums[i], sums[i + half]) for i in range(half)]
    return sums[0]


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


def _largest(fmt: Format) -> int:
    """Bits of a format's largest finite value, found among all codes."""
    return float32_bits(float(max(_sizes(fmt))))


@functools.cache
def _sizes(fmt: Format) -> list[Fraction]:
    """All finite values of a format."""
    codes = [oracle.decode(code, fmt) for code in range(2**fmt.bits)]
    return [x.value for x in codes if x.kind == "finite"]


def _encoded(x: float, fmt: Format) -> int:
    return oracle.encode(x, fmt, rounding="nearest_even", overflow="saturate")


def _decoded(code: int, fmt: Format) -> int:
    return float32_bits(float(oracle.decode(code, fmt)))


def _float(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def _finite(bits: int) -> int:
    return _MAX_FINITE if bits == _INFINITY else bits
