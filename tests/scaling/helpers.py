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
from tests.helpers import NOT_FINITE, SIGN, SPECIALS, UInts, as_bits, assert_bits_equal, floats

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
    dataclasses.replace(get_block("fp8_channel"), name="int8_channel", element=get_format("int8")),
)
"""Blocks that no catalogue has, with choices that the catalogued ones do not combine."""

BLOCKS: tuple[Block, ...] = (*map(get_block, list_blocks()), *USER_BLOCKS)
BLOCK_NAMES = [block.name for block in BLOCKS]


def slow_if(names: Iterable[str], slow: Collection[str]) -> list[Any]:
    """Names as parameters, those that take long to compile marked slow."""
    return [pytest.param(x, marks=[pytest.mark.slow] * (x in slow)) for x in names]


def width(block: Block) -> int:
    """Columns of a tensor with a whole and a ragged tile, or of one tile that spans it."""
    columns = block.tile[1]
    return 9 if columns == "all" else columns + 3


def quantized_bits(q: QTensor) -> oracle.Quantized:
    """A QTensor in the oracle's terms."""
    scales = np.asarray(q.scales)
    tensor = None if q.tensor_scale is None else int(as_bits(q.tensor_scale).item())
    return oracle.Quantized(
        codes=np.asarray(q.codes),
        scales=as_bits(scales),
        tensor_scale=tensor,
        values=as_bits(q.dequantize()),
    )


def assert_same(got: oracle.Quantized, want: oracle.Quantized, block: Block, bits: UInts) -> None:
    """Scales first: where they differ, codes differ too and say less."""
    assert got.tensor_scale == want.tensor_scale
    assert_bits_equal(got.scales, want.scales)
    assert_bits_equal(got.codes, want.codes, fmt=block.element, inputs=floats(bits))
    assert_bits_equal(got.values.view(np.float32), want.values.view(np.float32), inputs=bits)


def assert_exact(bits: UInts, block: Block, *, axis: int = -1, **options: Any) -> None:
    """Fails where `quantize` and `dequantize` differ from the oracle in any bit."""
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
