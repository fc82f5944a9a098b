"""Laws of casts, packing and scales over drawn bit patterns: one test a law, numbered.

15 and 18, of products and of KV caches, belong to their own tests. A law is tried on every format
whose definition allows it: in the fast suite on one of a kind.
"""

import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowprec as lp
from lowprec.numerics import Format, float32
from lowprec.numerics.rounding import ROUNDINGS, is_stochastic
from tests.helpers import (
    SIGN,
    SIZE,
    STRICT,
    STRICT_SLOW,
    WITHIN_FLOAT32,
    UInts,
    as_bits,
    assert_bits_equal,
    bit_arrays,
    decoded,
    encoded,
    floats,
    graded,
    random_words,
)
from tests.scaling.helpers import changed

DETERMINISTIC = tuple(name for name in ROUNDINGS if not is_stochastic(name))
KINDS = ("float8_e4m3fn", "int8")
FORMATS = [fmt for fmt in WITHIN_FLOAT32 if fmt.bits < 32]
FLOATING = [x for x in FORMATS if x.table is None and x.exponent_bits and x.subnormals]


def over(formats: list[Format]) -> Any:
    """A test for each of some formats, slow but for one of a kind."""
    fast = [x for x in formats if x.name in KINDS]
    return pytest.mark.parametrize(
        "fmt", graded(formats, fast=fast, every=2, name=lambda x: x.name)
    )


few = settings(max_examples=2)
seeds = st.integers(0, 2**32 - 1)


def values(codes: Any, fmt: Format) -> np.ndarray:
    """float64 values of codes."""
    if fmt.values is not None:
        return fmt.values[np.asarray(codes)]
    return np.array([fmt.value(code) for code in np.asarray(codes).tolist()])


def finite(bits: UInts) -> UInts:
    return np.where((bits & 0x7F800000) == 0x7F800000, np.uint32(0x3F800000), bits)


def within(bits: UInts, fmt: Format) -> UInts:
    """What lies between the lowest and the largest value; 1 or the largest value for the rest."""
    bits = finite(bits)
    x = floats(bits).astype(np.float64)
    lowest = fmt.min if fmt.zero == "none" or fmt.signed else 0.0
    other = np.float32(min(max(1.0, fmt.min), fmt.max)).view(np.uint32)
    keep = (x >= lowest) & (x <= fmt.max) & ~(np.signbit(x) & (not fmt.signed))
    return np.where(keep, bits, other)


def random(rounding: str, seed: int) -> UInts | None:
    return random_words(SIZE, seed) if is_stochastic(rounding) else None


def codes_of(fmt: Format, seed: int) -> np.ndarray:
    """Codes at random that a cast can return."""
    codes = random_words(SIZE, seed) & np.uint32(fmt.code_mask)
    if fmt.narrow_range:
        codes = np.where(codes == fmt.sign_mask, 0, codes)
    return codes.astype(fmt.code_dtype)


@over(FORMATS)
@few
@given(seed=seeds)
def test_1_encode_undoes_decode(fmt: Format, seed: int) -> None:
    codes = codes_of(fmt, seed)
    back = encoded(decoded(codes, fmt), fmt)
    numbers = ~np.isnan(values(codes, fmt))
    assert_bits_equal(back[numbers], codes[numbers], fmt=fmt)
    assert np.isnan(values(back[~numbers], fmt)).all()


@over(FORMATS)
@few
@given(data=st.data(), rounding=st.sampled_from(ROUNDINGS))
def test_2_idempotent(fmt: Format, data: st.DataObject, rounding: str) -> None:
    bits = data.draw(bit_arrays(fmt))
    once = encoded(bits, fmt, rounding, "saturate", random(rounding, 1))
    again = encoded(decoded(once, fmt), fmt, rounding, "saturate", random(rounding, 2))
    assert_bits_equal(again, once, fmt=fmt, inputs=floats(bits))


