"""Error measures against hand computations, simulation and invariances."""

import math

import numpy as np
import pytest

from lowprec import metrics

RNG = np.random.default_rng(0)


def test_sqnr_by_hand() -> None:
    # Signal 9 + 16 = 25, noise 0.25 + 0: 100, that is 20 dB.
    assert metrics.sqnr_db([3.5, 4.0], [3.0, 4.0]) == pytest.approx(20.0, abs=1e-12)
    assert metrics.sqnr_db([2.0, 0.0], [1.0, 0.0]) == 0.0


def test_gain_by_hand() -> None:
    # Slope (1*2 + 2*3) / 5 = 1.6; residuals 0.4, -0.2; sqrt(0.16 + 0.16) / 5.
    slope, error = metrics.gain([2.0, 3.0], [1.0, 2.0])
    assert slope == pytest.approx(0.6, abs=1e-15)
    assert error == pytest.approx(math.sqrt(0.32) / 5, abs=1e-15)


def test_relative_frobenius_by_hand() -> None:
    result, reference = [[3.0, 4.0], [0.0, 1.0]], [[3.0, 4.0], [0.0, 0.0]]
    assert metrics.relative_frobenius(result, reference) == pytest.approx(0.2, abs=1e-15)


def test_backward_error_by_hand() -> None:
    got = metrics.backward_error([1.5, 2.0, 0.0], [1.0, 1.0, 0.0], [10.0, 4.0, 0.0])
    assert got == 0.25
    assert metrics.backward_error([1.0], [0.0], [0.0]) == math.inf


def test_measure_joins_the_measures() -> None:
    x = RNG.normal(size=(7, 9))
    y = 0.9 * x + 0.01 * RNG.normal(size=x.shape)
    got = metrics.measure(y, x, np.full_like(x, 2.0))
    assert got.sqnr_db == metrics.sqnr_db(y, x)
    assert (got.gain, got.gain_standard_error) == metrics.gain(y, x)
    assert got.residual_sqnr_db == metrics.sqnr_db(y, (1 + got.gain) * x)
    assert got.relative_frobenius == metrics.relative_frobenius(y, x)
    assert got.backward_error == np.max(np.abs(y - x)) / 2
    assert got.residual_sqnr_db > got.sqnr_db + 15
    assert math.isnan(metrics.measure(y, x).backward_error)


@pytest.mark.parametrize("growth", [0.0, 1.0])
def test_whites_standard_error_is_the_spread_of_the_slope(growth: float) -> None:
    # Noise that grows with the signal (growth 1) widens the slope; an estimate that took it for
    # uniform would be too small by sqrt(3) for normal signals, since E x^4 = 3 (E x^2)^2.
    rng = np.random.default_rng(5)
    trials, size = 400, 800
    x = rng.normal(size=size)
    slopes, errors = [], []
    for _ in range(trials):
        noise = 0.1 * rng.normal(size=size) * np.abs(x) ** growth
        slope, error = metrics.gain(x + noise, x)
        slopes.append(slope)
        errors.append(error)
    # The standard deviation of n normal draws is known to 1 / sqrt(2 n): four times that, and the
    # downward bias of HC0, some 3 E x^6 / (n E x^4 ...) < 2 %.
    assert np.mean(errors) == pytest.approx(np.std(slopes), rel=4 / math.sqrt(2 * trials) + 0.02)
    assert abs(np.mean(slopes)) < 4 * np.std(slopes) / math.sqrt(trials)


def test_equal_arrays() -> None:
    x = RNG.normal(size=10)
    got = metrics.measure(x, x, np.abs(x))
    assert got.sqnr_db == math.inf and got.residual_sqnr_db == math.inf
    assert got.gain == got.gain_standard_error == 0.0
    assert got.relative_frobenius == got.backward_error == 0.0


def test_a_reference_of_zeros_has_no_relative_measure() -> None:
    got = metrics.measure(np.ones(3), np.zeros(3))
    assert all(math.isnan(x) for x in (got.sqnr_db, got.gain, got.gain_standard_error))
    assert math.isnan(got.relative_frobenius) and math.isnan(got.residual_sqnr_db)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_not_finite_shows(wrong: float) -> None:
    x = np.ones(3)
    y = np.array([1.0, wrong, 1.0])
    with np.errstate(invalid="ignore"):
        assert math.isnan(metrics.sqnr_db(y, x))
        assert not math.isfinite(metrics.backward_error(y, x, x))
        assert not math.isfinite(metrics.relative_frobenius(y, x))
        assert not math.isfinite(metrics.gain(y, x)[0])
        assert math.isnan(metrics.sqnr_db(x, y))


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("has shape", lambda: metrics.sqnr_db(np.ones(2), np.ones(3))),
        ("has shape", lambda: metrics.gain(np.ones((2, 1)), np.ones(2))),
        ("empty", lambda: metrics.relative_frobenius([], [])),
        ("`magnitude` has shape", lambda: metrics.backward_error([1.0], [1.0], [1.0, 2.0])),
        ("empty", lambda: metrics.measure(np.ones((0, 3)), np.ones((0, 3)))),
    ],
)
def test_shapes_that_do_not_fit(message: str, call: object) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=message):
        call()


def test_scale_and_order_do_not_matter() -> None:
    x = RNG.normal(size=50)
    y = x + 0.1 * RNG.normal(size=50)
    size = np.abs(x) + 1
    want = metrics.measure(y, x, size)
    order = RNG.permutation(50)
    for moved in (
        metrics.measure(8 * y, 8 * x, 8 * size),
        metrics.measure(-y, -x, size),
        metrics.measure(y[order], x[order], size[order]),
        metrics.measure(y.reshape(5, 10), x.reshape(5, 10), size.reshape(5, 10)),
    ):
        for field in ("sqnr_db", "gain", "gain_standard_error", "residual_sqnr_db"):
            assert getattr(moved, field) == pytest.approx(getattr(want, field), rel=1e-12)
        assert moved.backward_error == pytest.approx(want.backward_error, rel=1e-12)


def test_narrow_arrays_are_measured_in_float64() -> None:
    x = np.full(100_000, 0.1, np.float32)
    got = metrics.sqnr_db(x + np.float32(2.0**-20), x)
    noise = np.float64(np.float32(0.1) + np.float32(2.0**-20)) - np.float64(np.float32(0.1))
    assert got == pytest.approx(20 * math.log10(np.float64(np.float32(0.1)) / noise), rel=1e-9)
