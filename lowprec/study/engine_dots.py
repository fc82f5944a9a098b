"""Single dot products by `matmul`, from codes to codes, as evidence is compared."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowprec.engines import Engine, matmul
from lowprec.engines.drawing import Layout, Operands
from lowprec.numerics.format import Format, get_format
from lowprec.numerics.oracle import decode


def nameless(engine: Engine) -> Engine:
    """What is compiled: engines that differ in name and evidence alone are one."""
    return dataclasses.replace(engine, name="nameless", evidence=None)


_MATMUL = jax.jit(matmul, static_argnames=("engine", "a_format", "b_format"))


def product_codes(
    engine: Engine,
    formats: tuple[Format, Format],
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray,
    scales: tuple[np.ndarray, np.ndarray] | None = None,
    scale_format: Format | None = None,
) -> np.ndarray:
    """a @ b + c under `jit`: codes in, codes of the engine's output out.

    Args:
      engine: an engine.
      formats: of a and b as their codes are written; float32 where the engine cuts operands.
      a: (..., M, K) codes.
      b: (..., K, N) codes.
      c: (..., M, N) float32 bits.
      scales: codes for a and b where the engine has block scales.
      scale_format: their format.
    """
    found = nameless(engine)
    more: dict[str, Any] = {}
    if scales is not None and scale_format is not None:
        found = dataclasses.replace(found, scale_formats=(scale_format,))
        more = {"a_scale": jnp.asarray(scales[0]), "b_scale": jnp.asarray(scales[1])}
    if len(engine.inputs) > 1:
        more |= {"a_format": formats[0], "b_format": formats[1]}
    left, right = (_values(fmt)[x] if fmt.bits <= 16 else x.view(np.float32)
                   for fmt, x in zip(formats, (a, b), strict=True))  # fmt: skip
    out = np.asarray(_MATMUL(left, right, c.view(np.float32), engine=found, **more))
    return out.view(np.uint16 if out.dtype == np.float16 else np.uint32)


def dot_codes(layout: Layout, dots: Sequence[Operands]) -> np.ndarray:
    """Dot products of one layout, each a product of a row and a column."""
    a, b = (np.array(x) for x in zip(*((dot.a, dot.b) for dot in dots), strict=True))
    c = np.array([dot.c for dot in dots])
    if layout.engine.output.name == "float16":
        c = c.astype(np.uint16).view(np.float16).astype(np.float32).view(np.uint32)
    scales = None
    if layout.scale is not None:
        alphas, betas = (
            np.array(x, np.uint8)
            for x in zip(*((dot.a_scales, dot.b_scales) for dot in dots), strict=True)
        )
        scales = alphas[:, None], betas[:, :, None]
    return product_codes(
        layout.engine,
        (layout.a, layout.b),
        a.astype(layout.a.code_dtype)[:, None],
        b.astype(layout.b.code_dtype)[:, :, None],
        c.astype(np.uint32)[:, None, None],
        scales,
        layout.scale,
    ).ravel()


@functools.cache
def _values(fmt: Format) -> np.ndarray:
    """The float32 values by code, by the oracle's reading of them."""
    return np.array([float(decode(code, fmt)) for code in range(1 << fmt.bits)], np.float32)


def same_codes(got: np.ndarray, want: np.ndarray, output: Format) -> np.ndarray:
    """Where codes of a result are equal; a NaN equals any NaN, and a zero either zero."""
    floats = np.float16 if output == get_format("float16") else np.float32
    x, y = got.view(floats), want.view(floats)
    return (got == want) | (np.isnan(x) & np.isnan(y)) | ((x == 0) & (y == 0))
