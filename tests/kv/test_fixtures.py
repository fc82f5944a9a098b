"""Bits of KV methods against those of KIVI's, QuaRot's and ModelOpt's own quantizers.

What these answered is in fixtures/sources.npz, by experiments/kv_fixtures.py, which says at which
commits; the groups are of every sort: equal values, zeros, the smallest and the largest numbers,
Inf and NaN.
"""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.kv import KVMethod, get_kv_method
from lowprec.kv.codes import BlockCode, Parts
from lowprec.kv.kivi import KiviSpec
from lowprec.kv.pair import PairSpec
from lowprec.numerics import decode, get_format, unpack
from tests.helpers import assert_bits_equal

FIXTURE = Path(__file__).parent / "fixtures" / "sources.npz"
NO_CODE = 255


@functools.cache
def answers() -> dict[str, np.ndarray]:
    with np.load(FIXTURE) as stored:
        return dict(stored)


def answer(name: str) -> np.ndarray:
    return answers()[name]


def assert_equal_numbers(got: object, want: np.ndarray, *, zero_signs: bool = True) -> None:
    """Bits of float32 numbers, a NaN being any NaN, and zeros of either sign where it says so."""
    one, other = np.asarray(got, np.float32), want.astype(np.float32)
    np.testing.assert_array_equal(np.isnan(one), np.isnan(other))
    numbers = [np.where(np.isnan(x), np.float32(0), x) for x in (one, other)]
    assert_bits_equal(*numbers if zero_signs else [x + np.float32(0) for x in numbers])


def test_the_fixture_is_small_and_says_where_it_is_from() -> None:
    sources = json.loads(str(answer("sources")))
    assert set(sources) == {"kivi", "quarot", "modelopt", "torch"}
    assert FIXTURE.stat().st_size < 200_000
    x = answer("x").astype(np.float32)
    assert np.isnan(x).any() and np.isposinf(x).any() and np.isneginf(x).any()
    assert (np.abs(x) == 2.0**-24).any() and (np.abs(x) == 65504).any()
    for name, array in answers().items():
        assert array.size == 1 or len(np.unique(array)) > 10, f"{name} would agree with anything"


# KIVI


def kivi(name: str) -> KVMethod:
    """The entry without its window, so that all tokens are coded."""
    bits, group = name[:4], 64 if name.endswith("g64") else 32
    method = get_kv_method(f"kivi_{bits}_w0")
    assert isinstance(method.spec, KiviSpec)
    return KVMethod(spec=dataclasses.replace(method.spec, group=group))


@pytest.mark.parametrize(
    "name", ["2bit", *(pytest.param(x, marks=pytest.mark.slow) for x in ("4bit", "2bit_g64"))]
)
def test_kivi_has_the_sources_bits(name: str) -> None:
    """But for codes of 0 / 0, which the source converts to integers, as PyTorch leaves undefined.

    quant/new_pack.py:22-23 divides by the scale of a group of equal values, 0, or of an infinite
    range. Whatever the code, 0 * code + minimum is the minimum; Inf * code + minimum is NaN for the
    code 0, which is ours, and infinite for others.
    """
    method, x = kivi(name), jnp.asarray(answer("x"))
    heads, tokens, dim = x.shape[1:]
    cache = method.append(method.init(1, heads, dim, tokens), x, x)
    assert isinstance(method.spec, KiviSpec)
    group, width = method.spec.group, method.spec.block.element.bits
    for side, store, read in zip("kv", (cache.keys, cache.values), method.read(cache), strict=True):
        parts, want = store.parts, {y: answer(f"kivi/{name}/{side}/{y}") for y in WHAT}
        shape = (1, heads, -1, dim) if side == "k" else (1, heads, tokens, -1)
        for ours, theirs in (("scales", "scales"), ("offsets", "minima")):
            assert_equal_numbers(float16(parts[ours]).reshape(shape), want[theirs].reshape(shape))
        codes, theirs = stored_codes(parts, side, dim, width), source_codes(want, side, width)
        scales = np.repeat(want["scales"].reshape(shape), group, axis=2 if side == "k" else 3)
        defined, infinite = np.isfinite(scales) & (scales != 0), np.isinf(scales)
        assert_equal_numbers(np.asarray(read)[~infinite], want["values"][~infinite])
        assert np.isnan(read)[infinite].all() and not np.isfinite(want["values"][infinite]).any()
        # Undefined codes spill over into those packed beside them, in the same group.
        np.testing.assert_array_equal(codes[defined], theirs[defined])
        assert 0.9 < defined.mean() < 1 and len(np.unique(codes)) == 2**width
        assert not codes[~defined & (scales == 0)].any()


WHAT = ("codes", "scales", "minima", "values")


def float16(stored: jax.Array) -> np.ndarray:
    """The numbers of stored scales or minima, 16 bits each."""
    assert stored.dtype.itemsize == 2
    return np.asarray(stored).view(np.float16)


def stored_codes(parts: Parts, side: str, dim: int, width: int) -> np.ndarray:
    """(1, heads, tokens, dim) codes, unpacked bit by bit."""
    packed = np.asarray(parts["codes"])
    if side == "k":
        # A byte has some tokens of one number.
        packed = packed.reshape(*packed.shape[:3], -1, dim).swapaxes(-1, -2)
    bits = np.unpackbits(packed, axis=-1, bitorder="little")
    numbers = bits.reshape(*bits.shape[:-1], -1, width) @ (1 << np.arange(width))
    if side == "v":
        return numbers
    return numbers.swapaxes(-1, -2).reshape(1, numbers.shape[1], -1, dim)


