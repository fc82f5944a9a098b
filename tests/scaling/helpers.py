"""Blocks to try, tensors for them as bit patterns, and the comparison with the exact oracle."""

import dataclasses
from collections.abc import Collection, Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from lowprec.numerics import get_format
from lowprec.scaling import Block, QTensor, get_block, list_blocks, oracle, quantize
from tests.helpers import (
    NOT_FINITE,
    SIGN,
    SPECIALS,
    UInts,
    as_bits,
    assert_bits_equal,
    floats,
    random_words,
)

MX_ELEMENTS = ("mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp4")


def changed(name: str, **changes: Any) -> Block:
    """A catalogued block with other parameters, named after them."""
    label = "_".join([name, *(f"{key}={value}" for key, value in changes.items())])
    return dataclasses.replace(get_block(name), name=label, **changes)


USER_BLOCKS: tuple[Block, ...] = (
    changed("fp8_128x128", tile=(2, 5)),
    changed("mxfp4", tile=(2, 8), scale_rule="even"),
    changed("mxfp8_e5m2", scale_rule="ceil", tile=(1, 7)),
    changed("mxfp8_e4m3", overflow="nonsaturating"),
    changed("nvfp4", tile=(2, 4)),
    changed("fp8_tensor", tile=(1, 8), unit_scale_amax=0.5, min_amax=0.25),
    dataclasses.replace(get_block("fp8_channel"), name="int8_low", element=get_format("int8")),
)
"""Blocks that no catalogue has, with choices that the catalogued ones do not combine."""

SCALED: tuple[str, ...] = tuple(
    name
    for name in list_blocks()
    if (block := get_block(name)).coding == "scaled"
    and block.transform is None
    and block.eden is None
)
"""The catalogue's blocks whose values are element * scale."""

FAST = (
    "fp8_1x128",
    "fp8_1x128_deepgemm_pow2",
    "fp8_1x128_reciprocal",
    "fp8_1x128_te",
    "fp8_channel",
    "fp8_tensor",
    "fp8_128x128_deepgemm",
    "int4_g128",
    "mxfp4",
    "mxfp4_nearest_log2",
    "mxfp4_oas",
    "mxfp4_three_quarter",
    "mxfp6_e3m2_even",
    "mxfp8_e4m3_rceil",
    "mxint8_ceil",
    "nf4_g64",
    "nvfp4",
    "nvfp4_modelopt",
    "nvfp4_row",
    "nvfp4_stochastic_round_up",
    "nvfp4_torchao",
    "nvfp4_torchao_single_level",
)
"""One block for each way to scale: the fast tests' share of the catalogue."""

BLOCKS: tuple[Block, ...] = (*map(get_block, SCALED), *USER_BLOCKS)
BLOCK_NAMES = [block.name for block in BLOCKS]
SLOW = [name for name in SCALED if name not in FAST]


def slow_if(names: Iterable[Any], slow: Collection[Any]) -> list[Any]:
    """Names or numbers as parameters, those that take long to compile marked slow."""
    return [pytest.param(x, marks=[pytest.mark.slow] * (x in slow)) for x in names]


def narrowed(block: Block) -> Block:
    """The block with tiles of two rows and eight columns at most, for the oracle's patience."""
    rows, columns = (
        size if isinstance(size, str) else min(size, most)
        for size, most in zip(block.tile, (2, 8), strict=True)
    )
    return dataclasses.replace(block, tile=(rows, columns))


def width(block: Block) -> int:
    """Columns of a tensor with a whole and a ragged tile, or of one tile that spans it."""
    columns = block.tile[1]
    return 9 if columns == "all" else columns + 3


def quantized_bits(q: QTensor) -> oracle.Quantized:
    """A QTensor in the oracle's terms."""
    scales = np.asarray(q.scales)
    tensor = None if q.tensor_scale is None else as_bits(q.tensor_scale)
    tensor = int(tensor.item()) if tensor is not None and tensor.size == 1 else tensor
    return oracle.Quantized(
        codes=np.asarray(q.codes),
        scales=as_bits(scales),
        tensor_scale=tensor,
        values=as_bits(q.dequantize()),
    )


def assert_same(got: oracle.Quantized, want: oracle.Quantized, block: Block, bits: UInts) -> None:
    """Scales first: where they differ, codes differ too and say less."""
    levels = [np.ravel(x) for x in (got.tensor_scale, want.tensor_scale) if x is not None]
    assert len(levels) in (0, 2)
    if levels:
        np.testing.assert_array_equal(levels[0], levels[1])
    assert_bits_equal(got.scales, want.scales)
    assert_bits_equal(got.codes, want.codes, fmt=block.element, inputs=floats(bits))
    assert_bits_equal(got.values.view(np.float32), want.values.view(np.float32), inputs=bits)


def needed_options(block: Block, shape: tuple[int, ...]) -> dict[str, Any]:
    """The arguments that `quantize` cannot do without for this block."""
    options: dict[str, Any] = {}
    if block.rounding == "stochastic":
        options["random_bits"] = random_words(int(np.prod(shape)), 5).reshape(shape)
    if block.amax_source == "given":
        options["amax"] = 3.0
    return options


def assert_exact(bits: UInts, block: Block, *, axis: int = -1, **options: Any) -> None:
    """Fails where `quantize` and `dequantize` differ from the oracle in any bit."""
    options = {**needed_options(block, bits.shape), **options}
    exact = dict(options)
    if "random_bits" in exact:
        exact["words"] = exact.pop("random_bits")
    got = quantize(jnp.asarray(floats(bits)), block, axis=axis, **options)
    want = oracle.quantize(bits, block, axis=axis, **exact)
    assert got.axis == axis and got.block == block
    assert_same(quantized_bits(got), want, block, bits)


@st.composite
def tensors(draw: st.DrawFn, shape: tuple[int, ...], mantissa_bits: int) -> UInts:
    """Patterns of all kinds: any at all, or binades below a largest one, with ties and specials."""
    size = int(np.prod(shape))
    raw = np.array(
        draw(st.lists(st.integers(0, 2**32 - 1), min_size=size, max_size=size)), np.uint32
    )
    kind = draw(st.sampled_from(("any", "near", "ties", "ties", "spread", "tiny")))
    top, deep = draw(st.integers(1, 254)), draw(st.sampled_from((2, 6, 16)))
    bits = raw if kind == "any" else _below(raw, 1 if kind == "tiny" else top, deep)
    if kind == "ties":
        # One bit more than the element keeps: every other value lies halfway.
        bits &= np.uint32(0xFFFFFFFF << (22 - mantissa_bits) & 0xFFFFFFFF)
    if kind == "spread":
        bits = np.where(raw % 7 == 0, bits - np.minimum(bits & 0x3F800000, 40 << 23), bits)
    specials = draw(st.lists(st.sampled_from((*SPECIALS, SIGN, *NOT_FINITE)), max_size=3))
    if kind != "any" and draw(st.booleans()):
        bits[: len(specials)] = specials
    return draw(st.sampled_from((bits, np.roll(bits, 5)))).astype(np.uint32).reshape(shape)


def _below(raw: UInts, top: int, deep: int) -> UInts:
    """The same signs and mantissas in the binades from `top` down."""
    exponent = np.maximum(top - (raw >> 23 & 0xFF).astype(np.int64) % deep, 0).astype(np.uint32)
    return (raw & np.uint32(0x807FFFFF)) | exponent << 23
