"""What calibrated methods refuse to be fitted to, and caches that they were not fitted for."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from lowprec.kv import KVMethod, get_kv_method, list_kv_methods

HEADS, DIM = 2, 64
NAMES = [name for name in list_kv_methods() if get_kv_method(name).spec.calibrated]
OF_A_TENSOR = {"fp8_tensor_calibrated", "nvfp4_calibrated"}
"""One scale, whatever the heads."""

Sample = Mapping[str, np.ndarray]


def sample(heads: int = HEADS, dim: int = DIM, count: int = 96, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    k, v = rng.normal(size=(2, 1, heads, count, dim)).astype(np.float32)
    return {"k": k, "k_before_rope": k, "v": v}


@functools.cache
def fitted(name: str) -> KVMethod:
    return get_kv_method(name).fit([sample()])


@pytest.mark.parametrize("name", NAMES)
def test_a_cache_of_other_heads_is_refused(name: str) -> None:
    """Eight heads would be the two of the samples over and over."""
    method = fitted(name)
    assert method.init(1, HEADS, DIM, 8).dim == DIM
    if name in OF_A_TENSOR:
        assert method.init(1, 8, DIM, 8).dim == DIM
        return
    with pytest.raises(ValueError, match=r"`heads` = 8, `dim` = 64: the method .* was fitted to"):
        method.init(1, 8, DIM, 8)
    # The bytes of other shapes can still be asked for.
    assert method.bits_per_element(256, kv_heads=8, dim=128) > 0


@pytest.mark.parametrize("name", NAMES)
def test_samples_that_do_not_serve_are_refused(name: str) -> None:
    whole = sample()
    keys = {"k", "k_before_rope"}
    changes: list[tuple[str, Any, str]] = [
        ("lacks 'v'", lambda x: None, "v"),
        ("lacks 'k", lambda x: None, "k"),
        ("(2, 96, 64) beside", lambda x: x[0], "v"),
        ("(2, 96, 64) beside", lambda x: x[0], "k"),
        ("(1, 2, 0, 64) beside", lambda x: x[:, :, :0], "k"),
        ("k.* has Inf or NaN", lambda x: x + np.float32(np.nan), "k"),
        ("v has Inf or NaN", lambda x: x * np.float32(np.inf), "v"),
    ]
    for message, change, side in changes:
        names = keys if side == "k" else {"v"}
        found = {key: change(x) if key in names else x for key, x in whole.items()}
        given = {key: x for key, x in found.items() if x is not None}
        with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
            get_kv_method(name).fit([given])
    for other in (sample(heads=4), sample(dim=128)):
        with pytest.raises(ValueError, match="with the same heads and dim in all"):
            get_kv_method(name).fit([whole, other])


@pytest.mark.parametrize("name", ["fp8_head", "fp8_tensor_calibrated", "nvfp4_calibrated"])
def test_zeros_have_no_scale(name: str) -> None:
    zero = sample()
    zero["v"] = np.zeros_like(zero["v"])
    with pytest.raises(ValueError, match=r"v is zero throughout in the heads \[0, 1\] of 2"):
        get_kv_method(name).fit([zero])
    silent = sample()
    silent["k"] = silent["k"] * np.array([1, 0], np.float32)[None, :, None, None]
    if name in OF_A_TENSOR:
        assert get_kv_method(name).fit([silent]).fitted is not None
        return
    with pytest.raises(ValueError, match=r"k is zero throughout in the heads \[1\] of 2"):
        get_kv_method(name).fit([silent])
    # One sample that has other numbers there is enough.
    assert get_kv_method(name).fit([silent, sample(seed=1)]).fitted is not None
