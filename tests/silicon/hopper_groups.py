"""The dot products that are captured, by groups; drawn, as codes, from a seed.

A group is a small matrix product, so that a few operands give a few hundred dot products.
"""

import zlib
from collections.abc import Callable

import numpy as np

from lowprec.numerics.format import Format
from tests.silicon.hopper_instructions import COLUMNS, PROMOTED, ROWS, Instruction, format_of
from tests.silicon.hopper_jobs import PROMOTE_EVERY, Dots

Draw = Callable[[np.random.Generator, Format, tuple[int, int]], np.ndarray]
ONE_STEP = ("normal", "zeros", "tiny", "floor", "specials", "cancellation", "random_bits")
"""Groups of one instruction's K."""
CHAINS = {"chain_128": 128, "chain_4096": 4096}
GROUPS = (*ONE_STEP, *CHAINS)
PROMOTED_GROUP = "promoted"
_PROMOTED_DEPTH = 512
_SEED = 4


def draw_group(instruction: Instruction, group: str, rows: int = 32) -> Dots:
    """The dot products of a group.

    Operands depend on their own format and c on the formats alone, not on the unit: `wgmma` and
    `mma.sync` compute the same.

    Args:
      instruction: whose formats and length count.
      group: one of `GROUPS`, or `PROMOTED_GROUP`: N(0,1) operands in E4M3 with a float32 scale for
        each row and 128 k, and for all columns and 128 k, without c.
      rows: rows of a; an eighth as many, of chains of 4096.
    """
    if group == PROMOTED_GROUP:
        return _promoted(rows)
    depth = CHAINS.get(group, instruction.length)
    rows = max(1, rows // 8) if depth == 4096 else rows
    draw = _DRAWS.get(group, _normal)
    sides = ((instruction.a, "a", rows), (instruction.b, "b", COLUMNS))
    a, b = (
        draw(_generator(group, side, ptx_type), format_of(ptx_type), (count, depth))
        for ptx_type, side, count in sides
    )
    if group == "cancellation":
        a, b = _cancelling(a, b, instruction)
    if group == "chain_4096":
        # Half of the sums only grow, as those of which a chain loses most.
        a[::2] &= ~_sign(format_of(instruction.a))
        b[::2] &= ~_sign(format_of(instruction.b))
    rng = _generator(group, "c", instruction.types)
    return Dots(a, b, _accumulators(rng, group, instruction, a, b))


def small_integers(instruction: Instruction) -> tuple[Dots, np.ndarray]:
    """A tile of integers over two steps, and its exact sums: what a wrong layout gets wrong.

    A wrong order of k that A and B share stays unseen. Within one step it changes no fused sum;
    the steps' own order, and the pairs that FP8's `mma.sync` deals to its halves, show in the
    other groups.
    """
    rng = _generator("integers", "", instruction.types)
    depth = 2 * instruction.length
    a, b, c = (rng.integers(-3, 4, shape) for shape in ((ROWS, depth), (COLUMNS, depth), (64, 8)))
    formats = (*instruction.formats, format_of(instruction.output))
    codes = [to_codes(x, fmt) for x, fmt in zip((a, b, c), formats, strict=True)]
    return Dots(*codes), to_codes(a @ b.T + c, formats[2])


def to_codes(values: np.ndarray, fmt: Format) -> np.ndarray:
    """The nearest codes of a format; beyond its largest number, that."""
    assert fmt.dtype is not None and fmt.max is not None
    clipped = np.clip(np.asarray(values, np.float64), -fmt.max, fmt.max)
    return clipped.astype(np.float32).astype(fmt.dtype).view(fmt.code_dtype)


def to_values(codes: np.ndarray, fmt: Format) -> np.ndarray:
    """The float64 values of codes."""
    assert fmt.dtype is not None
    with np.errstate(invalid="ignore"):  # of signalling NaN
        return codes.view(fmt.dtype).astype(np.float64)


def _generator(*names: str) -> np.random.Generator:
    return np.random.default_rng([_SEED, zlib.crc32("/".join(names).encode())])


def _sign(fmt: Format) -> np.ndarray:
    return np.array(1 << (fmt.bits - 1), fmt.code_dtype)


def _normal(rng: np.random.Generator, fmt: Format, shape: tuple[int, int]) -> np.ndarray:
    codes = to_codes(rng.normal(size=shape), fmt)
    if fmt.name == "float32" and shape[1] == 4096:
        # Nothing below the bits that tf32 has: it would only fill the file.
        codes &= np.uint32(0xFFFFE000)
    return codes


def _zeros(rng: np.random.Generator, fmt: Format, shape: tuple[int, int]) -> np.ndarray:
    """Zeros of both signs; every other row has some other numbers too."""
    zeros = rng.integers(0, 2, shape).astype(fmt.code_dtype) * _sign(fmt)
    some = (rng.random(shape) < 0.2) & (np.arange(shape[0])[:, None] % 2 == 1)
    return np.where(some, _normal(rng, fmt, shape), zeros)


def _tiny(rng: np.random.Generator, fmt: Format, shape: tuple[int, int]) -> np.ndarray:
    """Products about the lowest exponent that an alignment goes to, and about the lowest output."""
    assert fmt.min_subnormal is not None
    lowest = max(int(np.log2(fmt.min_subnormal)), -80)
    exponents = lowest + rng.integers(0, 15, (shape[0], 1)) + rng.integers(0, 5, shape)
    signs = rng.choice([-1.0, 1.0, 0.0], shape, p=[0.35, 0.35, 0.3])
    return to_codes(signs * rng.uniform(1, 2, shape) * np.exp2(exponents), fmt)


def _floor(rng: np.random.Generator, fmt: Format, shape: tuple[int, int]) -> np.ndarray:
    """Two products: one on the edge of a rounding, one about as small as an alignment still keeps.

    The first is an odd multiple of float32's last bit, 2^-149, or of half float16's, 2^-25: any
    rest of the second shows. The second goes from 2^3 above to 2^3 below the last bit that is said
    to be kept, 2^-158 or 2^-46, in formats whose products are so small.
    """
    assert fmt.min_subnormal is not None
    least = 2 * int(np.log2(fmt.min_subnormal))
    edge, kept = (-149, -158) if least < -149 else (max(-25, least + 6), max(-46, least + 3))
    rows, place = shape[0], int(shape[0] == COLUMNS)
    halves = [(whole // 2, whole - whole // 2)[place] for whole in (edge, kept + 3)]
    values = np.zeros(shape)
    odd = rng.choice([-3.0, -1.0, 1.0, 3.0], rows) if place == 0 else np.ones(rows)
    values[:, 0] = odd * np.exp2(halves[0])
    values[:, 1] = rng.choice([-1.0, 1.0], rows) * np.exp2(halves[1] - np.arange(rows) % 4)
    return to_codes(values, fmt)


def _special_codes(fmt: Format) -> np.ndarray:
    """Zero, extremes, and what Inf and NaN codes the format has; with both signs."""
    fields = (1 << fmt.mantissa_bits) - 1
    top = (1 << (fmt.bits - 1)) - 1
    codes = [0, 1, fields, fields + 1, fmt.max_code, top]
    if fmt.has_inf:
        codes += [top - fields, top - fields + 1, top - fields // 2]
    positive = np.array(codes, fmt.code_dtype)
    return np.concatenate([positive, positive | _sign(fmt)])


def _specials(rng: np.random.Generator, fmt: Format, shape: tuple[int, int]) -> np.ndarray:
    """About one special number in every other row."""
    codes = _normal(rng, fmt, shape)
    some = (rng.random(shape) < 1 / shape[1]) & (np.arange(shape[0])[:, None] % 2 == 1)
    return np.where(some, rng.choice(_special_codes(fmt), shape), codes)


def _binades(rng: np.random.Generator, fmt: Format, shape: tuple[int, int]) -> np.ndarray:
    """Normal numbers times powers of two from 2^-6 to 2^6."""
    return to_codes(rng.normal(size=shape) * np.exp2(rng.integers(-6, 7, shape)), fmt)


def _random_bits(rng: np.random.Generator, fmt: Format, shape: tuple[int, int]) -> np.ndarray:
    """All finite codes alike: every exponent, subnormals, and sums that overflow."""
    codes = rng.integers(0, 1 << fmt.bits, shape, np.uint64).astype(fmt.code_dtype)
    return np.where(np.isfinite(to_values(codes, fmt)), codes, _normal(rng, fmt, shape))


_DRAWS: dict[str, Draw] = {
    "zeros": _zeros,
    "tiny": _tiny,
    "floor": _floor,
    "specials": _specials,
    "cancellation": _binades,
    "random_bits": _random_bits,
}


def _cancelling(
    a: np.ndarray, b: np.ndarray, instruction: Instruction
) -> tuple[np.ndarray, np.ndarray]:
    """Neighbouring products cancel, a third of them but for the last bit of an operand.

    `a` is copied within its own rows, so that it stays the same for every format of b.
    """
    left, right = instruction.formats
    rng = _generator("cancellation", "pairs", instruction.a)
    last = (rng.random(a[:, ::2].shape) < 0.33).astype(a.dtype)
    if left.name == "float32":
        last <<= np.uint32(13)
    a, b = a.copy(), b.copy()
    a[:, 1::2] = (a[:, ::2] ^ _sign(left)) ^ last
    b[:, 1::2] = b[:, ::2]
    assert right.bits == left.bits
    return a, b


def _accumulators(
    rng: np.random.Generator, group: str, instruction: Instruction, a: np.ndarray, b: np.ndarray
) -> np.ndarray:
    """c of a group, in the output's codes."""
    fmt = format_of(instruction.output)
    shape = len(a), COLUMNS
    plain = to_codes(4 * rng.normal(size=shape), fmt)
    some = rng.random(shape)
    zeros = rng.integers(0, 2, shape).astype(fmt.code_dtype) * _sign(fmt)
    if group == "floor":
        return zeros
    if group == "zeros":
        return np.where(some < 0.7, zeros, plain)
    if group == "tiny":
        # Nothing to align to but the products in every other dot; else a subnormal, or a bit more.
        small = rng.integers(0, 5 << fmt.mantissa_bits, shape).astype(fmt.code_dtype)
        signed = np.where(some < 0.75, small, small | _sign(fmt))
        return np.where(some < 0.5, np.zeros_like(small), signed)
    if group == "specials":
        return np.where(some < 0.1, rng.choice(_special_codes(fmt), shape), plain)
    if group == "random_bits":
        return np.where(some < 0.5, _random_bits(rng, fmt, shape), plain)
    if group == "cancellation":
        left, right = (to_values(x, f) for x, f in zip((a, b), instruction.formats, strict=True))
        return np.where(some < 0.5, to_codes(-(left @ right.T), fmt), plain)
    return plain


def _promoted(rows: int) -> Dots:
    left, right = PROMOTED.formats
    shapes = ((rows, _PROMOTED_DEPTH), (COLUMNS, _PROMOTED_DEPTH))
    rng = _generator(PROMOTED_GROUP)
    a, b = (
        to_codes(100 * rng.normal(size=shape), fmt)
        for shape, fmt in zip(shapes, (left, right), strict=True)
    )
    chunks = _PROMOTED_DEPTH // PROMOTE_EVERY
    a_scale = rng.uniform(0.5, 2, (rows, chunks)).astype(np.float32) / 128
    # One scale for 128 columns: all that a tile has.
    b_scale = np.repeat(rng.uniform(0.5, 2, (1, chunks)), COLUMNS, 0).astype(np.float32) / 128
    c = np.zeros((rows, COLUMNS), np.uint32)
    return Dots(a, b, c, a_scale.view(np.uint32), b_scale.view(np.uint32))
