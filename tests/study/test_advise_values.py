"""Values in pieces are those of `quantize`, bit for bit, whatever a block's scales span."""

import jax.numpy as jnp
import numpy as np
import pytest

import lowprec as lp
from lowprec.gemm.operand import mean_amax
from lowprec.numerics.format import Format
from lowprec.scaling.block import Block
from lowprec.study import advise_values
from lowprec.study.advise_candidates import candidates, entries
from lowprec.study.advise_values import in_pieces, values
from tests.helpers import assert_bits_equal
from tests.scaling.helpers import slow_if

FEW = ("mxfp4", "nvfp4", "fp8_channel")
"""Scales of tiles, of tiles and the tensor, and of rows."""
AFFINE = ("int4_kivi_g32", "int4_quarot_g128")


@pytest.fixture
def matrix(monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """150 x 200 in pieces of 128 x 128; large and small rows, one of zeros, a subnormal."""
    monkeypatch.setattr(advise_values, "PIECE", (128, 128))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((150, 200)) * np.exp(2 * rng.standard_normal((150, 1)))
    x[3] = 0
    x[5, 7] = 1e-40
    return x.astype(np.float32)


def whole(x: np.ndarray, target: Format | Block, axis: int) -> np.ndarray:
    """The matrix as one, with zeros up to a whole number of a transform's blocks."""
    if isinstance(target, Format):
        return np.asarray(lp.cast(x, target))
    size = target.transform.size if target.transform is not None else 0
    padding = [(0, 0), (0, 0)]
    padding[axis] = (0, -x.shape[axis] % size if size else 0)
    filled = jnp.pad(jnp.asarray(x), padding)
    amax = mean_amax(filled, target, axis)
    found = lp.quantize(filled, target, axis=axis, amax=amax).dequantize()
    return np.asarray(found)[: x.shape[0], : x.shape[1]]


@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("name", FEW)
def test_pieces_are_quantized_as_the_whole(name: str, axis: int, matrix: np.ndarray) -> None:
    block = lp.get_block(name)
    found = values(matrix, block, axis)
    assert_bits_equal(found, whole(matrix, block, axis))
    assert 0.2 > np.linalg.norm(found - matrix) / np.linalg.norm(matrix) > 0.001


@pytest.mark.parametrize(
    "name", slow_if(("int4_kivi_g32", "int4_quarot_g128"), ("int4_quarot_g128",))
)
def test_zeros_beyond_a_matrix_widen_no_tile(name: str, matrix: np.ndarray) -> None:
    block, x = lp.get_block(name), np.abs(matrix[4:, :183]) + np.float32(1)
    found = values(x, block, -1)
    assert_bits_equal(found, whole(x, block, -1))
    assert np.abs(found - x)[:, 160:].max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("axis", [-1, pytest.param(-2, marks=pytest.mark.thorough)])
def test_every_block_of_the_catalogues_recipes(axis: int, matrix: np.ndarray) -> None:
    pairs = [x.pair for role in ("fprop", "wgrad") for x in candidates(entries(), role, 200)]  # type: ignore[arg-type] - roles
    targets = {x.name: x for pair in pairs for x in (pair.a, pair.b)}
    for target in targets.values():
        assert_bits_equal(values(matrix, target, axis), whole(matrix, target, axis))
    assert sum(in_pieces(x) for x in targets.values()) > 0.8 * len(targets) > 60
