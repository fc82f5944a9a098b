"""Log-probabilities and bits per byte, against figures worked out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.models.scoring import bits_per_byte, document_bits_per_byte, log_probabilities


def test_log_probabilities_are_those_of_the_next_token() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(2, 4, 5)).astype(np.float32)
    tokens = random.integers(0, 5, (2, 4)).astype(np.uint8)
    found = log_probabilities(jnp.asarray(logits), jnp.asarray(tokens))
    assert found.shape == (2, 3)
    for row in range(2):
        for t in range(3):
            weights = np.exp(logits[row, t].astype(np.float64))
            expected = np.log(weights[tokens[row, t + 1]] / weights.sum())
            assert found[row, t] == pytest.approx(expected, abs=1e-6)


def test_bits_per_byte_counts_only_the_mask() -> None:
    logarithms = jnp.log(jnp.array([[0.5, 0.25, 0.125]]))
    assert bits_per_byte(logarithms).item() == pytest.approx(2.0)
    mask = jnp.array([[True, False, True]])
    assert bits_per_byte(logarithms, mask).item() == pytest.approx(2.0)
    assert bits_per_byte(logarithms, ~mask).item() == pytest.approx(2.0)
    assert bits_per_byte(logarithms, mask.at[0, 0].set(False)).item() == pytest.approx(3.0)


def test_documents_add_up_to_the_whole() -> None:
    random = np.random.default_rng(1)
    logarithms = jnp.asarray(-random.random((5, 7)), jnp.float32)
    mask = jnp.asarray(random.random((5, 7)) < 0.6)
    document = jnp.array([0, 0, 1, 3, 3])
    found = document_bits_per_byte(logarithms, mask, document, 4)
    counts = np.array([mask[:2].sum(), mask[2].sum(), 0, mask[3:].sum()])
    assert np.isnan(found[2])
    for index, rows in ((0, slice(0, 2)), (1, slice(2, 3)), (3, slice(3, 5))):
        np.testing.assert_allclose(
            found[index], bits_per_byte(logarithms[rows], mask[rows]), rtol=1e-6
        )
    weighted = np.nansum(np.asarray(found) * counts) / counts.sum()
    assert bits_per_byte(logarithms, mask).item() == pytest.approx(weighted, rel=1e-6)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got the shapes \(1, 3, 5\) and \(1, 4\)"):
        log_probabilities(jnp.zeros((1, 3, 5)), jnp.zeros((1, 4), jnp.uint8))
    with pytest.raises(ValueError, match=r"at least 2 tokens"):
        log_probabilities(jnp.zeros((1, 1, 5)), jnp.zeros((1, 1), jnp.uint8))
    with pytest.raises(ValueError, match=r"`mask` must be bool of the shape \(2, 3\)"):
        bits_per_byte(jnp.zeros((2, 3)), jnp.zeros((2, 2), bool))
    with pytest.raises(ValueError, match=r"got int32 of the shape \(2, 3\)"):
        bits_per_byte(jnp.zeros((2, 3)), jnp.zeros((2, 3), jnp.int32))
    with pytest.raises(ValueError, match=r"`document` must have one entry a window, \(2,\)"):
        document_bits_per_byte(
            jnp.zeros((2, 3)), jnp.ones((2, 3), bool), jnp.zeros(3, jnp.int32), 1
        )
