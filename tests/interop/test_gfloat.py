"""Bit equality with gfloat, on float64 inputs: values, every rounding that both have, and P3109."""

import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np
import pytest

import lowprec as lp
from lowprec.numerics import Format, get_format
from lowprec.numerics.codec import encode_bits
from tests.helpers import as_bits, edges, floats, graded, random_words, sized

pytestmark = pytest.mark.slow

gfloat = pytest.importorskip("gfloat", reason="needs the extra `peers`")
formats = pytest.importorskip("gfloat.formats", reason="needs the extra `peers`")

SIZE = 512
MODES = {
    "nearest_even": "TiesToEven",
    "nearest_away": "TiesToAway",
    "toward_zero": "TowardZero",
    "toward_positive": "TowardPositive",
    "toward_negative": "TowardNegative",
    "stochastic": "StochasticFastest",
    "stochastic_fast": "StochasticFast",
    "stochastic_corrected": "Stochastic",
    "stochastic_odd": "StochasticOdd",
}
PEERS = {
    "float8_e5m2": formats.format_info_ocp_e5m2,
    "float8_e4m3fn": formats.format_info_ocp_e4m3,
    "float6_e2m3fn": formats.format_info_ocp_e2m3,
    "float6_e3m2fn": formats.format_info_ocp_e3m2,
    "float4_e2m1fn": formats.format_info_ocp_e2m1,
    "float8_e8m0fnu": formats.format_info_ocp_e8m0,
    "mxint8": formats.format_info_ocp_int8,
    "float16": formats.format_info_binary16,
    "bfloat16": formats.format_info_bfloat16,
}
FAMILY = (
    *("binary8p1se", "binary8p3se", "binary8p4se", "binary8p5sf", "binary8p8se", "binary3p2se"),
    *("binary6p3ue", "binary5p1uf", "binary7p4uf", "binary4p4ue", "binary11p5se", "binary15p9uf"),
)
# Below its least value E8M0 goes on in gfloat: see disagreements.toml.
ROUNDED = [name for name in (*PEERS, *FAMILY) if name != "float8_e8m0fnu"]

QUICK = ("float8_e4m3fn", "binary8p4se")


def ours(name: str) -> Format:
    """A format; gfloat's MXINT8 has the value -2 too, see disagreements.toml."""
    fmt = get_format(name)
    if name != "mxint8":
        return fmt
    return dataclasses.replace(fmt, name="mxint8_with_minus_2", narrow_range=False)


def peer(name: str) -> Any:
    if name in PEERS:
        return PEERS[name]
    width, rest = name.removeprefix("binary").split("p")
    signed = gfloat.Signedness.Signed if rest[-2] == "s" else gfloat.Signedness.Unsigned
    domain = gfloat.Domain.Extended if rest[-1] == "e" else gfloat.Domain.Finite
    return formats.format_info_p3109(int(width), int(rest[:-2]), signed, domain)


def theirs(x: np.ndarray, name: str, rounding: str, saturate: bool, words: Any = None) -> Any:
    mode = getattr(gfloat.RoundMode, MODES[rounding])
    random = {} if words is None else {"srbits": words.astype(np.int64), "srnumbits": 8}
    with np.errstate(all="ignore"):
        return gfloat.round_ndarray(peer(name), x, mode, saturate, **random)


def values(codes: Any, fmt: Format) -> np.ndarray:
    return np.array([fmt.value(int(code)) for code in np.asarray(codes)])


@functools.cache
def inputs(name: str) -> np.ndarray:
    """float32 patterns around the edges and at random; no negative ones where unsigned."""
    fmt = ours(name)
    bits = np.concatenate([sized(edges(fmt), SIZE - 64), random_words(64, 1)]).astype(np.uint32)
    if not fmt.signed:
        bits &= np.uint32(0x7FFFFFFF)
    if not fmt.has_nan:
        bits = np.where(np.isnan(floats(bits)), np.uint32(0x3F800000), bits)
    return bits


def assert_same(got: np.ndarray, want: np.ndarray, x: np.ndarray, what: str) -> None:
    same = (got == want) & (np.signbit(got) == np.signbit(want)) | (np.isnan(got) & np.isnan(want))
    wrong = np.flatnonzero(~same)
    first = wrong[:1]
    assert not len(wrong), (what, len(wrong), x[first], got[first], want[first])
    assert len(np.unique(got[np.isfinite(got)])) >= 3, "degenerate"


@pytest.mark.parametrize("name", [*PEERS, *FAMILY])
def test_every_code(name: str) -> None:
    fmt = ours(name)
    codes = range(1 << fmt.bits) if fmt.bits <= 8 else range(0, 1 << fmt.bits, 97)
    for code in codes:
        want, got = gfloat.decode_float(peer(name), code).fval, fmt.value(code)
        same = got == want and math.copysign(1, got) == math.copysign(1, want)
        assert same or (math.isnan(got) and math.isnan(want)), (name, code, got, want)


@pytest.mark.parametrize("rounding", MODES)
@pytest.mark.parametrize("name", graded(ROUNDED, fast=QUICK))
def test_roundings(name: str, rounding: str) -> None:
    fmt, bits = ours(name), inputs(name)
    with np.errstate(invalid="ignore"):
        x = floats(bits).astype(np.float64)
    words = random_words(SIZE, 3) & np.uint32(255) if rounding.startswith("stoch") else None
    for saturate, overflow in ((True, "saturate"), (False, "nonsaturating")):
        if not saturate and not fmt.has_nan:
            continue
        random = (None, 0) if words is None else (jax.numpy.asarray(words), 8)
        codes = encode_bits(jax.numpy.asarray(bits), fmt, rounding, overflow, *random)
        want = theirs(x, name, rounding, saturate, words)
        assert_same(values(codes, fmt), want, x, f"{name} {rounding} {overflow}")


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float6_e3m2fn", "binary8p4se", "bfloat16"])
def test_float64_is_rounded_once(name: str) -> None:
    fmt = get_format(name)
    assert fmt.values is not None
    finite = np.unique(np.abs(fmt.values[np.isfinite(fmt.values)]))[:2000]
    middle = (finite[1:] + finite[:-1]) / 2
    x = np.concatenate([middle, np.nextafter(middle, 0), np.nextafter(middle, np.inf), -middle])
    with jax.enable_x64(True):
        codes = lp.encode(x, fmt)
    assert_same(values(codes, fmt), theirs(x, name, "nearest_even", True), x, name)
    # By way of float32 it is not the same, or this would show nothing.
    twice = values(lp.encode(x.astype(np.float32), fmt), fmt)
    assert (twice != values(codes, fmt)).any()


def test_the_inputs_hold_ties() -> None:
    fmt = get_format("float8_e4m3fn")
    assert fmt.values is not None
    finite = np.unique(np.abs(fmt.values[np.isfinite(fmt.values)]))
    middle = as_bits(((finite[1:] + finite[:-1]) / 2).astype(np.float32))
    assert np.isin(middle, inputs("float8_e4m3fn")).sum() > 20
