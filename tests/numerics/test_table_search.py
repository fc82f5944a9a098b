"""Which thresholds of a table lie below a number: by drawers, as by searching."""

import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.numerics import Format, get_format
from lowprec.numerics.rounding import ROUNDINGS, is_stochastic
from lowprec.numerics.table import _drawers, _rank, _thresholds
from tests.helpers import random_words

LEVELS = (1.15 ** np.arange(64) * np.where(np.arange(64) % 3, 1, -1)).astype(np.float32)
TABLES = (
    get_format("hif8"),
    Format(name="levels", table=tuple(LEVELS.tolist())),
    # More values in one binade than there is room for: they are searched.
    Format(name="crowded", table=tuple((1 + np.arange(64) * 2.0**-23).tolist())),
)


def keys(thresholds: np.ndarray) -> np.ndarray:
    """Each threshold and its neighbours, and any at all below the largest."""
    near = np.concatenate([thresholds - 1, thresholds, thresholds + 1])
    return np.minimum(np.concatenate([near, random_words(500)]), 0xFFFFFFFE).astype(np.uint32)


@pytest.mark.parametrize("fmt", TABLES, ids=lambda fmt: fmt.name)
def test_drawers_are_a_search(fmt: Format) -> None:
    assert (_drawers(_thresholds(fmt, "nearest_even", False)) is None) == (fmt.name == "crowded")
    for rounding in (mode for mode in ROUNDINGS if not is_stochastic(mode)):
        thresholds = _thresholds(fmt, rounding, False)
        tried = keys(thresholds)
        got = np.asarray(_rank(jnp.asarray(tried), thresholds))
        np.testing.assert_array_equal(got, np.searchsorted(thresholds, tried, side="right"))
        assert len(np.unique(got)) >= len(thresholds)


def test_numbers_of_64_bits() -> None:
    thresholds = np.sort(random_words(40, 7)).astype(np.uint64) << np.uint64(32)
    drawers = _drawers(thresholds)
    assert drawers is not None
    tried = np.concatenate([thresholds - 1, thresholds, thresholds + 1])
    places = (tried >> np.uint64(drawers.shift)).astype(np.int64)
    got = drawers.below[places] + sum(tried >= row[places] for row in drawers.thresholds)
    np.testing.assert_array_equal(got, np.searchsorted(thresholds, tried, side="right"))