@over(FORMATS)
@few
@given(data=st.data(), rounding=st.sampled_from(DETERMINISTIC))
def test_3_monotone(fmt: Format, data: st.DataObject, rounding: str) -> None:
    bits = finite(data.draw(bit_arrays(fmt)))
    if not fmt.signed:
        bits = bits & np.uint32(SIGN - 1)
    bits = bits[np.lexsort((~np.signbit(floats(bits)), floats(bits)))]
    assert (np.diff(values(encoded(bits, fmt, rounding, "saturate"), fmt)) >= 0).all()


@over([fmt for fmt in FORMATS if fmt.bits <= 8])
@few
@given(data=st.data())
def test_4_nearest_with_ties_to_even(fmt: Format, data: st.DataObject) -> None:
    bits = within(data.draw(bit_arrays(fmt)), fmt)
    codes = encoded(bits, fmt)
    bits, codes = bits[::4], codes[::4]
    assert fmt.values is not None
    lattice = sorted({Fraction(x) for x in fmt.values[np.isfinite(fmt.values)].tolist()})
    by_code = fmt.table is None or fmt.name == "hif8"
    for x, code in zip(floats(bits).tolist(), codes.tolist(), strict=True):
        distances = sorted(abs(v - Fraction(x)) for v in lattice)
        if abs(Fraction(fmt.value(code)) - Fraction(x)) != distances[0]:
            # The lowest value that a symmetric format leaves out is no value of it.
            assert fmt.narrow_range and x < fmt.min + 1, (x, code)
        elif by_code and distances[0] == distances[1] and not fmt.narrow_range:
            assert code % 2 == 0, (x, code)


@over([x for x in FORMATS if x.table is None and x.signed and x.encoding == "sign_magnitude"])
@few
@given(data=st.data(), rounding=st.sampled_from(DETERMINISTIC))
def test_5_odd_symmetry(fmt: Format, data: st.DataObject, rounding: str) -> None:
    bits = finite(data.draw(bit_arrays(fmt)))
    swap = {"toward_positive": "toward_negative", "toward_negative": "toward_positive"}
    mirrored = encoded(bits ^ np.uint32(SIGN), fmt, swap.get(rounding, rounding), "saturate")
    straight = values(encoded(bits, fmt, rounding, "saturate"), fmt)
    np.testing.assert_array_equal(values(mirrored, fmt), -straight)


@over([x for x in FORMATS if x.zero != "none"])
@few
@given(data=st.data())
def test_6_directed_modes_bracket(fmt: Format, data: st.DataObject) -> None:
    bits = within(data.draw(bit_arrays(fmt)), fmt)
    x = floats(bits).astype(np.float64)
    below, above = (
        values(encoded(bits, fmt, f"toward_{side}", "saturate"), fmt)
        for side in ("negative", "positive")
    )
    assert (below <= x).all() and (x <= above).all()
    assert ((below == above) == (below == x)).all()
    if fmt.values is not None:
        lattice = np.unique(fmt.values[np.isfinite(fmt.values)])
        steps = np.searchsorted(lattice, above) - np.searchsorted(lattice, below)
        assert set(steps.tolist()) <= {0, 1}
    for rounding in ROUNDINGS:
        got = values(encoded(bits, fmt, rounding, "saturate", random(rounding, 1)), fmt)
        assert ((got == below) | (got == above)).all(), rounding


@over(FORMATS)
@few
@given(seed=seeds)
def test_7_exact_values_stay(fmt: Format, seed: int) -> None:
    codes = codes_of(fmt, seed)
    codes = np.where(np.isfinite(values(codes, fmt)), codes, np.asarray(fmt.max_code, codes.dtype))
    bits = decoded(codes, fmt)
    for rounding in ROUNDINGS:
        got = encoded(bits, fmt, rounding, "nonsaturating", random(rounding, seed))
        assert_bits_equal(got, codes, fmt=fmt)


