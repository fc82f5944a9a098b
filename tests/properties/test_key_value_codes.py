"""Law 18, of KV caches under block scalings: error, bytes, and what is on the grid stays.

Steps are computed anew, from what an entry's file says of its scales, and not with the library's
arithmetic: an error is at most half the distance of the two neighbours that a tile's numbers may
take, or what saturates.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lowprec import catalogue
from lowprec.kv import get_kv_method, list_kv_methods
from lowprec.kv.blocks import BlocksSpec
from lowprec.kv.codes import BlockCode, Code, PlainCode
from lowprec.kv.kivi import KiviSpec
from lowprec.scaling.block import Block
from tests.helpers import assert_bits_equal, graded

Array = NDArray[np.float64]
NAMES = [
    name
    for name in list_kv_methods()
    if catalogue.raw_value("kv", name, "family") in ("blocks", "kivi")
]
FAST = ("kivi_2bit", "mxfp4")
HEADS, TOKENS, DIM = 2, 128, 64
"""128 tokens are whole groups of every entry, and 64 is a power of 4: Hadamard's factor is 1/8."""

SEEDS = st.integers(0, 2**32 - 1)


def spec_of(name: str) -> BlocksSpec | KiviSpec:
    spec = get_kv_method(name).spec
    assert isinstance(spec, BlocksSpec | KiviSpec)
    return spec


def distinct_codes() -> dict[str, BlockCode]:
    """Each way of coding once, by the first entry and side that has it."""
    found: dict[BlockCode, str] = {}
    for name in sorted(NAMES, key=lambda name: (name not in FAST, name)):
        for side, layout in zip(("keys", "values"), spec_of(name).layouts(), strict=True):
            if isinstance(layout.code, BlockCode):
                found.setdefault(layout.code, f"{name} {side}")
    return {name: code for code, name in found.items()}


CODES = distinct_codes()


def over_codes(names: list[str]) -> Any:
    fast = [name for name in names if name.split()[0] in FAST]
    return pytest.mark.parametrize("name", graded(names, fast=fast, every=4))


def over_entries() -> Any:
    return pytest.mark.parametrize("name", graded(NAMES, fast=FAST, every=4))


def tile_size(code: BlockCode) -> int:
    size = code.block.tile[1]
    length = DIM if code.axis == "dim" else TOKENS
    return min(size, length) if isinstance(size, int) else length


def tiles_of(x: NDArray[Any], code: BlockCode) -> NDArray[Any]:
    """(1, heads, tokens, dim) as (tiles, numbers of a tile)."""
    along = x if code.axis == "dim" else x.swapaxes(-1, -2)
    return along.reshape(-1, tile_size(code))


def untiled(tiles: NDArray[Any], code: BlockCode) -> NDArray[Any]:
    """Undoes `tiles_of`."""
    if code.axis == "dim":
        return tiles.reshape(1, HEADS, TOKENS, DIM)
    return tiles.reshape(1, HEADS, DIM, TOKENS).swapaxes(-1, -2)


def numbers_of(block: Block, tile: Array, amax: float | None) -> list[Array]:
    """What a tile's numbers may become, ascending; one list for each scale that may be chosen."""
    if block.affine is not None:
        return [affine_numbers(block, tile)]
    values = block.element.values
    assert values is not None
    values = np.unique(values[np.isfinite(values)])
    largest, most = float(np.abs(tile).max()), values[-1]
    if block.tile == ("all", "all"):
        assert amax is not None
        return [values * (amax / most)]
    if block.scale_rule == "floor":
        # frexp's exponent is one more than that of the leading bit, for both.
        return [values * 2.0 ** (math.frexp(largest)[1] - math.frexp(most)[1])]
    tensor = 1.0
    if block.tensor_scale == "amax":
        assert amax is not None
        tensor = amax / (448 * most)
    wider = (1.0, 1.5) if block.scale_rule == "four_over_six" else (1.0,)
    scales = [largest / most / tensor * factor for factor in wider]
    if block.scale_format.bits == 8:
        scales = [float(np.float32(x).astype(ml_dtypes.float8_e4m3fn)) for x in scales]
    return [values * (scale * tensor) for scale in scales]


