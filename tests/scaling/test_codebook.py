"""Lloyd-Max codebooks: known optima, laws, and their use as elements of a block."""

from statistics import NormalDist
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.scaling import get_block, lloyd_max, quantize
from tests.scaling.helpers import changed

NORMAL = np.array([NormalDist().inv_cdf((i + 0.5) / 20000) for i in range(20000)])


@pytest.mark.parametrize(
    ("bits", "levels", "loss"),
    [
        # Max, Quantizing for Minimum Distortion (1960), table I.
        (1, [0.7980], 0.3634),
        (2, [0.4528, 1.510], 0.1175),
        (3, [0.2451, 0.7560, 1.344, 2.152], 0.03454),
    ],
)
def test_the_normal_distribution(bits: int, levels: list[float], loss: float) -> None:
    table = np.array(lloyd_max(NORMAL, bits).table)
    np.testing.assert_allclose(table, [-x for x in levels[::-1]] + levels, atol=2e-3)
    nearest = table[np.abs(NORMAL[:, None] - table).argmin(1)]
    assert np.mean((nearest - NORMAL) ** 2) == pytest.approx(loss, abs=3e-4)


def test_many_levels_come_near_the_least_error() -> None:
    """Panter and Dite (1951): sqrt(3) pi / 2 / 4^bits, from below as bits grow."""
    x = np.sort(np.random.default_rng(2).standard_normal(1 << 17))
    table = np.array(lloyd_max(x, 8).table)
    nearest = table[np.searchsorted((table[1:] + table[:-1]) / 2, x)]
    loss = np.mean((nearest - x) ** 2) / np.mean(x**2)
    assert 0.95 < loss / (np.sqrt(3) * np.pi / 2 / 4**8) < 1.01
    assert len(np.unique(nearest)) == 256


def test_an_empty_cell_keeps_its_level() -> None:
    """Two clusters and as many levels as they have samples: zero is no level of either."""
    x = np.array([1.0] * 50 + [1.25, 1.5, 1.75, 2.0, 9.0, 9.125] + [10.0] * 50)
    table = lloyd_max(x, 3).table
    assert table is not None
    assert all(1.0 <= level <= 10.0 for level in table)


def test_levels_are_the_means_of_their_cells() -> None:
    x = np.random.default_rng(0).laplace(size=4000)
    table = np.array(lloyd_max(x, 4).table)
    nearest = np.abs(x[:, None] - table).argmin(1)
    for cell in range(16):
        assert x[nearest == cell].mean() == pytest.approx(table[cell], rel=1e-6)
    assert lloyd_max(x[::-1].reshape(40, 100), 4).table == lloyd_max(x, 4).table


@pytest.mark.slow
def test_a_codebook_for_a_block_loses_less_than_nf4() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_t(3, size=(512, 64)).astype(np.float32)
    fitted = lloyd_max(x / np.abs(x).max(axis=1, keepdims=True), 4, largest=1.0, name="fitted")
    assert fitted.max == 1.0 and fitted.min == -1.0
    blocks = (get_block("nf4_g64"), changed("nf4_g64", element=fitted))
    loss = [
        float(np.mean((np.asarray(quantize(jnp.asarray(x), block).dequantize()) - x) ** 2))
        for block in blocks
    ]
    assert 0 < loss[1] < 0.95 * loss[0]


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("`bits` = 9", {"samples": NORMAL, "bits": 9}),
        ("must be finite", {"samples": [1.0, np.inf], "bits": 1}),
        ("3 distinct values, 4 are needed", {"samples": [1, 2, 3, 3, 3], "bits": 2}),
        ("`largest` = 0", {"samples": NORMAL, "bits": 2, "largest": 0.0}),
    ],
)
def test_errors(message: str, arguments: Any) -> None:
    with pytest.raises(ValueError, match=message):
        lloyd_max(**arguments)