@over([x for x in FORMATS if x.signed and x.max < 2.0**120])
@few
@given(factor=st.integers(2, 100), negative=st.booleans())
def test_8_overflow(fmt: Format, factor: int, negative: bool) -> None:
    sign = -1.0 if negative else 1.0
    largest = fmt.min if negative else fmt.max
    beyond = max(abs(largest), fmt.overflow_value or 0.0) * 2 * factor
    bits = as_bits(np.array([sign * beyond, sign * math.inf], np.float32))
    special = sign * math.inf if fmt.has_inf else math.nan if fmt.has_nan else largest
    stops = {"toward_zero", "to_odd", "toward_positive" if negative else "toward_negative"}
    for rounding in ROUNDINGS:
        words = None if not is_stochastic(rounding) else random_words(2)
        wanted = {
            "saturate": (largest, largest),
            "saturate_finite": (largest, special if fmt.has_inf else largest),
            "nonsaturating": (largest if rounding in stops else special, special),
        }
        for overflow, want in wanted.items():
            got = values(encoded(bits, fmt, rounding, overflow, words), fmt)
            np.testing.assert_array_equal(got, want, err_msg=f"{rounding} {overflow}")


@over([x for x in FORMATS if x.table is None and x.zero == "signed" and x.signed])
@few
@given(data=st.data(), rounding=st.sampled_from(ROUNDINGS))
def test_9_the_sign_is_kept(fmt: Format, data: st.DataObject, rounding: str) -> None:
    bits = finite(data.draw(bit_arrays(fmt)))
    bits[:2] = 0, SIGN
    got = encoded(bits, fmt, rounding, "saturate", random(rounding, 3))
    np.testing.assert_array_equal((got & fmt.sign_mask) != 0, bits >= SIGN)


@over([x for x in FORMATS if x.bits <= 8 and x.zero != "none" and x.table is None])
@few
@given(data=st.data(), count=st.integers(1, 6))
def test_10_every_word_counts_once(fmt: Format, data: st.DataObject, count: int) -> None:
    """Of all 2^r words, floor(fraction * 2^r) round away from zero."""
    bits = within(data.draw(bit_arrays(fmt)), fmt)[:: 1 << count][:8]
    grid, words = np.meshgrid(bits, np.arange(1 << count, dtype=np.uint32), indexing="ij")
    got = values(encoded(grid, fmt, "stochastic", "saturate", words, count), fmt)
    inner = values(encoded(bits, fmt, "toward_zero", "saturate"), fmt)
    below, above = (
        values(encoded(bits, fmt, f"toward_{side}", "saturate"), fmt)
        for side in ("negative", "positive")
    )
    away = (got != inner[:, None]).sum(axis=1)
    for x, low, high, near, seen in zip(
        floats(bits).tolist(), below, above, inner, away.tolist(), strict=True
    ):
        gap = Fraction(high) - Fraction(low)
        fraction = abs(Fraction(x) - Fraction(near)) / gap if gap else Fraction(0)
        assert seen == math.floor(fraction * 2**count), (x, count)


@over([x for x in FLOATING if x.mantissa_bits <= 10])
@few
@given(data=st.data())
def test_11_round_to_odd_and_then_to_nearest(fmt: Format, data: st.DataObject) -> None:
    width = min(fmt.mantissa_bits + 2, 22)
    wide = Format(
        name=f"wide{width}",
        exponent_bits=8,
        mantissa_bits=width,
        bias=127,
        infinity="ieee",
        nan="ieee",
    )
    bits = finite(data.draw(bit_arrays(fmt)))
    if fmt.min_subnormal is not None and fmt.min_subnormal < 2.0**-120:
        bits = bits | np.uint32(1 << 29)
    by_odd = decoded(encoded(bits, wide, "to_odd", "saturate"), wide)
    for rounding in ("nearest_even", "nearest_away", "nearest_toward_zero"):
        want = encoded(bits, fmt, rounding)
        assert_bits_equal(encoded(by_odd, fmt, rounding), want, fmt=fmt, inputs=floats(bits))