def affine_numbers(block: Block, tile: Array) -> Array:
    how, top = block.affine, 2**block.element.bits - 1
    assert how is not None
    low, high = float(tile.min()), float(tile.max())
    if how.with_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    low, high = low * how.clip_ratio, high * how.clip_ratio
    step = (high - low) / top
    if how.zero_point == "minimum":
        return low + step * np.arange(top + 1)
    zero = (
        min(max(round(-low / step), 0), top) if how.zero_point == "packed" else round(-low / step)
    )
    return (np.arange(top + 1) - zero) * step


def half_steps(numbers: Array, x: Array) -> Array:
    """Half the distance of the neighbours of each x, and beyond the ends that from the end."""
    above = np.clip(np.searchsorted(numbers, x), 1, len(numbers) - 1)
    half = (numbers[above] - numbers[above - 1]) / 2
    return np.maximum.reduce([half, x - numbers[-1], numbers[0] - x])


def roundings(block: Block, tile: Array) -> Array:
    """What arithmetic adds to the error of each number, to first order, at most.

    In units u of its type: x is rounded, a range and a step are (2), a difference and a quotient
    (2), then a product and a sum. From the minimum on that is 2 of |x| and 5 of x - low, else 7 of
    |x|.
    """
    how = block.affine
    unit = 2.0**-11 if how is not None and how.arithmetic == "float16" else 2.0**-24
    if how is not None and how.zero_point == "minimum":
        return unit * (2 * np.abs(tile) + 5 * (tile - tile.min()))
    return unit * 7 * np.abs(tile)


def bounds(code: BlockCode, x: Array) -> Array:
    """Of the errors of numbers that are turned already."""
    tiles = tiles_of(x, code)
    found = np.empty_like(tiles)
    for number, tile in enumerate(tiles):
        choices = numbers_of(code.block, tile, code.amax)
        found[number] = np.maximum.reduce([half_steps(each, tile) for each in choices])
        found[number] += 1.01 * roundings(code.block, tile)
    return untiled(found, code)


def drawn(seed: int) -> NDArray[np.float32]:
    """Channels and tokens of different sizes and means; every token has both signs."""
    rng = np.random.default_rng(seed)
    shape = (1, HEADS, TOKENS, DIM)
    x = rng.normal(size=shape) * np.exp(rng.normal(size=DIM)) + 0.5 * rng.normal(size=DIM)
    return (x * np.exp(0.3 * rng.normal(size=(*shape[:3], 1)))).astype(np.float32)


