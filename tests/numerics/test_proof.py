"""The casts over all float32, bfloat16 and float16 inputs, and that the proof can fail."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.numerics import Format, get_format, list_formats
from lowprec.numerics.codec import encode_bits
from lowprec.numerics.float32 import to_bits
from lowprec.numerics.rounding import OVERFLOWS
from lowprec.study.leading_bits import leading_bits_decide, prove_reduced
from lowprec.study.proof import DETERMINISTIC, SAMPLE, exact_codes, exact_steps, prove
from tests.helpers import FORMAT_NAMES, FORMATS, assert_bits_equal

WAYS = tuple(itertools.product(DETERMINISTIC, OVERFLOWS))
NAMED = [name for name in list_formats() if get_format(name).bits <= 8]
FAST = ("float8_e8m0fnu", "hif8")
# The steps of wider formats take minutes to be placed: `make prove` does it.
PLACED = [fmt for fmt in FORMATS if fmt.bits <= 16 or fmt.name in ("tensorfloat32", "float32")]
FEW_BITS = [
    get_format(f"binary{bits}p{precision}{sign}{domain}").name
    for bits in (3, 4, 5)
    for precision in range(1, bits + 1)
    for sign, domain in itertools.product("su", "ef")
    if (bits, precision, sign, domain) != (3, 3, "s", "e")
]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMED, *SAMPLE])
def test_every_float32_input(name: str) -> None:
    proofs = prove(get_format(name))
    assert {(proof.rounding, proof.overflow) for proof in proofs} == set(WAYS)
    for proof in proofs:
        assert proof.inputs == 1 << 32
        assert proof.thresholds > 0 and proof.asked > 0
        assert (proof.mismatches, proof.disagreements) == (0, 0), proof


@pytest.mark.slow
def test_leading_bits_decide() -> None:
    """In every mode: what lets whole families be proven over one input of each kind."""
    assert all(leading_bits_decide(get_format("binary8p4"), WAYS))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [*FEW_BITS, "hif8", "e4m2", "e5m7", "e8m6", "e11m2", "binary15p5uf"]
)
def test_family_members(name: str) -> None:
    for proof in prove_reduced(get_format(name), WAYS):
        assert proof.inputs > 2000 and proof.mismatches == 0, proof


@pytest.mark.parametrize(
    "fmt",
    [pytest.param(x, marks=[pytest.mark.slow] * (x.name not in FAST), id=x.name) for x in PLACED],
)
def test_every_input_of_16_bits(fmt: Format) -> None:
    """All bfloat16 and float16 numbers, in every deterministic mode and policy."""
    codes = np.arange(1 << 16, dtype=np.uint16)
    bits = [to_bits(jnp.asarray(codes.view(dtype))) for dtype in (jnp.bfloat16, jnp.float16)]
    patterns = jnp.concatenate(bits)
    exact = exact_codes(exact_steps(fmt, WAYS), np.asarray(patterns))
    for (rounding, overflow), want in zip(WAYS, exact, strict=True):
        got = np.asarray(encode_bits(patterns, fmt, rounding, overflow))
        assert_bits_equal(got, want.astype(got.dtype), fmt=fmt, inputs=np.asarray(patterns))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_widening_is_exact(dtype: jax.typing.DTypeLike) -> None:
    x = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    with np.errstate(all="ignore"):
        want = x.astype(np.float32).view(np.uint32)
    numbers = ~np.isnan(x.astype(np.float32))
    got = np.asarray(to_bits(jnp.asarray(x)))
    assert_bits_equal(got[numbers], want[numbers], inputs=x[numbers])
    assert np.isnan(got[~numbers].view(np.float32)).all()


def one_input(bits: jax.Array, fmt: Format, rounding: str, overflow: str) -> jax.Array:
    """One input in the middle of a step gets the next code."""
    codes = encode_bits(bits, fmt, rounding, overflow)
    return jnp.where(bits == np.uint32(0x3F812345), codes + np.uint8(1), codes)


def one_ulp(bits: jax.Array, fmt: Format, rounding: str, overflow: str) -> jax.Array:
    """A tie, 2.5, goes the other way: a threshold is off by one pattern."""
    codes = encode_bits(bits, fmt, rounding, overflow)
    return jnp.where(bits == np.uint32(0x40200000), codes + np.uint8(1), codes)


def relabelled(bits: jax.Array, fmt: Format, rounding: str, overflow: str) -> jax.Array:
    """Two codes change places, which no count of changes would see."""
    codes = encode_bits(bits, fmt, rounding, overflow)
    return jnp.where((codes == 3) | (codes == 4), codes ^ np.uint8(7), codes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encode", "wrong"),
    [
        (one_input, 1),
        (one_ulp, 1),
        # Codes 3 and 4, 1.5 and 2: from above 1.25, a tie to 1, up to 2.5, a tie to 2.
        (relabelled, 0x40200000 - 0x3FA00000),
    ],
    ids=["one_input", "one_ulp", "relabelled"],
)
def test_the_proof_counts_what_is_wrong(encode: object, wrong: int) -> None:
    fmt = get_format("float4_e2m1fn")
    (proof,) = prove(fmt, ["nearest_even"], ["saturate"], encode=encode)  # type: ignore[arg-type] - a stand-in with fewer arguments
    assert proof.mismatches == wrong and proof.inputs == 1 << 32


def test_the_formats_are_those_of_the_catalogue() -> None:
    assert len(SAMPLE) == len(set(SAMPLE)) == 12
    assert {"float8_e4m3fn", "float4_e2m1fn", "float8_e8m0fnu", "int8"} <= set(NAMED)
    assert set(NAMED) <= set(FORMAT_NAMES)