@over([x for x in FLOATING if x.exponent_bits >= 4 and x.bits <= 16])
@few
@given(seed=seeds, power=st.integers(1, 3))
def test_12_a_power_of_two_goes_through(fmt: Format, seed: int, power: int) -> None:
    assert fmt.min_normal is not None
    low = np.float32(fmt.min_normal).view(np.uint32) >> np.uint32(23)
    span = np.uint32(max((1 << fmt.exponent_bits) - 6, 1))
    words = random_words(SIZE, seed)
    field = np.maximum(low, np.uint32(1)) + (words >> np.uint32(8)) % span
    bits = (words & np.uint32(SIGN | 0x7FFFFF)) | np.minimum(field, 250) << np.uint32(23)
    bits = bits.astype(np.uint32) & np.uint32(0xFFFFFFFF if fmt.signed else SIGN - 1)
    for rounding in DETERMINISTIC:
        if fmt.mantissa_bits == 0 and rounding in ("nearest_even", "to_odd"):
            continue  # Without mantissa bits evenness is that of the exponent.
        one = values(encoded(bits, fmt, rounding, "saturate"), fmt)
        moved = values(encoded(bits + (np.uint32(power) << 23), fmt, rounding, "saturate"), fmt)
        inside = np.abs(one) * 2**power < fmt.max
        np.testing.assert_array_equal(moved[inside], one[inside] * 2**power)
        assert inside.mean() > 0.3


@settings(max_examples=3)
@given(seed=seeds, power=st.integers(-20, 20))
def test_12_blocks_move_with_powers_of_two_and_permutations(seed: int, power: int) -> None:
    words = random_words(64, seed).reshape(2, 32)
    x = floats((words & np.uint32(SIGN | 0x7FFFFF)) | np.uint32(120 + seed % 16) << np.uint32(23))
    order = np.random.default_rng(seed).permutation(32)
    for name in ("mxfp4", "mxfp8_e4m3_rceil"):
        q, moved = lp.quantize(x, name), lp.quantize(np.ldexp(x, power), name)
        assert_bits_equal(np.asarray(moved.codes), np.asarray(q.codes))
        np.testing.assert_array_equal(
            np.asarray(moved.scales).astype(int), np.asarray(q.scales).astype(int) + power
        )
        mixed = lp.quantize(x[:, order], name)
        assert_bits_equal(np.asarray(mixed.codes), np.asarray(q.codes)[:, order])
        assert_bits_equal(np.asarray(mixed.scales), np.asarray(q.scales))


@pytest.mark.parametrize("name", ["mxfp8_e4m3", "mxfp4"])
@settings(max_examples=5)
@given(seed=seeds)
def test_13_scale_rules_are_ordered(name: str, seed: int) -> None:
    x = floats(random_words(SIZE, seed) & np.uint32(0x7F7FFFFF))[:, None]
    rules = ("floor", "even", "ceil", "rceil")
    found = {rule: lp.quantize(x, changed(name, scale_rule=rule)) for rule in rules}
    floor, even, ceil, rceil = (np.asarray(found[rule].scales).astype(int) for rule in rules)
    assert (floor <= even).all() and (even <= ceil).all() and (ceil <= floor + 1).all()
    largest = found["rceil"].block.element.max
    exact, inside = x.astype(np.float64), rceil > 0
    assert (exact <= largest * 2.0 ** (rceil - 127)).all(), "rceil saturates"
    assert (exact * 2 > largest * 2.0 ** (rceil - 127))[inside].all(), "rceil wastes a binade"
    # Of what floor cuts off at most the part of the binade above the largest value is lost.
    low = floor < 254
    assert (exact < 2.0 ** (floor - 127 + math.frexp(largest)[1]))[low].all()


EXACT_PRODUCTS = ("float8_e4m3fn", "float8_e5m2", "float6_e2m3fn", "float6_e3m2fn", "float4_e2m1fn")


