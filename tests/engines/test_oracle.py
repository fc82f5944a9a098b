"""The exact oracle of hardware engines: laws that a slip in it would break, and specials."""

import dataclasses
import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import pytest

from lowprec.engines import Engine, get_engine
from lowprec.engines.oracle import dot
from lowprec.numerics import Format, get_format, oracle
from lowprec.numerics.oracle import float32_bits

QUIET, ALL_ONES, INF = 0x7FC00000, 0x7FFFFFFF, 0x7F800000
SIGN = 0x80000000
FUSED = (
    ("volta.mma.fp16.fp32", "float16"),
    ("volta.mma.fp16.fp16", "float16"),
    ("ampere.mma.bf16.fp32", "bfloat16"),
    ("hopper.wgmma.fp8.fp32", "float8_e4m3fn"),
    ("hopper.mma.fp8.fp16", "float8_e5m2"),
    ("blackwell.tcgen05.f8f6f4.fp32", "float6_e3m2fn"),
)


def run(engine: Engine | str, fmt: str, a: Any, b: Any, c: float = 0.0, **scales: Any) -> int:
    """The oracle's bits for codes, or for values that the format holds."""
    found, engine = get_format(fmt), get_engine(engine)
    left, right = ([code(x, found) for x in operand] for operand in (a, b))
    start = float32_bits(c)
    return dot(engine, left, right, start, a_format=found, b_format=found, **scales)


def code(x: float, fmt: Format) -> int:
    """The code of a value that the format holds; a code stays."""
    if isinstance(x, int):
        return x
    found = oracle.encode(x, fmt, rounding="toward_zero", overflow="nonsaturating")
    assert x != x or float(oracle.decode(found, fmt)) == x, (x, fmt.name)
    return found


def drawn(rng: random.Random, fmt: str, count: int) -> list[int]:
    """Codes of finite numbers, of a few binades."""
    values = [rng.gauss(0, 1) * 2.0 ** rng.randint(-3, 3) for _ in range(count)]
    return [oracle.encode(x, fmt, rounding="nearest_even", overflow="saturate") for x in values]


def value(bits: int) -> float:
    return float(oracle.decode(bits, "float32"))


