"""Test vectors of an engine in hexadecimal, one dot product a line, results by the exact oracle.

After TestFloat's manner, for people who build or check hardware: `c_reference` writes a program
that reads these files.
"""

import itertools
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lowprec.engines.directed import cases_of, draw_operands
from lowprec.engines.drawing import Layout, Operands
from lowprec.engines.engine import Engine
from lowprec.engines.oracle import dot
from lowprec.numerics.format import Format, get_format
from lowprec.numerics.rounding import is_stochastic

_FLOAT32 = get_format("float32")
_PLAIN_K = 16
"""The length of dot products of an engine that has no instruction."""


class Vector(NamedTuple):
    """One dot product: codes of each column, and the code that the engine returns."""

    operands: Operands
    result: int


def operand_formats(engine: Engine) -> tuple[Format, ...]:
    """The formats that operands are written in: float32 where the engine cuts or takes any."""
    return (_FLOAT32,) if engine.truncate_operands or not engine.inputs else engine.inputs


def checked_name(engine: Engine) -> str:
    """The engine's name, which is a part of file names and of C comments.

    Raises:
      ValueError: it has other signs than letters, digits, dot, hyphen and underscore.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", engine.name):
        raise ValueError(
            f"engine {engine.name!r}: files are named after it, so that its name may hold letters, "
            f"digits, '.', '-' and '_' only"
        )
    return engine.name


def layouts(engine: Engine, k: int | None = None) -> list[Layout]:
    """What there is to test of an engine: every pair of operand formats with every scale format.

    Args:
      engine: any whose bits are defined.
      k: the length of a dot product; None for one instruction.

    Raises:
      ValueError: the engine's bits are not defined, or depend on random words.
    """
    if engine.accumulation in ("native", "unknown") or is_stochastic(engine.output_rounding):
        why = (
            f"rounds {engine.output_rounding}, by random words"
            if is_stochastic(engine.output_rounding)
            else f"has no defined bits (accumulation = {engine.accumulation!r})"
        )
        raise ValueError(f"no vectors of engine {engine.name!r}: it {why}")
    if k is not None and not 1 <= k <= 32768:
        raise ValueError(f"`k` = {k}; a dot product of 1 to 32768 numbers")
    formats = operand_formats(engine)
    length = k or engine.instruction_length or _PLAIN_K
    scales: tuple[Format | None, ...] = engine.scale_formats or (None,)
    return [
        Layout(engine=engine, a=a, b=b, scale=scale, k=length)
        for a, b, scale in itertools.product(formats, formats, scales)
    ]


def result(layout: Layout, operands: Operands) -> int:
    """The code that the engine returns, by the oracle; a float16 one of 16 bits."""
    half = layout.engine.output.name == "float16"
    c = _widened(operands.c) if half else operands.c
    bits = dot(
        layout.engine,
        operands.a,
        operands.b,
        c,
        a_format=layout.a,
        b_format=layout.b,
        a_scales=operands.a_scales,
        b_scales=operands.b_scales,
        scale_format=layout.scale,
    )
    return (
        int(np.uint32(bits).view(np.float32).astype(np.float16).view(np.uint16)) if half else bits
    )


def directed_vectors(layout: Layout, count: int, seed: int = 0) -> Iterator[tuple[str, Vector]]:
    """Vectors of every case in turn, `count` in all, each with its case's name.

    The same arguments give the same vectors.

    Example:
      >>> from lowprec.engines import get_engine
      >>> first = next(directed_vectors(layouts(get_engine("volta.mma.fp16.fp32"))[0], 20))
      >>> first[0], len(first[1].operands.a)
      ('normal', 4)
    """
    cases = cases_of(layout)
    for place, case in enumerate(cases):
        rng = random.Random(f"{seed} {case}")
        for _ in range(place, count, len(cases)):
            operands = draw_operands(layout, case, rng)
            yield case, Vector(operands, result(layout, operands))


def file_name(layout: Layout) -> str:
    """The name of a layout's file."""
    formats = [fmt.name for fmt in (layout.a, layout.b, layout.scale) if fmt is not None]
    return ".".join([checked_name(layout.engine), *formats, f"k{layout.k}", "hex"])


def vector_lines(layout: Layout, count: int, seed: int = 0) -> Iterator[str]:
    """A file's lines: a header, then one dot product a line.

    A line has, separated by blanks, the codes of a, those of b, a's scales and b's where there are
    any, c and the result.
    """
    engine = layout.engine
    yield f"# engine = {engine.name}"
    yield f"# a_format = {layout.a.name}"
    yield f"# b_format = {layout.b.name}"
    if layout.scale is not None:
        yield f"# scale_format = {layout.scale.name}"
        yield f"# scale_block = {engine.scale_block}"
    if engine.truncate_operands:
        yield f"# operands are cut to {engine.inputs[0].name}"
    yield f"# output = {engine.output.name}"
    yield f"# k = {layout.k}"
    yield f"# seed = {seed}"
    scales = " a_scale[] b_scale[]" if layout.scale is not None else ""
    yield f"# columns: a[0] ... a[{layout.k - 1}] b[]{scales} c result"
    current = ""
    for case, vector in directed_vectors(layout, count, seed):
        if case != current:
            current = case
            yield f"# case: {case}"
        yield _line(layout, vector)


def write_vectors(
    engine: Engine, out: Path, *, count: int = 1000, seed: int = 0, k: int | None = None
) -> list[Path]:
    """Writes one file of vectors for each pair of operand formats (and scale format).

    Args:
      engine: any whose bits are defined.
      out: an existing folder.
      count: how many dot products a file has.
      seed: another one draws others.
      k: the length of a dot product; None for one instruction.

    Returns:
      The files' paths.

    Raises:
      ValueError: `layouts` says when; `count` below 1.
    """
    if count < 1:
        raise ValueError(f"`count` = {count}; at least 1")
    paths = []
    for layout in layouts(engine, k):
        path = out / file_name(layout)
        path.write_text("\n".join(vector_lines(layout, count, seed)) + "\n")
        paths.append(path)
    return paths


def _line(layout: Layout, vector: Vector) -> str:
    output = layout.engine.output
    one = vector.operands
    columns = [(one.a, layout.a), (one.b, layout.b)]
    if layout.scale is not None:
        columns += [(one.a_scales, layout.scale), (one.b_scales, layout.scale)]
    columns += [([one.c, vector.result], output)]
    return " ".join(f"{code:0{-(-fmt.bits // 4)}x}" for codes, fmt in columns for code in codes)


def _widened(code: int) -> int:
    """The float32 bits of a float16 code."""
    return int(np.uint16(code).view(np.float16).astype(np.float32).view(np.uint32))


def _narrowed(bits: int) -> int:
    """The float16 code of float32 bits that float16 holds; a NaN keeps its payload."""
    return int(np.uint32(bits).view(np.float32).astype(np.float16).view(np.uint16))
