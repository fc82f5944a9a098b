"""What a call takes here: rows say what the arithmetic is, and nothing depends on how long."""

import dataclasses

import jax.numpy as jnp
import pytest

import lowprec as lp
from lowprec.throughput import Measured, measure


def test_a_row_says_what_ran_and_spans_its_quartiles() -> None:
    a = jnp.ones((16, 32))
    found = measure(
        lambda a, b: lp.gemm(a, b, "mxfp8"), a, a.T, path="emulated", calls=3, warm_up=1,
        options=lp.compiler_options(),
    )  # fmt: skip
    assert found.path == "emulated" and found.calls == 3
    assert 0 < found.low <= found.seconds <= found.high
    assert found.compile_seconds > 0 and found.temporary_bytes >= 0
    assert found.peak_bytes is None or found.peak_bytes > 0
    assert not any("throughput" in x.name for x in dataclasses.fields(Measured))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="`calls` = 0, `warm_up` = 2; use 1 or more"):
        measure(jnp.negative, jnp.ones(2), path="native", calls=0)
    with pytest.raises(ValueError, match="`path` = 'gpu'; use 'emulated' or 'native'"):
        # The wrong path is what is tested.
        measure(jnp.negative, jnp.ones(2), path="gpu")  # type: ignore[arg-type]
