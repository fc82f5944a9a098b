"""What the tests share: comparison of bits, formats to try, and strategies over bit patterns."""

import functools
import importlib.util
import math
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from lowprec.numerics import Format, get_format, list_formats, oracle
from lowprec.numerics.codec import decode_bits, encode_bits

UInts = NDArray[Any]
"""Bit patterns, uint32 unless said otherwise."""

Array = jax.Array | np.ndarray

STRICT: dict[str, bool | str | int] = {
    "xla_disable_hlo_passes": "algsimp",
    "xla_allow_excess_precision": False,
}
"""Compiler options under which XLA rewrites no division and keeps every rounding."""

STRICT_SLOW: dict[str, bool | str | int] = {**STRICT, "xla_backend_optimization_level": 0}
"""As `STRICT`, and without products fused into sums."""

USER_FORMATS: tuple[Format, ...] = (
    Format(name="five_bits_bias_9", exponent_bits=2, mantissa_bits=2, bias=9),
    Format(
        name="unsigned_without_nan",
        signed=False,
        exponent_bits=3,
        mantissa_bits=4,
        bias=5,
        zero="unsigned",
    ),
    Format(
        name="unsigned_e4m3",
        signed=False,
        exponent_bits=4,
        mantissa_bits=3,
        bias=7,
        nan="all_ones",
        zero="unsigned",
    ),
    Format(
        name="e4m3fnuz",
        exponent_bits=4,
        mantissa_bits=3,
        bias=8,
        nan="negative_zero",
        zero="unsigned",
    ),
    Format(name="powers_with_zero", exponent_bits=3, mantissa_bits=0, bias=3),
    Format(
        name="powers_all_ones",
        exponent_bits=4,
        mantissa_bits=0,
        bias=7,
        nan="all_ones",
    ),
    Format(name="fixed_point", exponent_bits=0, mantissa_bits=6, bias=-1),
    Format(name="uint4", signed=False, exponent_bits=0, mantissa_bits=4, bias=-3, zero="unsigned"),
    Format(name="below_float32_normal", exponent_bits=3, mantissa_bits=3, bias=147),
    Format(name="bias_of_float32", exponent_bits=3, mantissa_bits=3, bias=127, nan="all_ones"),
    Format(name="up_to_float32_max", exponent_bits=3, mantissa_bits=2, bias=-120),
    Format(
        name="int4",
        exponent_bits=0,
        mantissa_bits=3,
        bias=-2,
        zero="unsigned",
        encoding="twos_complement",
    ),
    Format(
        name="one_mantissa_bit_ieee",
        exponent_bits=3,
        mantissa_bits=1,
        bias=3,
        infinity="ieee",
        nan="ieee",
    ),
    Format(
        name="signed_without_zero",
        exponent_bits=3,
        mantissa_bits=2,
        bias=4,
        zero="none",
        subnormals=False,
    ),
    Format(
        name="unsigned_without_zero",
        signed=False,
        exponent_bits=4,
        mantissa_bits=2,
        bias=20,
        zero="none",
        subnormals=False,
    ),
    Format(
        name="nineteen_bits",
        exponent_bits=8,
        mantissa_bits=10,
        bias=127,
        infinity="ieee",
        nan="ieee",
    ),
    Format(name="uneven_table", table=(-2.5, -0.3125, 0.0, 0.75, 1.0, 1.5, 11.0, 100.0)),
    Format(name="table_with_both_zeros", table=(0.0, 1.0, 2.0, 4.0, -0.0, -1.0, -2.0, -5.0)),
    Format(
        name="table_that_overflows",
        table=(0.0, 3.0, 5.0, 8.0, math.inf, math.nan, -1.25, -math.inf),
        overflow_value=13.0,
    ),
    Format(name="table_without_zero", table=(-3.0, -0.5, 1.0, 2.25)),
    Format(name="unsigned_table", table=(0.5, 2.0, 1.0, math.nan), overflow_value=4.0),
    *map(get_format, ("binary8p4", "binary8p3ue", "binary6p2sf", "binary5p1ue", "binary4p4ue")),
    *map(get_format, ("binary15p2sf", "binary14p1uf", "e8m13", "e11m4")),
)
"""Formats that no catalogue has, with parameters that a bit trick may have forgotten."""

FORMATS: tuple[Format, ...] = (*map(get_format, list_formats()), *USER_FORMATS)
FORMAT_NAMES = [fmt.name for fmt in FORMATS]
WITHIN_FLOAT32 = tuple(
    fmt for fmt in FORMATS if fmt.bits > 24 or fmt.exponent_bits in (None, *range(9))
)
"""Without those whose values float32 does not hold."""
SMALL_FORMATS = tuple(fmt for fmt in FORMATS if fmt.bits <= 8)

ONE_OF_A_KIND = (
    "binary8p4se",
    "float4_e2m1fn",
    "float8_e4m3fn",
    "float8_e8m0fnu",
    "int8",
    "one_mantissa_bit_ieee",
    "table_that_overflows",
)
"""Formats that between them have most branches of the codec."""