def source_codes(want: dict[str, np.ndarray], side: str, width: int) -> np.ndarray:
    """The same from int32 words: along tokens for keys, along a head's numbers for values."""
    words = want["codes"].view(np.uint32)
    axis = 2 if side == "k" else 3
    places = (np.arange(32 // width, dtype=np.uint32) * width).reshape(-1, *[1] * (3 - axis))
    numbers = np.expand_dims(words, axis + 1) >> places & np.uint32(2**width - 1)
    shape = list(words.shape)
    shape[axis] *= 32 // width
    return numbers.reshape(shape).astype(np.int64)


# QuaRot


def code_of(method: str, side: int) -> BlockCode:
    """An entry's code without its rotation."""
    spec = get_kv_method(method).spec
    assert isinstance(spec, PairSpec)
    code = spec.layouts()[side].code
    assert isinstance(code, BlockCode) and code.rotation == "hadamard"
    return dataclasses.replace(code, rotation="none")


def test_quarots_deployed_quantizer_has_the_sources_bits() -> None:
    """But for codes where the range is infinite: NaN is converted there (kv_cache.py:19)."""
    x = jnp.asarray(answer("x")).astype(jnp.float32)
    code = code_of("quarot_4bit", 0)
    assert code == code_of("quarot_4bit", 1)
    parts = code.encode(x, {})
    assert_equal_numbers(float16(parts["scales"]), answer("quarot/deployed/scales"))
    # The source negates the minimum twice over: -0 of it is either zero.
    minima = answer("quarot/deployed/minima")
    assert_equal_numbers(float16(parts["offsets"]), minima, zero_signs=False)
    finite = np.isfinite(answer("quarot/deployed/scales")[..., 0].astype(np.float32))
    want = answer("quarot/deployed/codes")
    np.testing.assert_array_equal(np.asarray(parts["codes"])[finite], want[finite])
    assert 0.8 < finite.mean() < 1
    values = code.decode(parts, x.shape[-1], {})
    assert_equal_numbers(values, answer("quarot/deployed/values"), zero_signs=False)


@pytest.mark.parametrize("side", ["k", "v"])
def test_quarots_simulated_quantizers_have_the_sources_bits(side: str) -> None:
    """Keys in float32 with a range that holds zero, values in float16 with one that need not."""
    x = jnp.asarray(answer("x")).astype(jnp.float32)
    code = code_of("quarot_4bit_simulated", "kv".index(side))
    parts = code.encode(x, {})
    want = {
        y: answer(f"quarot/simulated/{side}/{y}") for y in ("codes", "scales", "zeros", "values")
    }
    numbers = np.asarray if side == "k" else float16
    assert_equal_numbers(numbers(parts["scales"]), want["scales"])
    assert_equal_numbers(numbers(parts["offsets"]), want["zeros"], zero_signs=False)
    codes = np.asarray(unpack(parts["codes"], code.block.element, x.shape[-1]))
    defined = want["codes"] != NO_CODE
    np.testing.assert_array_equal(codes[defined], want["codes"][defined])
    assert defined.mean() > 0.8 and not codes[~defined].any()
    # The simulation returns the model's float16.
    with np.errstate(over="ignore"):
        values = np.asarray(code.decode(parts, x.shape[-1], {})).astype(np.float16)
    assert_equal_numbers(values, want["values"], zero_signs=False)


# Model-Optimizer


@pytest.mark.parametrize("name", ["measured", "half", "cast", "one"])
def test_modelopts_nvfp4_has_the_sources_bits(name: str) -> None:
    """Codes and scales; values are the products of the same three numbers, in another order.

    nvfp4_tensor.py:400-407 rounds scale * tensor scale first, and the catalogue's blocks code *
    scale, which is exact. Its -0 has the code of +0 (weight < 0, :236), and its table a +0 for the
    code of -0 (:27).
    """
    x = jnp.asarray(answer("x")).astype(jnp.bfloat16).astype(jnp.float32)
    spec = get_kv_method("nvfp4_calibrated").spec
    assert isinstance(spec, PairSpec)
    code = spec.layouts()[0].code
    fitted = {"amax": answer(f"modelopt/{name}/amax")[0]}
    parts = code.encode(x, fitted)
    scales, packed = (np.asarray(parts[y]) for y in ("scales", "codes"))
    want = {y: answer(f"modelopt/{name}/{y}") for y in ("scales", "codes", "values")}
    e4m3, e2m1 = get_format("float8_e4m3fn"), get_format("float4_e2m1fn")
    numbers = np.asarray(decode(jnp.asarray(scales), e4m3))
    assert_equal_numbers(numbers, np.asarray(decode(jnp.asarray(want["scales"]), e4m3)))
    ours, theirs = (
        np.asarray(unpack(jnp.asarray(y), e2m1, x.shape[-1])) for y in (packed, want["codes"])
    )
    defined = np.repeat(np.isfinite(numbers), 16, axis=-1)
    unsigned_zero = np.asarray((x == 0) & jnp.signbit(x))
    np.testing.assert_array_equal(ours[defined & ~unsigned_zero], theirs[defined & ~unsigned_zero])
    assert set(theirs[defined & unsigned_zero]) == {0} and set(ours[defined & unsigned_zero]) == {8}
    tensor = answer(f"modelopt/{name}/tensor_scale").reshape(())
    elements = np.asarray(decode(jnp.asarray(ours), e2m1))
    each = np.repeat(numbers, 16, axis=-1)
    values = np.asarray(code.decode(parts, x.shape[-1], fitted))
    assert_equal_numbers(values, elements * each * tensor, zero_signs=False)
    assert_equal_numbers(elements * (each * tensor), want["values"], zero_signs=False)
    differing = np.mean((values != want["values"]) & np.isfinite(values))
    assert differing == 0 if name == "one" else 0 < differing < 0.6