@pytest.mark.parametrize("name", EXACT_PRODUCTS)
def test_14_products_of_short_numbers_are_exact(name: str) -> None:
    values = lp.get_format(name).values
    assert values is not None
    x = values[np.isfinite(values)].astype(np.float32)
    got = np.asarray(jax.jit(lambda a, b: a[:, None] * b[None, :])(x, x))
    exact = x.astype(np.float64)[:, None] * x.astype(np.float64)[None, :]
    np.testing.assert_array_equal(got.astype(np.float64), exact)


@jax.jit
def two_sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    total = a + b
    other = total - a
    return total, (a - (total - other)) + (b - other)


@settings(max_examples=5)
@given(seed=seeds)
def test_14_sterbenz_and_two_sum(seed: int) -> None:
    words = random_words(2 * SIZE, seed)
    spread = np.uint32(100) + (words >> np.uint32(8)) % np.uint32(40)
    x = floats((words & np.uint32(SIGN | 0x7FFFFF)) | spread << np.uint32(23))
    a, b = x[:SIZE], x[SIZE:]
    total, error = map(np.asarray, two_sum(a, b))
    for i in range(SIZE):
        parts = Fraction(float(total[i])) + Fraction(float(error[i]))
        assert parts == Fraction(float(a[i])) + Fraction(float(b[i]))
    close = (a * np.float32(1.5)).astype(np.float32)
    difference = np.asarray(jax.jit(lambda a, b: a - b)(a, close))
    exact = a.astype(np.float64) - close.astype(np.float64)
    np.testing.assert_array_equal(difference.astype(np.float64), exact)


WIDTHS = list({fmt.bits: fmt for fmt in reversed(FORMATS)}.values())


@over(WIDTHS)
@few
@given(seed=seeds)
def test_16_unpack_undoes_pack(fmt: Format, seed: int) -> None:
    codes = (random_words(2 * 37, seed) & np.uint32(fmt.code_mask)).astype(fmt.code_dtype)
    codes = codes.reshape(2, 37)
    packed = lp.pack(codes, fmt)
    assert packed.shape == (2, -(-37 * fmt.bits // 8)) and packed.dtype == jnp.uint8
    assert_bits_equal(lp.unpack(packed, fmt, 37), codes, fmt=fmt)


COMPILED = (
    *("float8_e4m3fn", "float8_e5m2fnuz", "float8_e8m0fnu", "float6_e3m2fn", "float4_e2m1fn"),
    *("ue4m3", "hif8", "nf4", "binary8p4se", "int4_symmetric", "bfloat16", "float16"),
)
"""One format of a kind: each is compiled six times."""


@pytest.mark.slow
@pytest.mark.parametrize("fmt", [lp.get_format(name) for name in COMPILED], ids=COMPILED)
@settings(max_examples=1)
@given(data=st.data())
def test_17_eager_jit_vmap_scan_and_strict_options(fmt: Format, data: st.DataObject) -> None:
    bits = data.draw(bit_arrays(fmt)).reshape(8, SIZE // 8)
    x, words = jnp.asarray(floats(bits)), jnp.asarray(random_words(SIZE, 1).reshape(bits.shape))

    def run(x: jax.Array, words: jax.Array) -> tuple[jax.Array, ...]:
        codes = lp.encode(x, fmt, overflow="nonsaturating")
        drawn = lp.encode(x, fmt, rounding="stochastic", random_bits=words)
        return codes, drawn, float32.to_bits(lp.decode(codes, fmt))

    want = (
        encoded(bits, fmt),
        encoded(bits, fmt, "stochastic", "saturate", np.asarray(words)),
        decoded(encoded(bits, fmt), fmt),
    )
    ways = {
        "eager": run,
        "jit": jax.jit(run),
        "vmap": jax.vmap(run),
        "scan": lambda x, words: jax.lax.scan(lambda c, row: (c, run(*row)), 0, (x, words))[1],
        "strict": jax.jit(run, compiler_options=STRICT),
        "strict_slow": jax.jit(run, compiler_options=STRICT_SLOW),
    }
    for name, way in ways.items():
        for got, exact in zip(way(x, words), want, strict=True):
            np.testing.assert_array_equal(np.asarray(got), exact, err_msg=name)
