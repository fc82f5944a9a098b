"""The exact oracle of plain accumulators, against `numerics.oracle`, NumPy and each other."""

import dataclasses
import itertools
import random

import numpy as np
import pytest

from lowprec.engines import Engine, get_engine
from lowprec.engines.oracle import dot, sequential_dot
from lowprec.numerics import get_format, oracle
from lowprec.numerics.oracle import float32_bits
from lowprec.numerics.rounding import ROUNDINGS

FLOAT32 = get_format("float32")
SIGN, INF, NAN = 0x80000000, 0x7F800000, 0x7FC00000
FEW_MANTISSA_BITS = 0xFFF00000


def run(
    engine: Engine | str, a: list[int], b: list[int], c: int = 0, words: list[int] | None = None
) -> int:
    return dot(get_engine(engine), a, b, c, a_format=FLOAT32, b_format=FLOAT32, words=words)


def near_one(rng: random.Random, count: int, mask: int = 0xFFFFFFFF) -> list[int]:
    """float32 bits of numbers from 2^-4 to 2^4."""
    exponents = [127 + rng.randint(-4, 3) for _ in range(count)]
    return [(rng.getrandbits(1) << 31 | e << 23 | rng.getrandbits(23)) & mask for e in exponents]


def value(bits: int) -> float:
    return float(oracle.decode(bits, FLOAT32))


def bits(*values: float) -> list[int]:
    return [float32_bits(x) for x in values]