def each_of(formats: Collection[Format]) -> pytest.MarkDecorator:
    """A test for each of some formats, slow but for one of a kind."""
    slow = [[] if fmt.name in ONE_OF_A_KIND else [pytest.mark.slow] for fmt in formats]
    return pytest.mark.parametrize(
        "fmt",
        [
            pytest.param(fmt, marks=marks, id=fmt.name)
            for fmt, marks in zip(formats, slow, strict=True)
        ],
    )


SPECIALS = (0, 1, 2, 0x3FFFFF, 0x400000, 0x400001, 0x7FFFFF, 0x800000, 0x3F800000, 0x7F7FFFFF)
NOT_FINITE = (0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF)
SIGN = 0x80000000
SIZE = 512
"""How many numbers one example has, so that every operation is compiled for one shape."""


def floats(bits: ArrayLike) -> NDArray[np.float32]:
    """float32 values of bit patterns."""
    return np.asarray(bits, np.uint32).view(np.float32)


def float_list(bits: ArrayLike) -> list[float]:
    """The exact Python floats of float32 bit patterns."""
    return [float(x) for x in floats(bits)]


def as_bits(x: Array) -> np.ndarray:
    """The bits of an array as unsigned integers of the same width."""
    array = np.asarray(x)
    return array.view(np.dtype(f"u{array.dtype.itemsize}"))


def assert_bits_equal(
    got: Array, want: Array, *, fmt: Format | None = None, inputs: Array | None = None
) -> None:
    """Fails at the first differing element: its index, both codes, both values and its input."""
    left, right = as_bits(got), as_bits(want)
    assert left.shape == right.shape, f"shapes {left.shape} and {right.shape}"
    assert left.dtype == right.dtype, f"widths {left.dtype} and {right.dtype}"
    wrong = np.argwhere(left != right)
    if not len(wrong):
        return
    index = tuple(int(i) for i in wrong[0])
    values = [_value(x, index, fmt) for x in (got, want)]
    message = (
        f"{len(wrong)} of {left.size} differ, the first at {index}: "
        f"got {int(left[index]):#x} ({values[0]}), want {int(right[index]):#x} ({values[1]})"
    )
    if inputs is not None:
        at = np.asarray(inputs)[index]
        message += f", for {at!r} = {int(as_bits(at)):#x}"
    raise AssertionError(message)


def _value(x: Array, index: tuple[int, ...], fmt: Format | None) -> Any:
    element = np.asarray(x)[index]
    return element if fmt is None else fmt.value(int(as_bits(element)))


def encoded(
    bits: ArrayLike,
    fmt: Format,
    rounding: str = "nearest_even",
    overflow: str = "nonsaturating",
    words: UInts | None = None,
    word_bits: int = 32,
) -> np.ndarray:
    """Codes of float32 bit patterns, operation by operation, in parts of one shape.

    To compile every format, mode, policy and shape as a whole would take minutes; that `encode`,
    which does, gives the same is shown in test_transformations.py.
    """
    patterns = np.asarray(bits, np.uint32)
    drawn = np.zeros_like(patterns) if words is None else words & np.uint32((1 << word_bits) - 1)
    parts = [
        encode_bits(x, fmt, rounding, overflow, None if words is None else word, word_bits)
        for x, word in zip(_parts(patterns), _parts(drawn), strict=True)
    ]
    return np.concatenate(parts)[: patterns.size].reshape(patterns.shape)


def _parts(x: UInts) -> list[jax.Array]:
    padded = np.pad(x.ravel(), (0, -x.size % SIZE))
    return [jnp.asarray(part) for part in padded.reshape(-1, SIZE)]


def decoded(codes: np.ndarray, fmt: Format) -> np.ndarray:
    """float32 bit patterns of codes, by the same way."""
    parts = [decode_bits(x, fmt) for x in _parts(codes.astype(np.uint32))]
    return np.concatenate(parts)[: codes.size].reshape(codes.shape)


def exactly_encoded(
    bits: ArrayLike,
    fmt: Format,
    rounding: Any = "nearest_even",
    overflow: Any = "nonsaturating",
    words: UInts | None = None,
    word_bits: int = 32,
) -> np.ndarray:
    """The same by the oracle."""
    values = float_list(bits)
    drawn = [0] * len(values) if words is None else words.tolist()
    codes = [
        oracle.encode(x, fmt, rounding=rounding, overflow=overflow, word=word, word_bits=word_bits)
        for x, word in zip(values, drawn, strict=True)
    ]
    return np.array(codes, fmt.code_dtype)


def code_sample(fmt: Format) -> list[int]:
    """All codes, or those around every power of two where there are many."""
    if fmt.bits <= 8 or fmt.table is not None:
        return list(range(1 << fmt.bits))
    binades = 1 << fmt.mantissa_bits
    starts = range(0, 1 << fmt.bits, max(binades, (1 << fmt.bits) >> 12))
    near = {(start + step) % (1 << fmt.bits) for start in starts for step in (-2, -1, 0, 1, 2)}
    return sorted(near)


