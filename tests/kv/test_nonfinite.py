"""What a NaN, an Inf and a far too large number of a token become, and what they take along."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from lowprec.kv import KVMethod, get_kv_method

HEADS, DIM, TOKENS, PLACE, CHANNEL = 2, 64, 128, 40, 5
GIVEN = {"NaN": np.nan, "Inf": np.inf, "1e30": 1e30}


@functools.cache
def reading(name: str) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """What a cache gives back; without windows, so that every token is coded."""
    rng = np.random.default_rng(1)
    k, v = rng.normal(size=(2, 1, HEADS, 400, DIM)).astype(np.float32)
    spec = get_kv_method(name).spec.without_window()
    method = KVMethod(spec=spec).fit([{"k": k, "k_before_rope": k, "v": v}])

    @jax.jit
    def read(k: jax.Array, v: jax.Array) -> Any:
        return method.read(method.append(method.init(1, HEADS, DIM, TOKENS), k, v))

    return read


def fate(got: np.ndarray, before: np.ndarray) -> str:
    """In one word what numbers became, of which `before` is what they were without the other."""
    if np.isnan(got).all() or np.isinf(got).all():
        return "NaN" if np.isnan(got).all() else "Inf"
    if not np.isfinite(got).any():
        return "NaN and Inf"
    if not np.isfinite(got).all():
        return "NaN and others"
    if np.array_equal(got, before):
        return "kept"
    return "finite" if got.any() else "0"


def fates(name: str, given: float) -> dict[str, tuple[str, ...]]:
    """By side: of the number, the others of its token, its unit, other heads, other tokens."""
    rng = np.random.default_rng(0)
    calm = rng.normal(size=(2, 1, HEADS, TOKENS, DIM)).astype(np.float32)
    struck = calm.copy()
    struck[:, 0, 0, PLACE, CHANNEL] = given
    both = zip(reading(name)(*struck), reading(name)(*calm), strict=True)
    groups = [x.code.group for x in get_kv_method(name).spec.without_window().layouts()]  # type: ignore[attr-defined] - of pairs
    found = {}
    for side, group, (got, before) in zip(("keys", "values"), groups, both, strict=True):
        got, before = np.asarray(got)[0], np.asarray(before)[0]
        own, token, unit = (np.zeros(got.shape, bool) for _ in range(3))
        own[0, PLACE, CHANNEL] = token[0, PLACE] = True
        start = PLACE // group * group
        unit[:, start : start + group] = True
        head = np.arange(HEADS)[:, None, None] == 0
        parts = [own, token & ~own, unit & head & ~token, unit & ~head, ~unit]
        found[side] = tuple(fate(got[x], before[x]) if x.any() else "" for x in parts)
    return found


ALONE = ("kept", "", "kept", "kept")
"""Only the number itself changes."""

Fates = dict[str, tuple[tuple[str, ...], tuple[str, ...]]]


def both(**found: tuple[str, ...]) -> Fates:
    """Of keys and values alike."""
    return {("1e30" if name == "large" else name): (each, each) for name, each in found.items()}


def whole(token: str, other: str = "") -> tuple[str, ...]:
    """The number and its token, which shares one scale."""
    return (token, other or token, "", "kept", "kept")


CASES: dict[str, Fates] = {
    "bf16": both(NaN=("NaN", *ALONE), Inf=("Inf", *ALONE), large=("finite", *ALONE)),
    "fp8_head": both(NaN=("NaN", *ALONE), Inf=("finite", *ALONE), large=("finite", *ALONE)),
    "int8_token": both(NaN=whole("NaN"), Inf=whole("NaN"), large=whole("finite", "0")),
    "int4_token": both(NaN=whole("finite", "kept"), Inf=whole("NaN"), large=whole("finite", "0")),
    "int4_token_rht": both(NaN=whole("0"), Inf=whole("NaN"), large=whole("finite")),
    "nvfp4": both(NaN=whole("NaN", "NaN and others"), Inf=whole("finite"), large=whole("finite")),
    "mxfp4": both(
        NaN=whole("NaN", "NaN and others"),
        Inf=whole("NaN", "NaN and others"),
        large=whole("finite"),
    ),
    "quarot_4bit": both(NaN=whole("NaN"), Inf=whole("NaN"), large=whole("NaN")),
    # A group of 32 tokens of a channel, and of 32 numbers of a token.
    "kivi_2bit": {
        name: (("NaN", "kept", "NaN and others", "kept", "kept"), whole("NaN", "NaN and others"))
        for name in GIVEN
    },
    "turboquant_4bit": {
        "NaN": (whole("NaN"), whole("finite", "kept")),
        "Inf": (whole("NaN", "NaN and Inf"), whole("NaN")),
        "1e30": (whole("NaN", "NaN and Inf"), whole("Inf", "NaN")),
    },
    "polarquant": both(NaN=whole("NaN"), Inf=whole("NaN"), large=whole("NaN")),
    "qjl": {
        name: (
            ("NaN", "NaN", "kept", "kept", "kept")
            if name == "NaN"
            else ("Inf", "NaN and Inf", "kept", "kept", "kept"),
            whole("NaN", "NaN and others"),
        )
        for name in GIVEN
    },
    # A pair of its own, in float16; among values one pair less for the others.
    "kvquant_2bit": {
        name: (
            ("NaN" if name == "NaN" else "Inf", *ALONE),
            ("NaN" if name == "NaN" else "Inf", "finite", "", "finite", "kept"),
        )
        for name in GIVEN
    },
}
FAST, SLOW = ("int8_token", "fp8_head"), ("int4_token_rht", "turboquant_4bit")
"""The others are programs of their own to compile, and thorough."""


def graded() -> list[Any]:
    slow, thorough = pytest.mark.slow, pytest.mark.thorough
    return [
        pytest.param(x, marks=[slow] * (x not in FAST) + [thorough] * (x not in (*FAST, *SLOW)))
        for x in CASES
    ]


@pytest.mark.parametrize("name", graded())
def test_what_is_not_finite_becomes_what_its_family_says(name: str) -> None:
    for given, (keys, values) in CASES[name].items():
        assert fates(name, GIVEN[given]) == {"keys": keys, "values": values}, given