@pytest.mark.parametrize("fmt", ["e8m21", "float16", "e6m9", "e5m2"])
@pytest.mark.parametrize("mode", ROUNDINGS)
def test_one_product_is_rounded_as_a_cast_is(mode: str, fmt: str) -> None:
    rng, register = random.Random(1), get_format(fmt)
    engine = dataclasses.replace(get_engine(f"sequential.{fmt}.{mode}"), subnormals="keep")
    lowest, highest = register.min_exponent - register.mantissa_bits - 2, -register.min_exponent
    seen = set()
    for exponent in [*range(lowest, lowest + 6), *range(highest - 1, highest + 4), -1, 0, 1] * 3:
        # Products of 16 bits, which a Python float holds, with many ties among them.
        x, y = (rng.choice((1, -1)) * rng.randint(128, 255) * 2.0**-7 for _ in "xy")
        x, y = x * 2.0 ** (exponent // 2), y * 2.0 ** (exponent - exponent // 2)
        word = rng.getrandbits(32)
        got = run(engine, bits(x), bits(y), words=[word, 0])
        want = oracle.decode(
            oracle.encode(
                x * y,
                register,
                rounding=engine.output_rounding,
                overflow="nonsaturating",
                word=word,
            ),
            register,
        )
        # 0 + -0 is +0, but -0 where it is rounded toward negative.
        zero = want.kind == "finite" and want.value == 0
        negative = want.negative and not (zero and mode != "toward_negative")
        assert value(got) == float(want) and got >> 31 == negative, (x, y)
        seen.add(got)
    assert len(seen) > 15


def test_fp32_is_numpys_loop() -> None:
    rng = random.Random(2)
    for _ in range(30):
        a, b = near_one(rng, 20), near_one(rng, 20)
        total = np.float32(1.5)
        left, right = (np.array(x, np.uint32).view(np.float32) for x in (a, b))
        for x, y in zip(left, right, strict=True):
            total = np.float32(total + np.float32(x * y))
        assert sequential_dot(a, b, float32_bits(1.5)) == int(total.view(np.uint32))


def test_float16_is_numpys_loop() -> None:
    rng = random.Random(3)
    for _ in range(30):
        a, b = (near_one(rng, 20, 0xFFFFE000) for _ in "ab")
        total = np.float16(2.0**-3)
        left, right = (np.array(x, np.uint32).view(np.float32).astype(np.float16) for x in (a, b))
        for x, y in zip(left, right, strict=True):
            total = np.float16(total + np.float16(x * y))
        got = run("sequential.float16.nearest_even", a, b, float32_bits(2.0**-3))
        assert got == int(np.float32(total).view(np.uint32))


def test_fused_products_are_those_of_exact_fractions() -> None:
    rng, differing = random.Random(4), 0
    for _ in range(60):
        a, b = near_one(rng, 8), near_one(rng, 8)
        total = float32_bits(0.75)
        for x, y in zip(a, b, strict=True):
            total = oracle.fused_multiply_add(x, y, total)
        assert run("fp32_fma", a, b, float32_bits(0.75)) == total
        differing += run("fp32", a, b, float32_bits(0.75)) != total
    assert differing > 10


def test_flush_comes_after_rounding() -> None:
    # Below the smallest normal number, and nearer to it than any float24 with unlimited exponent.
    just_below = run("fp32", [0x20000001], [0x1FFFFFFE])
    assert just_below == 0x00800000
    assert run("fp32", [0x207FFFFF], [0x1F800000]) == 0
    assert run("fp32", [0x207FFFFF | SIGN], [0x1F800000], SIGN) == SIGN
    assert run("fp32", [0x007FFFFF], bits(2.0**60), 0x807FFFFF) == 0
    keeping = dataclasses.replace(get_engine("fp32"), subnormals="keep")
    assert run(keeping, [0x007FFFFF], bits(1.0), 1) == 0x00800000


def test_zeros_and_specials() -> None:
    down = get_engine("sequential.e8m21.toward_negative")
    assert run("fp32", bits(1.0, -1.0), bits(1.0, 1.0)) == 0
    assert run(down, bits(1.0, -1.0), bits(1.0, 1.0)) == SIGN
    assert run("fp32", bits(-0.0), bits(1.0), SIGN) == SIGN
    assert run("fp32", [INF], bits(0.0)) == run("fp32", [0xFFFFFFFF], bits(1.0)) == NAN
    assert run("fp32", [INF, INF], bits(1.0, -1.0)) == NAN
    assert run("fp32", bits(2.0**127), bits(-2.0)) == SIGN | INF
    largest = 0x7F7FFFFC
    assert run("sequential.e8m21.toward_zero", bits(2.0**127), bits(2.0)) == largest
    assert run(down, bits(2.0**127, 2.0**127), bits(2.0, 2.0)) == largest
    assert run(down, bits(2.0**127), bits(-2.0)) == SIGN | INF
    # c is rounded to nearest even whatever the mode.
    assert value(run("sequential.bfloat16.toward_zero", [0], [0], 0x3F80FFFF)) == 1 + 2.0**-7


def test_words_are_taken_in_turn() -> None:
    # The product lies a quarter of the way up, what the sum makes of the lower one half.
    engine = "sequential.bfloat16.stochastic"
    a, b, c = bits(1 + 2.0**-7), bits(1 + 2.0**-2), 0
    below, above = 1 + 33 * 2.0**-7, 1 + 34 * 2.0**-7
    exact = (1 + 2.0**-7) * 1.25
    assert below < exact < above and (exact - below) * 2**7 == 0.25
    edge = 3 << 30
    assert value(run(engine, a, b, c, words=[edge - 1, 0])) == below
    assert value(run(engine, a, b, c, words=[edge, 0])) == above
    start = float32_bits(2.0)
    half = 1 << 31
    assert value(run(engine, a, b, start, words=[0, half - 1])) == 3.25
    assert value(run(engine, a, b, start, words=[0, half])) == 3.25 + 2.0**-6
    fused = dataclasses.replace(get_engine(engine), fused_multiply=True)
    assert value(run(fused, a, b, c, words=[edge])) == above


@pytest.mark.parametrize("inner", ["float16", "e6m9", "float32"])
@pytest.mark.parametrize("outer", ["bfloat16", "float32"])
def test_one_chunk_is_a_sequence_and_one_sum(inner: str, outer: str) -> None:
    rng, differing = random.Random(5), 0
    for _ in range(25):
        a, b = near_one(rng, 12), near_one(rng, 12)
        c = near_one(rng, 1)[0]
        partial = run(f"sequential.{inner}.nearest_even", a, b)
        # c + 1 * partial, where the product must not be rounded to the outer format.
        add = dataclasses.replace(
            get_engine(f"sequential.{outer}.nearest_even"), fused_multiply=True
        )
        want = run(add, [partial], bits(1.0), c)
        for length in (12, 100):
            assert run(f"chunked.{length}.{inner}.{outer}", a, b, c) == want
        differing += run(f"chunked.5.{inner}.{outer}", a, b, c) != want
    assert differing > 3


def test_chunks_save_what_a_long_sum_swallows() -> None:
    ones = bits(*[1.0] * 4096)
    assert value(run("sequential.float16.nearest_even", ones, ones)) == 2048.0
    assert value(run("chunked.64.float16.float32", ones, ones)) == 4096.0


def test_tree_adds_neighbours_level_by_level() -> None:
    rng, differing = random.Random(6), 0
    one = bits(1.0)[0]

    def add(x: int, y: int) -> int:
        return run("sequential.bfloat16.nearest_even", [y], [one], x)

    for count in (1, 2, 3, 5, 7, 8):
        for _ in range(10):
            a, b = near_one(rng, count, FEW_MANTISSA_BITS), near_one(rng, count, FEW_MANTISSA_BITS)
            level = [
                run("sequential.bfloat16.nearest_even", [x], [y]) for x, y in zip(a, b, strict=True)
            ]
            c = near_one(rng, 1, FEW_MANTISSA_BITS)[0]
            while len(level) > 1:
                odd = [level[-1]] if len(level) % 2 else []
                pairs = itertools.zip_longest(*[iter(level[: len(level) // 2 * 2])] * 2)
                level = [add(x, y) for x, y in pairs] + odd
            assert run("pairwise.bfloat16", a, b, c) == add(c, level[0])
            differing += run("sequential.bfloat16.nearest_even", a, b, c) != add(c, level[0])
    assert differing > 10


def test_compensation_recovers_what_a_sum_loses() -> None:
    ones, tiny = bits(*[1.0] * 64), bits(*[2.0**-26] * 64)
    assert value(run("compensated", tiny, ones, bits(1.0)[0])) == 1 + 2.0**-20
    assert value(run("fp32", tiny, ones, bits(1.0)[0])) == 1.0


def test_compensation_is_kahans_loop() -> None:
    rng, differing = random.Random(7), 0
    for _ in range(30):
        a, b = near_one(rng, 24), near_one(rng, 24)
        s, error = np.float32(0.5), np.float32(0)
        left, right = (np.array(x, np.uint32).view(np.float32) for x in (a, b))
        for x, y in zip(left, right, strict=True):
            corrected = np.float32(np.float32(x * y) - error)
            total = np.float32(s + corrected)
            error = np.float32(np.float32(total - s) - corrected)
            s = total
        assert run("compensated", a, b, float32_bits(0.5)) == int(s.view(np.uint32))
        differing += run("fp32", a, b, float32_bits(0.5)) != int(s.view(np.uint32))
    assert differing > 10