@functools.cache
def edges(fmt: Format) -> UInts:
    """Float32 patterns where a format's codes change: values and midpoints, each +-1 ulp.

    With the powers of two around them +-1 ulp, the specials, and the step past the largest value.
    """
    exact = [oracle.decode(code, fmt) for code in code_sample(fmt)]
    values = sorted({abs(float(x)) for x in exact if x.kind == "finite"} - {math.inf})
    top = values[-1]
    step = top if fmt.mantissa_bits == 0 or len(values) == 1 else top - values[-2]
    beyond = fmt.overflow_value or min(top + step, np.finfo(np.float64).max)
    ladder = np.array([*values, beyond])
    points = np.concatenate([ladder, ladder[1:] / 2 + ladder[:-1] / 2, ladder[:1] / 2])
    with np.errstate(over="ignore"):
        near = points.astype(np.float32).view(np.uint32).astype(np.int64)
    low, high = within(fmt)
    powers = np.concatenate([np.arange(low >> 23, (high >> 23) + 1), np.arange(0, 256, 16)]) << 23
    centres = np.concatenate([near, powers, 1 << np.arange(23)])
    magnitudes = np.concatenate([centres - 1, centres, centres + 1, SPECIALS, NOT_FINITE])
    magnitudes = np.unique(np.clip(magnitudes, 0, SIGN - 1))
    return np.concatenate([magnitudes, magnitudes | SIGN]).astype(np.uint32)


def sized(patterns: UInts, size: int) -> UInts:
    """Patterns repeated, or thinned out evenly, to a size."""
    if len(patterns) <= size:
        return np.resize(patterns, size)
    return patterns[np.linspace(0, len(patterns) - 1, size).astype(np.int64)]


def within(fmt: Format) -> tuple[int, int]:
    """The float32 patterns from far below the smallest value of a format to past its largest."""
    positive = (
        [x for x in fmt.table if 0 < x < math.inf] if fmt.table else [fmt.magnitude(1), fmt.max]
    )
    limits = (np.float32(min(x, float(np.finfo(np.float32).max))) for x in positive)
    patterns = [int(x.view(np.uint32)) for x in limits]
    low, high = min(patterns), max(patterns)
    return max(low - (3 << 23), 0), min(high + (2 << 23), SIGN - 1)


def bit_patterns(fmt: Format) -> st.SearchStrategy[int]:
    """Any float32 pattern, one within the format's range, or an edge of the format."""
    inside = st.integers(*within(fmt))
    return st.one_of(
        st.integers(0, 2**32 - 1),
        inside,
        inside.map(lambda bits: bits | SIGN),
        st.sampled_from(edges(fmt).tolist()),
    )


def bit_arrays(fmt: Format) -> st.SearchStrategy[UInts]:
    """`SIZE` patterns: some drawn one by one, the others of the same kinds from a drawn seed."""
    drawn = st.lists(bit_patterns(fmt), min_size=32, max_size=32)
    return st.builds(functools.partial(_filled, fmt), drawn, st.integers(0, 2**32 - 1))


def _filled(fmt: Format, drawn: list[int], seed: int) -> UInts:
    rng = np.random.default_rng(seed)
    third = (SIZE - len(drawn)) // 3
    inside = rng.integers(*within(fmt), third, np.uint32, endpoint=True)
    inside |= rng.integers(0, 2, third, np.uint32) << 31
    parts = [np.array(drawn, np.uint32), inside, rng.choice(edges(fmt), third)]
    return np.concatenate([*parts, random_words(SIZE - len(drawn) - 2 * third, seed)])


def word_arrays(size: int = SIZE) -> st.SearchStrategy[UInts]:
    """Random words, drawn from a seed: no word is more telling than another."""
    return st.integers(0, 2**32 - 1).map(lambda seed: random_words(size, seed))


def random_words(size: int, seed: int = 0) -> UInts:
    """Uniform words that repeat."""
    return np.random.default_rng(seed).integers(0, 2**32, size, np.uint32)


def load_experiment(name: str) -> ModuleType:
    """A script of experiments/, which is no package, as a module."""
    path = Path(__file__).parents[1] / "experiments" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def graded(
    cases: Sequence[Any],
    *,
    fast: Collection[Any] = (),
    every: int = 3,
    name: Callable[[Any], str] | None = None,
) -> list[Any]:
    """Cases as parameters: the fast ones, and of the others every so many slow, the rest thorough.

    Relatives stand together in the order of names, so that each has a neighbour among the slow. A
    tuple is a parameter for each of its members, unless cases are given names.
    """
    out, rank = [], 0
    for case in cases:
        marks = []
        if case not in fast:
            marks = [pytest.mark.slow, *[pytest.mark.thorough] * (rank % every != 0)]
            rank += 1
        if name is not None:
            out.append(pytest.param(case, marks=marks, id=name(case)))
        else:
            values = case if isinstance(case, tuple) else (case,)
            out.append(pytest.param(*values, marks=marks))
    return out