@functools.cache
def both_ways(name: str) -> Any:
    """What is coded, what that decodes to, still turned, and turned back."""
    code: Code = CODES[name]

    def run(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        values = code.decode(code.code(x, {}), DIM, {})
        return code.turn(x, {}), values, code.turn_back(values, {})

    return jax.jit(run)


@over_codes(list(CODES))
@settings(max_examples=3)
@given(seed=SEEDS)
def test_18_an_error_is_at_most_half_a_step(name: str, seed: int) -> None:
    code, x = CODES[name], drawn(seed)
    turned, values, read = (np.asarray(each, np.float64) for each in both_ways(name)(x))
    limit = bounds(code, turned)
    errors = np.abs(values - turned)
    assert (errors <= limit).all(), (errors / limit).max()
    # It is reached, and errors are spread below it: another scale would go beyond it.
    assert (errors / limit).max() > 0.9 and 0.2 < np.mean(errors / limit) < 0.7
    # A rotation keeps lengths, but for the rounding of its sums.
    lengths = [np.linalg.norm(each, axis=-1) for each in (read - x, limit)]
    slack = 2.0**-20 * np.linalg.norm(x.astype(np.float64), axis=-1)
    assert (lengths[0] <= lengths[1] + slack).all()


def on_grid(code: BlockCode, seed: int) -> NDArray[np.float32]:
    """Numbers that tiles of power-of-two steps hold, the ends among them."""
    block, rng = code.block, np.random.default_rng(seed)
    shape = tiles_of(np.empty((1, HEADS, TOKENS, DIM)), code).shape
    steps = 2.0 ** rng.integers(-4, 5, (shape[0], 1))
    if block.affine is not None:
        top = 2**block.element.bits - 1
        codes = rng.integers(0, top + 1, shape)
        codes[:, 0], codes[:, 1] = 0, top
        first = -rng.integers(0, top + 1, (shape[0], 1))
        if block.affine.zero_point == "minimum":
            first = rng.integers(-8, 9, (shape[0], 1))
        tiles = (codes + first) * steps
    else:
        values = block.element.values
        assert values is not None
        values = np.unique(values[np.isfinite(values) & (np.abs(values) <= block.element.max)])
        tiles = rng.choice(values, shape)
        tiles[:, 0] = values[-1]
        tiles = tiles if block.tile == ("all", "all") else tiles * steps
    return untiled(rng.permuted(tiles, axis=1) + 0.0, code).astype(np.float32)


def unclipped(code: BlockCode) -> bool:
    """Whether the ends of a range are coded as themselves."""
    return code.block.affine is None or code.block.affine.clip_ratio == 1


@over_codes([name for name, code in CODES.items() if unclipped(code)])
@settings(max_examples=3)
@given(seed=SEEDS)
def test_what_lies_on_the_grid_comes_back(name: str, seed: int) -> None:
    code = CODES[name]
    grid = on_grid(code, seed)
    x = np.asarray(code.turn_back(jnp.asarray(grid), {}))
    turned, values, read = (np.asarray(each) for each in both_ways(name)(x))
    assert_bits_equal(turned + np.float32(0), grid)
    assert_bits_equal(values + np.float32(0), grid)
    assert_bits_equal(read + np.float32(0), x + np.float32(0))
    assert len(np.unique(grid)) > 8


def bits_of_token(code: Code, dim: int) -> float:
    """Of one head."""
    if isinstance(code, PlainCode):
        return dim * code.format.bits
    assert isinstance(code, BlockCode)
    block = code.block
    of_tile = 0 if block.tile == ("all", "all") else block.scale_format.bits
    of_tile += block.affine.offset_bits if block.affine is not None else 0
    size = block.tile[1]
    if code.axis == "tokens":
        assert isinstance(size, int)
        tiles = dim / size
    else:
        tiles = -(-dim // size) if isinstance(size, int) else 1
    return dim * block.element.bits + tiles * of_tile


def waiting(name: str) -> tuple[int, int]:
    """How many exact tokens of keys and of values there is room for beside the codes of all."""
    spec = spec_of(name)
    if isinstance(spec, KiviSpec):
        residual = spec.residual
        return (residual, residual + 1) if residual else (spec.group - 1, 0)
    keys, values = (layout.code.group for layout in spec.layouts())
    return keys - 1, values - 1


@over_entries()
@settings(max_examples=2)
@given(
    kv_heads=st.integers(1, 16),
    dim=st.sampled_from([64, 128, 256]),
    layers=st.integers(1, 80),
    length=st.integers(1, 3000),
)
def test_18_bytes_are_the_formulas(
    name: str, kv_heads: int, dim: int, layers: int, length: int
) -> None:
    method, codes = get_kv_method(name), [each.code for each in spec_of(name).layouts()]
    sizes = {"layers": layers, "kv_heads": kv_heads, "dim": dim}
    bits = [bits_of_token(code, dim) for code in codes]
    want = layers * kv_heads * sum(bits) / 8
    assert method.bytes_per_token(**sizes) == want
    # Whole groups of both sides, and the tokens that wait.
    group = math.lcm(*(code.group for code in codes))
    room = -(-length // group) * group
    total = want * room + layers * kv_heads * dim * 2 * sum(waiting(name))
    found = method.bytes_per_token(**sizes, length=length) * length
    assert found == pytest.approx(total, rel=1e-12)
