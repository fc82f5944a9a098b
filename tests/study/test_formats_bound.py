"""The bound for Gaussian products, ratios with intervals, and predictions by crest factor."""

import math

import numpy as np
import pytest

from lowprec.numerics.format import get_format
from lowprec.study import crest, ratios
from lowprec.study.matmul_bound import least_error, least_rate, touching_rate
from lowprec.study.ratios import Estimate


def test_bound_at_known_points() -> None:
    # 2 / 4 - 1 / 16, 2 / 16 - 1 / 256 and nothing sent: arXiv 2410.13780's Gamma by hand.
    assert least_error(1.0) == 0.4375
    assert least_error(2.0) == 0.12109375
    assert least_error(0.0) == 1.0
    # The abstract's phase transition.
    assert touching_rate() == pytest.approx(0.906, abs=5e-4)


def test_bound_is_the_lower_convex_envelope() -> None:
    rates = np.linspace(0, 6, 601)
    values = np.array([least_error(rate) for rate in rates])
    assert (np.diff(values) < 0).all() and (np.diff(values, 2) > -1e-12).all()
    independent = 2 * 4**-rates - 16**-rates
    assert (values <= independent + 1e-15).all()
    assert (values[rates < 0.9] < independent[rates < 0.9])[1:].all()


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9, 1.0, 2.5, 8.25, 30.0])
def test_rate_inverts_the_bound(rate: float) -> None:
    assert least_rate(least_error(rate)) == pytest.approx(rate, rel=1e-12, abs=1e-15)


def test_rate_of_operands_at_the_rate_distortion_function() -> None:
    # Operands with a relative error d each, which their estimate is uncorrelated with, leave
    # 2 d - d^2: at d = 2^(-2R) that is the bound at R, whatever R.
    for distortion in (0.1, 0.009497, 2e-6):
        error = 2 * distortion - distortion**2
        assert least_rate(error) == pytest.approx(-math.log2(distortion) / 2, rel=1e-12)


def test_rate_of_the_ends() -> None:
    assert least_rate(0.0) == math.inf and least_rate(1.0) == 0.0 and least_rate(3.0) == 0.0


@pytest.mark.parametrize("value", [-0.1, math.nan])
def test_bound_refuses_what_is_no_rate_or_error(value: float) -> None:
    with pytest.raises(ValueError, match=r"`rate` = .* it is at least 0"):
        least_error(value)
    with pytest.raises(ValueError, match=r"`error` = .* at least 0"):
        least_rate(value)


def test_decibels_of_paired_sums() -> None:
    # The standard error of repeated draws, for units that share a factor and for ones that do not.
    rng = np.random.default_rng(0)
    shared = rng.gamma(4.0, size=(2000, 50))
    noise = 0.1 * shared * rng.gamma(50.0, size=shared.shape) / 50
    paired = [ratios.decibels(s, n) for s, n in zip(shared, noise, strict=True)]
    spread = np.std([x.value for x in paired])
    assert np.mean([x.standard_error for x in paired]) == pytest.approx(spread, rel=0.05)
    assert np.mean([x.low < 10 < x.high for x in paired]) == pytest.approx(0.95, abs=0.02)
    # Unpaired, the shared factor would show.
    alone = ratios.decibels(shared[0], noise[1])
    assert alone.standard_error > 3 * paired[0].standard_error


def test_mean_and_its_interval() -> None:
    found = ratios.mean([1.0, 3.0])
    assert (found.value, found.standard_error) == (2.0, 1.0)
    assert (found.low, found.high) == (0.0, 4.0) and not found.resolved
    assert Estimate(1.0, 0.4).resolved and not Estimate(1.0, 0.6).resolved


