"""The sums of an engine that aligns them, as they are before each rounding."""

import jax

from lowprec.engines.aligned import Aligned
from lowprec.engines.engine import Engine
from lowprec.engines.kernels import ALIGNING, aligned_sums
from lowprec.engines.operands import take_scales_apart, truncated
from lowprec.numerics import float32
from lowprec.numerics.format import Format


def aligns(engine: Engine) -> bool:
    """Whether an engine's sums are aligned and cut before they are rounded, so `trace` has them."""
    return engine.accumulation in ALIGNING


def trace(
    a: jax.Array,
    b: jax.Array,
    engine: Engine,
    formats: tuple[Format | None, Format | None],
    scales: tuple[jax.Array | None, jax.Array | None] = (None, None),
) -> Aligned:
    """Every sum that `lowprec.engines.matmul.product` makes of two matrices, in order.

    Args:
      a: (M, K) float32, of values that the first format holds, finite.
      b: (K, N), the same.
      engine: one that `aligns`, without stochastic rounding.
      formats: the input formats of both.
      scales: codes of the engine's one scale format, (M, blocks) and (blocks, N), both or none.

    Returns:
      `Aligned` with leaves (sums, M, N). The sums are those of instructions, or of the parts that
      instructions deal their products to. A sum starts from what the one before ended in, or from
      zero, and the last ends in the product; an accumulator that joins in a separate operation
      starts none of them.
    """
    apart = None
    if scales[0] is not None and scales[1] is not None:
        (fmt,) = engine.scale_formats
        apart = take_scales_apart(scales[0].T, fmt), take_scales_apart(scales[1], fmt)
    bits = float32.to_bits(a.T), float32.to_bits(b)
    if engine.truncate_operands:
        left, right = (
            x if fmt is None else truncated(x, fmt) for x, fmt in zip(bits, formats, strict=True)
        )
        bits = left, right
    return aligned_sums(engine, formats, *bits, apart)
