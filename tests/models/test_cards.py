"""Operand cards against matrices whose statistics are known in closed form."""

import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lowprec.models.cards import SPECTRUM_ROWS, card


def gaussian(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_constant_matrix() -> None:
    found = card(np.full((4, 70), -3.0, np.float32))
    assert (found.amax, found.rms) == (3.0, 3.0)
    assert (found.crest_median, found.crest_percentile_99) == (1.0, 1.0)
    assert found.excess_kurtosis == 0 and found.outlier_channel_ratio == 1
    assert found.effective_rank == pytest.approx(1 / 4) and found.top_energy == pytest.approx(1)
    assert (found.exponent_spread, found.zero_fraction) == (0, 0)


def test_zero_matrix_has_no_ratios() -> None:
    found = card(np.zeros((3, 40), ml_dtypes.bfloat16)).to_dict()
    assert found.pop("zero_fraction") == 1.0
    assert found.pop("shape") == [3, 40] and found.pop("dtype") == "bfloat16"
    assert found.pop("axis") == 1
    assert set(found.values()) == {0}


def test_crest_per_block_along_the_contraction_axis() -> None:
    x = np.ones((2, 64), np.float32)
    x[:, 32:] = 0
    x[:, 40] = 7  # one element carries its block: crest sqrt(32)
    found = card(x)
    assert found.crest_median == pytest.approx((1 + 32**0.5) / 2)
    assert found.crest_percentile_99 == pytest.approx(32**0.5)
    # Along the other axis each block of two holds equal magnitudes.
    assert card(x, axis=0).crest_median == 1


def test_short_last_block_and_zero_blocks() -> None:
    x = np.zeros((1, 68), np.float32)
    x[0, 64] = 5  # a last block of four; the two blocks of zeros do not count
    assert card(x).crest_median == 2.0


def test_crest_survives_blocks_far_below_the_largest() -> None:
    x = np.full((1, 64), 1e300)
    x[0, :32] = 0
    x[0, 5] = 1e-300
    assert card(x).crest_median == pytest.approx((1 + 32**0.5) / 2)
    assert card(x).rms == pytest.approx(1e300 / 2**0.5)


def test_kurtosis_of_known_distributions() -> None:
    signs = np.where(np.arange(64).reshape(2, 32) % 2, 1.0, -1.0).astype(np.float32)
    assert card(signs).excess_kurtosis == pytest.approx(-2)
    # Standard error of the excess kurtosis of n Gaussian draws is sqrt(24 / n).
    normal = gaussian(512, 512)
    assert abs(card(normal).excess_kurtosis) < 5 * (24 / normal.size) ** 0.5


def test_outlier_channel_lies_along_the_contraction_axis() -> None:
    x = np.ones((6, 8), np.float32)
    x[:, 3] = 10
    x[:, 5] = 0  # a dead channel leaves the median alone
    assert card(x, axis=-1).outlier_channel_ratio == 10
    assert card(x.T, axis=0).outlier_channel_ratio == 10
    assert card(x, axis=0).outlier_channel_ratio == 1


def test_spectrum_of_orthogonal_rank_one_and_two_directions() -> None:
    identity = np.eye(16, dtype=np.float32)
    assert card(identity).effective_rank == pytest.approx(1)
    assert card(identity).top_energy == pytest.approx(1 / 16)
    rank_one = np.outer(np.arange(1, 9), np.arange(1, 21)).astype(np.float32)
    assert card(rank_one).effective_rank == pytest.approx(1 / 8)
    two = np.zeros((4, 4), np.float32)
    two[0, 0], two[1, 1] = 1, 3**0.5  # energies 1/4 and 3/4
    entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert card(two).effective_rank == pytest.approx(np.exp(entropy) / 4, rel=1e-6)
    assert card(two).top_energy == pytest.approx(0.75)


@pytest.mark.parametrize("shape", [(40, 100), (100, 40)])
def test_spectrum_agrees_with_singular_values(shape: tuple[int, int]) -> None:
    x = gaussian(*shape)
    energies = np.linalg.svd(x.astype(np.float64), compute_uv=False) ** 2
    shares = energies / energies.sum()
    found = card(x)
    assert found.effective_rank == pytest.approx(np.exp(-np.sum(shares * np.log(shares))) / 40)
    assert found.top_energy == pytest.approx(shares[0])


def test_spectrum_samples_evenly_spaced_vectors() -> None:
    x = gaussian(700, 30)
    rows = [i * 700 // SPECTRUM_ROWS for i in range(SPECTRUM_ROWS)]
    assert card(x).effective_rank == card(x[rows]).effective_rank
    assert card(x).effective_rank != card(x[:SPECTRUM_ROWS]).effective_rank


def test_exponent_spread_is_exact_at_powers_of_two() -> None:
    # 100 exponents from -60 to 39: the 5th and 95th of them, whatever sign and mantissa.
    exponents = np.arange(-60, 40)
    x = np.ldexp(np.where(exponents % 2, 1.0, -1.0), exponents).astype(np.float32).reshape(4, 25)
    assert card(x).exponent_spread == 90
    below = np.nextafter(x, np.zeros_like(x))
    assert card(below).exponent_spread == 90
    subnormal = np.array([[2.0**-149, 1.0]], np.float32)
    assert card(subnormal).exponent_spread == 149


def test_scaling_by_a_power_of_two_changes_magnitudes_alone() -> None:
    x = gaussian(16, 96)
    first, second = card(x).to_dict(), card(x * np.float32(2.0**-40)).to_dict()
    for name in ("amax", "rms"):
        before, after = first.pop(name), second.pop(name)
        assert isinstance(before, float) and after == before * 2.0**-40
    assert first == second


def test_same_matrix_same_card_and_json() -> None:
    x = gaussian(33, 50).astype(ml_dtypes.float8_e4m3fn)
    assert card(x) == card(x.copy())
    found = json.loads(json.dumps(card(x, axis=-2).to_dict(), allow_nan=False))
    assert found["axis"] == 0 and found["dtype"] == "float8_e4m3fn" and found["shape"] == [33, 50]


@pytest.mark.parametrize(
    ("x", "axis", "kind", "expected"),
    [
        (np.ones((2, 2), np.int32), -1, TypeError, "`x` is int32; a card needs a float array"),
        (np.ones(3, np.float32), -1, ValueError, "`x` has shape (3,); a card needs a matrix"),
        (np.ones((2, 2), np.float32), 2, ValueError, "`axis` is 2"),
        (np.ones((0, 2), np.float32), -1, ValueError, "tensor `x` is empty"),
        (np.array([[1, np.nan]], np.float32), -1, ValueError, "first at index (0, 1)"),
    ],
)
def test_refused(x: Any, axis: int, kind: type[Exception], expected: str) -> None:
    with pytest.raises(kind) as caught:
        card(x, axis=axis)
    assert expected in str(caught.value)
