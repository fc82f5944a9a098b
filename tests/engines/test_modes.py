"""Every sort of engine: the same bits eager, compiled, mapped, in a scan, strict, and in pieces."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.engines import get_engine, matmul
from lowprec.numerics import compiler_options
from lowprec.scaling import cast
from tests.helpers import STRICT, STRICT_SLOW, assert_bits_equal

pytestmark = pytest.mark.slow

ENGINES = (
    "hopper.wgmma.fp8.fp32",
    "hopper.mma.fp8.fp16",
    "hopper.wgmma.tf32.fp32",
    "blackwell.tcgen05.mxf8f6f4.fp32",
    "blackwell.tcgen05.nvf4.fp32",
    "cdna1.mfma.fp16.fp32",
    "cdna2.mfma.bf16.fp32",
    "cdna3.mfma.fp8.fp32",
    "kulisch",
    "compensated",
    "fp32_fma",
    "pairwise.float32",
    "chunked.16.e6m9.float32",
    "sequential.float16.toward_zero",
)
M, K, N = 5, 150, 3


def given(engine: str, m: int = M, n: int = N) -> tuple[jax.Array, jax.Array, jax.Array, Any]:
    """Operands that the engine holds, c, and the arguments that it needs beside them."""
    spec, rng = get_engine(engine), np.random.default_rng(7)
    a, b, c = (rng.normal(size=shape) for shape in ((m, K), (K, n), (m, n)))
    a[0, :5] = [0.0, -0.0, 2.0**-9, 1.5, -448.0]
    options: dict[str, Any] = {}
    left, right = (jnp.asarray(x, jnp.float32) for x in (a, b))
    if spec.inputs:
        fmt = spec.inputs[0]
        left, right = cast(left, fmt), cast(right, fmt)
        options |= {"a_format": fmt, "b_format": fmt}
    if spec.scale_block is not None:
        blocks = -(-K // spec.scale_block)
        codes = [rng.integers(100, 126, s).astype(np.uint8) for s in ((m, blocks), (blocks, n))]
        options |= {"a_scale": codes[0], "b_scale": codes[1]}
    return left, right, jnp.asarray(c, jnp.float32), options


@pytest.mark.parametrize("engine", ENGINES)
def test_one_set_of_bits(engine: str) -> None:
    a, b, c, options = given(engine)
    one = lambda a, b, c: matmul(a, b, c, engine=engine, **options)
    want = one(a, b, c)
    assert len(np.unique(np.asarray(want))) > M * N // 2
    for how in (None, compiler_options(), STRICT, STRICT_SLOW):
        assert_bits_equal(jax.jit(one, compiler_options=how)(a, b, c), want)
    batch = [jnp.stack([x, -x]) for x in (a, c)]
    mapped = jax.vmap(lambda a, c: one(a, b, c))(*batch)
    assert_bits_equal(mapped[0], want)
    steps = jax.lax.scan(lambda _, x: (None, one(x[0], b, x[1])), None, tuple(batch))[1]
    assert_bits_equal(steps, mapped)


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_and_columns_stand_alone(engine: str) -> None:
    a, b, c, options = given(engine, 260, 5)
    whole = np.asarray(matmul(a, b, c, engine=engine, **options))
    rows, columns = np.array([259, 0, 130]), np.array([4, 1])
    if "a_scale" in options:
        options |= {
            "a_scale": options["a_scale"][rows],
            "b_scale": options["b_scale"][:, columns],
        }
    part = matmul(a[rows], b[:, columns], c[rows][:, columns], engine=engine, **options)
    assert_bits_equal(part, whole[rows][:, columns])