@pytest.mark.parametrize(("name", "fmt"), FUSED)
def test_order_within_a_step_is_irrelevant(name: str, fmt: str) -> None:
    rng, engine = random.Random(1), get_engine(name)
    length, n = engine.instruction_length, engine.interleave
    assert length is not None
    moved = set()
    for _ in range(12):
        a, b = (drawn(rng, fmt, 2 * length) for _ in "ab")
        want = run(engine, fmt, a, b, 0.5)
        moved.add(want)
        order = []
        for start in range(0, 2 * length, length):
            for step in range(n):
                places = [start + k for k in range(length) if k // 2 % n == step]
                order.append((places, rng.sample(places, len(places))))
        left, right = list(a), list(b)
        for places, others in order:
            for place, other in zip(places, others, strict=True):
                left[place], right[place] = a[other], b[other]
        assert run(engine, fmt, left, right, 0.5) == want
    assert len(moved) > 6


def test_steps_are_chained_in_order() -> None:
    # 2^24 swallows 1 unless it meets its opposite first.
    a, ones = [4096.0, 1.0, 0.0, 0.0, -4096.0, 0.0, 0.0, 0.0], [4096.0] + [1.0] * 3
    b = ones + ones
    forwards = run("volta.mma.fp16.fp32", "float16", a, b)
    backwards = run("volta.mma.fp16.fp32", "float16", a[4:] + a[:4], b)
    assert (value(forwards), value(backwards)) == (0.0, 0.0)
    together = [4096.0, -4096.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    assert value(run("volta.mma.fp16.fp32", "float16", together, [4096.0] * 2 + [1.0] * 6)) == 1.0


@pytest.mark.parametrize(("name", "fmt"), [*FUSED, ("cdna3.mfma.fp16.fp32", "float16")])
def test_zero_products_count_for_nothing(name: str, fmt: str) -> None:
    rng, engine, largest = random.Random(2), get_engine(name), get_format(fmt).max
    for _ in range(30):
        a, b = drawn(rng, fmt, 4), drawn(rng, fmt, 4)
        a[1], b[2] = code(0.0, get_format(fmt)), code(0.0, get_format(fmt))
        want = run(engine, fmt, a, b, 2.0**-9)
        b[1], a[2] = code(largest, get_format(fmt)), code(-largest, get_format(fmt))
        assert run(engine, fmt, a, b, 2.0**-9) == want


@pytest.mark.parametrize(("name", "fmt"), [*FUSED, ("cdna3.mfma.bf16.fp32", "bfloat16")])
def test_without_products_c_passes_through(name: str, fmt: str) -> None:
    engine = get_engine(name)
    zeros = [0.0] * (engine.instruction_length or 1)
    for c in (1.5, -1.75, 65504.0, 2.0**-24, -(2.0**-14), 3 * 2.0**-20):
        assert run(engine, fmt, zeros, zeros, c) == float32_bits(c)
    assert run(engine, fmt, zeros, [-x for x in zeros], -0.0) == 0
    if engine.output.name == "float16":
        # c is rounded to the output format, to nearest even, beforehand.
        assert value(run(engine, fmt, zeros, zeros, 1 + 2.0**-11)) == 1.0
        assert value(run(engine, fmt, zeros, zeros, 1 + 3 * 2.0**-11)) == 1 + 2.0**-9
        assert run(engine, fmt, zeros, zeros, -65520.0) == SIGN | INF
    elif engine.register_format.mantissa_bits == 13:
        assert value(run(engine, fmt, zeros, zeros, -(2 - 2.0**-14))) == -(2 - 2.0**-13)
    else:
        for c in (2.0**-149, -(2 - 2.0**-23), 2.0**127 * (2 - 2.0**-23)):
            assert run(engine, fmt, zeros, zeros, c) == float32_bits(c)


@pytest.mark.parametrize("joins", ["early", "last"])
@pytest.mark.parametrize("mode", ["nearest_even", "toward_zero", "toward_negative", "to_odd"])
def test_with_many_fraction_bits_a_sum_is_exact(joins: Any, mode: Any) -> None:
    rng, exact = random.Random(3), get_engine("kulisch")
    exact = dataclasses.replace(exact, output_rounding=mode)
    fused = Engine(
        name="wide",
        output=get_format("float32"),
        fused_length=16,
        fraction_bits=48,
        accumulator=joins,
        output_rounding=mode,
    )
    narrow = dataclasses.replace(fused, fraction_bits=4)
    differing = 0
    for _ in range(40):
        a, b = drawn(rng, "float8_e4m3fn", 16), drawn(rng, "float8_e4m3fn", 16)
        c = rng.choice((0.0, 2.0**-20, -3.25 * 2.0**-18))
        want = run(exact, "float8_e4m3fn", a, b, c)
        assert run(fused, "float8_e4m3fn", a, b, c) == want
        differing += run(narrow, "float8_e4m3fn", a, b, c) != want
    assert differing > 20


def test_exact_sums_are_rounded_once() -> None:
    rng, float32 = random.Random(4), get_format("float32")
    pairs = [[rng.getrandbits(32) for _ in range(9)] for _ in range(60)]
    for a in pairs:
        b = [0x3F800000 + rng.getrandbits(24) for _ in a]
        # No Inf or NaN, and no product beyond float32.
        a = [x & 0xBFFFFFFF for x in a]
        c = rng.getrandbits(30)
        total = sum(
            (oracle.decode(x, float32).value * oracle.decode(y, float32).value
             for x, y in zip(a, b, strict=True)),
            oracle.decode(c, float32).value,
        )  # fmt: skip
        want = oracle.round_to_float32(Fraction(total))
        engine = get_engine("kulisch")
        assert dot(engine, a, b, c, a_format=float32, b_format=float32) == want
    assert run("kulisch", "float32", [1.0, -1.0], [2.0, 2.0], -0.0) == 0


def in_bf16(*products: tuple[float, float], c: float = 0.0) -> int:
    a, b = zip(*products, strict=True)
    return run("hopper.mma.bf16.fp32", "bfloat16", a, b, c)


def test_specials() -> None:
    inf, nan, two = float("inf"), float("nan"), 2.0**127
    assert in_bf16((inf, 0.0)) == ALL_ONES
    assert in_bf16((inf, 1.0), (inf, -1.0)) == ALL_ONES
    assert in_bf16((inf, 1.0), c=-inf) == ALL_ONES
    assert in_bf16((nan, 0.0)) == in_bf16((1.0, 1.0), c=nan) == ALL_ONES
    assert in_bf16((inf, -1.0), (two, 2.0), c=3.0) == SIGN | INF
    # Overflow is Inf even though sums are rounded toward zero.
    assert in_bf16((two, 2.0)) == INF
    assert in_bf16((two, 1.0), (two, -2.0), (-two, 1.0)) == SIGN | INF
    # A product beyond the largest number is finite until the sum is rounded.
    assert in_bf16((two, 2.0), (two, -1.5)) == float32_bits(2.0**126)
    half = run("hopper.mma.fp16.fp16", "float16", [inf], [0.0])
    assert half == 0x7FFFE000
    assert run("hopper.mma.fp16.fp16", "float16", [256.0], [256.0]) == INF
    assert value(run("hopper.mma.fp16.fp16", "float16", [1.0], [65504.0], 15.0)) == 65504.0
    # AMD's CDNA3 has infinite products, and a quiet NaN.
    assert run("cdna3.mfma.bf16.fp32", "bfloat16", [two, two], [2.0, -1.5]) == INF
    assert run("cdna3.mfma.bf16.fp32", "bfloat16", [two, two], [2.0, -2.0]) == QUIET


def test_truncated_operands() -> None:
    # The mantissa's low 13 bits are cut, a NaN's with them.
    name = "hopper.mma.tf32.fp32"
    assert run(name, "float32", [0x3F801FFF], [1.0]) == float32_bits(1.0)
    assert run(name, "float32", [-1 - 2.0**-10], [1.0]) == float32_bits(-1 - 2.0**-10)
    assert run(name, "float32", [0x7F800001], [1.0]) == INF
    assert run(name, "float32", [0xFF802000], [1.0]) == ALL_ONES


def test_alignment_stops_at_min_exponent() -> None:
    # 2^-43 decides a tie only where the alignment goes below 2^-42.
    engine = get_engine("volta.mma.fp16.fp16")
    operands = ([2.0**-12, 2.0**-20], [2.0**-13, 2.0**-23])
    assert run(engine, "float16", *operands) == 0
    without = dataclasses.replace(engine, min_exponent=None)
    assert value(run(without, "float16", *operands)) == 2.0**-24


def test_alignment_rounding_has_directions() -> None:
    def cut(mode: Any) -> float:
        engine = dataclasses.replace(get_engine("ampere.mma.fp16.fp32"), alignment_rounding=mode)
        # Half a unit of the last place kept, 2^-24, with either sign.
        return value(run(engine, "float16", [1.0, -(2.0**-13)], [1.0, 2.0**-12])) - 1

    unit = 2.0**-24
    away, stays = ("toward_negative", "nearest_away", "to_odd"), ("toward_zero", "nearest_even")
    assert {cut(mode) for mode in away} == {-unit}
    assert {cut(mode) for mode in (*stays, "toward_positive", "nearest_toward_zero")} == {0.0}


def test_sign_of_what_is_cut_to_zero() -> None:
    engine, tiny = get_engine("volta.mma.fp16.fp16"), 2.0**-13
    kept = dataclasses.replace(engine, zero_sign="kept")
    assert run(engine, "float16", [-tiny], [tiny]) == 0
    assert run(kept, "float16", [-tiny], [tiny]) == SIGN
    assert run(kept, "float16", [-tiny, tiny], [tiny, tiny]) == 0
    # What the alignment cuts off leaves an exact zero, which has no sign to keep.
    fp8 = dataclasses.replace(get_engine("hopper.wgmma.fp8.fp32"), zero_sign="kept")
    assert run(fp8, "float8_e4m3fn", [0.0], [0.0], -(2.0**-149)) == 0
    assert run(fp8, "float8_e4m3fn", [0.0], [0.0], -(2.0**-139)) == SIGN | 1 << 10


def test_pairs_are_dealt_to_interleaved_steps() -> None:
    engine, big = get_engine("hopper.mma.fp8.fp32"), 28672.0

    def at(*places: int) -> float:
        a, b = [0.0] * 32, [0.0] * 32
        for place, (x, y) in zip(
            places, ((big, big), (-big, big), (2.0**-8, 2.0**-8)), strict=True
        ):
            a[place], b[place] = x, y
        return value(run(engine, "float8_e5m2", a, b))

    # The two large products cancel within a step; 2^-16 is lost where it joins one of them.
    assert at(0, 4, 2) == at(1, 29, 3) == 2.0**-16
    assert at(0, 4, 5) == at(2, 6, 3) == 0.0
    assert at(0, 1, 16) == 0.0


def test_c_is_added_separately() -> None:
    engine = get_engine("hopper.mma.fp8.fp32")
    # One rounding to nearest even of 2^24 + 3; aligned with the product it would be cut.
    assert value(run(engine, "float8_e5m2", [1.0], [3.0], 2.0**24)) == 2.0**24 + 4
    early = dataclasses.replace(engine, accumulator="early")
    assert value(run(early, "float8_e5m2", [1.0], [3.0], 2.0**24)) == 2.0**24 + 2
    assert run(engine, "float8_e5m2", [0.0], [1.0], -0.0) == 0
    assert run(engine, "float8_e5m2", [float("inf")], [1.0], -float("inf")) == ALL_ONES


SCALED: dict[str, Callable[..., int]] = {
    name: lambda a, b, alphas, betas, c=0.0, name=name, fmt=fmt: run(
        f"blackwell.tcgen05.{name}.fp32",
        "float4_e2m1fn",
        a,
        b,
        c,
        a_scales=alphas,
        b_scales=betas,
        scale_format=get_format(fmt),
    )
    for name, fmt in (("mxf8f6f4", "e8m0"), ("mxf4", "e8m0"), ("nvf4", "ue4m3"))
}


@pytest.mark.parametrize(("name", "length"), [("mxf8f6f4", 32), ("mxf4", 64)])
def test_power_of_two_scales_scale(name: str, length: int) -> None:
    rng = random.Random(5)
    count, seen = 2 * length // 32, set()
    for _ in range(12):
        a, b = (drawn(rng, "float4_e2m1fn", 2 * length) for _ in "ab")
        plain = SCALED[name](a, b, [127] * count, [127] * count)
        assert value(plain) == sum(
            float(oracle.decode(x, "e2m1")) * float(oracle.decode(y, "e2m1"))
            for x, y in zip(a, b, strict=True)
        )
        scaled = SCALED[name](a, b, [130] * count, [117] * count)
        assert value(scaled) == value(plain) * 2.0**-7
        seen.add(plain)
    assert len(seen) > 6
    zeros = [0.0] * (2 * length)
    assert SCALED[name](zeros, zeros, [127] * count, [127] * (count - 1) + [255]) == ALL_ONES


def test_groups_are_aligned_by_their_scales() -> None:
    def at(group: Sequence[float], alpha: float, c: float) -> float:
        scales = [code(alpha, get_format("ue4m3")), 0x38, 0x38, 0x38]
        a = [*group, *[0.0] * (64 - len(group))]
        return value(SCALED["nvf4"](a, [1.0] * 64, scales, [0x38] * 4, c))

    # 2^-28 is below 35 bits under a scale of 2^8, which counts though its group cancels to zero.
    assert at([1.0, -1.0], 256.0, 2.0**-28) == 0.0
    assert at([1.0, -1.0], 128.0, 2.0**-28) == 2.0**-28
    assert at([0.0, 0.0], 256.0, 2.0**-28) == 2.0**-28
    # The elements' own exponents do not count.
    assert at([6.0, -6.0], 128.0, 2.0**-28) == 2.0**-28
    assert at([6.0, -1.5], 0.4375, 0.0) == 4.5 * 0.4375


def test_scales_have_no_sign_and_spread_nan() -> None:
    a, b = [1.5] * 64, [2.0] * 64
    one, minus, nan, zero = 0x38, 0xB8, 0x7F, 0x00
    assert value(SCALED["nvf4"](a, b, [minus] * 4, [one] * 4)) == 192.0
    assert value(SCALED["nvf4"](a, b, [zero, one, one, one], [one] * 4)) == 144.0
    assert SCALED["nvf4"]([0.0] * 64, b, [one] * 4, [one, one, one, nan]) == ALL_ONES
    assert SCALED["nvf4"](a, b, [zero] * 4, [nan] * 4) == ALL_ONES


def test_cdna2_has_no_subnormals() -> None:
    name, tiny = "cdna2.mfma.fp16.fp32", 2.0**-20
    assert run(name, "float16", [-tiny, 1.0], [1024.0, 1.0]) == float32_bits(1.0)
    # A subnormal operand is +0 whatever its sign; so is c, whose zeros keep theirs.
    minus = [-0.0] * 4
    assert run(name, "float16", minus, [1.0] * 4, -0.0) == SIGN
    assert run(name, "float16", [-tiny, *minus[1:]], [1.0] * 4, -0.0) == 0
    assert run(name, "float16", minus, [1.0] * 4, -(2.0**-130)) == 0
    # Where K ends within a step, zeros fill it.
    assert run(name, "float16", minus[:3], [1.0] * 3, -0.0) == 0
    bf16 = "cdna2.mfma.bf16_1k.fp32"
    assert run(bf16, "bfloat16", [-(2.0**-70)] * 4, [2.0**-60] * 4, -0.0) == SIGN


def test_cdna3_cuts_downwards_and_drops_small_c() -> None:
    name = "cdna3.mfma.fp8.fp32"
    assert value(run(name, "float8_e4m3fnuz", [1.0], [1.0], -(2.0**-25))) == 1 - 2.0**-24
    assert value(run(name, "float8_e4m3fnuz", [1.0], [1.0], 2.0**-25)) == 1.0
    # One binade further down c is dropped, and so is the bit that it would have cost.
    assert value(run(name, "float8_e4m3fnuz", [1.0], [1.0], -(2.0**-26))) == 1.0
    kept = dataclasses.replace(get_engine(name), drop_accumulator_below=None)
    assert value(run(kept, "float8_e4m3fnuz", [1.0], [1.0], -(2.0**-26))) == 1 - 2.0**-24


def test_errors() -> None:
    with pytest.raises(ValueError, match="native"):
        run("native", "float32", [1.0], [1.0])
    with pytest.raises(ValueError, match="unknown"):
        run("cdna4.mfma.fp16.fp32", "float16", [1.0], [1.0])
    with pytest.raises(ValueError, match="scale_format"):
        run("hopper.wgmma.fp8.fp32", "e5m2", [1.0], [1.0], a_scales=[127], b_scales=[127])
    stochastic = dataclasses.replace(
        get_engine("hopper.wgmma.fp8.fp32"), output_rounding="stochastic"
    )
    with pytest.raises(ValueError, match="words"):
        run(stochastic, "e5m2", [1.0], [1.0])