def test_ratios_need_units_that_pair() -> None:
    with pytest.raises(ValueError, match="`values` of shape \\(1,\\); an interval needs two"):
        ratios.mean([1.0])
    with pytest.raises(ValueError, match="`numerator` has 3 units, `denominator` 2"):
        ratios.decibels([1.0, 2.0, 3.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="no ratio in decibels"):
        ratios.decibels([1.0, 2.0], [0.0, 0.0])


def test_crossings_are_interpolated_with_their_spread() -> None:
    places = [1.0, 2.0, 3.0, 4.0]
    falling = [Estimate(v, 0.1) for v in (2.0, 1.0, -1.0, -2.0)]
    ((at, low, high),) = ratios.crossings(places, falling, seed=0)
    # Slope -2 a place between errors of 0.1: 0.05 places at one end, sqrt(1/2) of that amid.
    assert at == 2.5 and 0.05 < high - low < 0.2 and low < at < high
    assert ratios.crossings(places, [Estimate(1.0, 0.1)] * 4, seed=0) == []
    wave = [Estimate(v, 0.0) for v in (1.0, -1.0, -1.0, 1.0)]
    assert [x for x, _, _ in ratios.crossings(places, wave, seed=0)] == [1.5, 3.5]


@pytest.mark.parametrize(
    ("bits", "element", "crossing", "sqnr_db"),
    [
        (8, "float8_e4m3fn", 7.55, 31.86),
        (6, "float6_e2m3fn", 1.96, 31.54),
        (4, "float4_e2m1fn", 2.04, 19.14),
    ],
)
def test_predictions_are_the_published_crossings(
    bits: int, element: str, crossing: float, sqnr_db: float
) -> None:
    # Boxes of figure 3 of arXiv 2510.25602: crest factor and SQNR of each crossing.
    fmt = get_format(element)
    found = crest.predicted_crossing(bits, fmt, overhead=1.5, size=None)
    assert found == pytest.approx(crossing, abs=0.006)
    for level in (
        crest.predicted_integer_db(bits, found, overhead=1.5, size=None),
        crest.predicted_float_db(fmt, found, overhead=1.5, size=None),
    ):
        assert level == pytest.approx(sqnr_db, abs=0.006)


def test_published_crossing_of_nvfp4_is_not_that_of_its_equations() -> None:
    # Printed are 2.39 and 21.14 dB; equations 13 and 14 as printed meet elsewhere.
    fmt = get_format("float4_e2m1fn")
    assert crest.predicted_crossing(4, fmt, overhead=1.0, size=16) == pytest.approx(2.464, abs=1e-3)
    # A symmetric 4-bit integer has 15 values and not 16.
    exact = crest.predicted_crossing(4, fmt, overhead=1.0, size=16, exact=True)
    assert exact == pytest.approx(2.224, abs=1e-3)


@pytest.mark.parametrize("family", crest.FAMILIES)
def test_blocks_of_a_family(family: str) -> None:
    low, high = (0.5, 0.95) if family == "outlier" else (8.0, 1.0)
    rng = np.random.default_rng(3)
    means = []
    for parameter in (low, high):
        x = crest.draw_blocks(family, parameter, 2000, 32, rng)
        assert x.shape == (2000, 32) and x.dtype == np.float32
        rms = np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=1))
        assert 1 - 1e-6 < rms.min() < 1.01 and 1.98 < rms.max() < 2 + 1e-6
        factors = crest.crest_factors(x)
        assert 1 <= factors.min() and factors.max() <= math.sqrt(32) * (1 + 1e-6)
        assert abs(np.mean(x > 0) - 0.5) < 0.01
        means.append(factors.mean())
    assert means[1] > means[0] + 0.5


def test_outlier_has_the_crest_factor_asked_for() -> None:
    x = crest.draw_blocks("outlier", 0.9, 500, 16, np.random.default_rng(0))
    assert np.allclose(crest.crest_factors(x), 0.9 * 4, rtol=1e-6)


def test_generalised_normal_is_the_normal_at_two() -> None:
    x = crest.draw_blocks("generalised_normal", 2.0, 20_000, 32, np.random.default_rng(1))
    y = np.random.default_rng(2).standard_normal((20_000, 32))
    ours, normal = crest.crest_factors(x), crest.crest_factors(y)
    assert abs(ours.mean() - normal.mean()) < 5 * normal.std() / 100


def test_blocks_refuse_unknown_families_and_parameters() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"`family` = 'cauchy'; the families are generalised_nor"):
        crest.draw_blocks("cauchy", 1.0, 2, 32, rng)
    with pytest.raises(ValueError, match=r"`parameter` = 1.0 is outside the range of outlier"):
        crest.draw_blocks("outlier", 1.0, 2, 32, rng)
