"""The naive forecasts equal forecasts worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.backtest import Predictor
from model.baselines import Persistence, SeasonalNaive, seasonal_scale
from model.config import ModelConfig
from model.sequences import Sequences, build_sequences
from pipeline.evaluation.evaluate import standard_deviations

CADENCE_US = 100
NAN = float("nan")


def one_sensor(values: list[float], moments: list[int] | None = None, name: str = "a") -> Sequences:
    count = len(values)
    timestamp_us = np.arange(count) * CADENCE_US if moments is None else np.array(moments)
    return build_sequences(
        [name],
        np.array([0, count]),
        timestamp_us,
        np.array(values, np.float64)[:, None],
        np.arange(count),
        features=("level",),
        cadence_us=CADENCE_US,
        max_gap_steps=10,
    )


def config_of(horizon_steps: int = 3, season_steps: int = 2) -> ModelConfig:
    return ModelConfig(("level",), ("level",), CADENCE_US, horizon_steps, season_steps=season_steps)


def medians(predictor: Predictor, sequences: Sequences, lo: int = 0, hi: int | None = None) -> np.ndarray:
    forecasts = predictor.forecasts(sequences, 0, lo, len(sequences) if hi is None else hi)
    return forecasts[:, 0, 1]


def test_persistence_repeats_the_last_value_across_missing_ones() -> None:
    sequences = one_sensor([1.0, NAN, NAN, 4.0])
    assert medians(Persistence(config_of()), sequences).tolist() == [[1.0] * 3] * 3 + [[4.0] * 3]
    assert medians(Persistence(config_of()), sequences, 2, 3).tolist() == [[1.0] * 3]


def test_seasonal_naive_repeats_the_last_season_over_a_longer_horizon() -> None:
    sequences = one_sensor([10.0, 11.0, 12.0, 13.0, 14.0, 15.0])
    found = medians(SeasonalNaive(config_of(horizon_steps=7, season_steps=3)), sequences)
    assert found[5].tolist() == [13.0, 14.0, 15.0, 13.0, 14.0, 15.0, 13.0]
    assert found[3].tolist() == [11.0, 12.0, 13.0, 11.0, 12.0, 13.0, 11.0]


def test_seasonal_naive_goes_by_time_and_falls_back_to_the_last_value() -> None:
    #                            hours: 0    1    4    5.2  7
    sequences = one_sensor([10.0, 11.0, 14.0, 15.0, NAN], [0, 100, 400, 520, 700])
    found = medians(SeasonalNaive(config_of(horizon_steps=3, season_steps=3)), sequences)
    at_400 = int(np.flatnonzero(sequences.timestamp_us == 400)[0])
    assert found[at_400].tolist() == [14.0, 14.0, 14.0]  # 2 and 3 have no reading; 4 has one
    assert found[at_400 - 3].tolist() == [11.0, 10.0, 11.0]  # after 1: -1 has no reading; 0 and 1 have one
    assert found[-1].tolist() == [15.0, 15.0, 15.0]  # 5 is nearest to 5.2; 6 has no reading, and 7 no value


@given(
    st.lists(st.one_of(st.floats(-9, 9), st.just(NAN)), min_size=1, max_size=30),
    st.integers(1, 6),
    st.integers(1, 8),
    st.integers(0, 29),
)
def test_a_stretch_has_the_same_forecasts_as_within_the_whole_series(
    values: list[float], season_steps: int, horizon_steps: int, lo: int
) -> None:
    sequences = one_sensor(values)
    lo = min(lo, len(sequences) - 1)
    for baseline in (Persistence, SeasonalNaive):
        predictor = baseline(config_of(horizon_steps, season_steps)).fit(sequences, 10 * CADENCE_US)
        whole = predictor.forecasts(sequences, 0, 0, len(sequences))
        np.testing.assert_array_equal(predictor.forecasts(sequences, 0, lo, len(sequences)), whole[lo:])
        assert np.isfinite(whole).all()
        assert (np.diff(whole, axis=2) >= 0).all()


def test_quantiles_come_from_residuals_of_the_training_part_only() -> None:
    random = np.random.default_rng(0)
    walk = np.cumsum(random.normal(size=4_000))
    walk[2_000:] *= 100.0
    sequences = one_sensor(walk.tolist())
    predictor = Persistence(config_of(horizon_steps=1)).fit(sequences, 2_000 * CADENCE_US)
    low, median, high = predictor.forecasts(sequences, 0, 0, 2_000)[:, 0, :, 0].T
    np.testing.assert_array_equal(median, walk[:2_000])
    assert np.mean((walk[1:2_000] >= low[:-1]) & (walk[1:2_000] <= high[:-1])) == pytest.approx(0.8, abs=0.01)


def test_a_sensor_unknown_to_training_gets_the_intervals_of_known_sensors() -> None:
    random = np.random.default_rng(0)
    known = one_sensor(random.normal(size=200).tolist())
    predictor = Persistence(config_of()).fit(known, 200 * CADENCE_US)
    expected = predictor.forecasts(known, 0, 0, 1) - known.values[0]
    new = one_sensor([5.0], name="new")
    np.testing.assert_allclose(predictor.forecasts(new, 0, 0, 1) - 5.0, expected)


def test_the_scale_is_the_seasonal_difference_then_the_mean_deviation_then_one() -> None:
    seasonal = one_sensor([0.0, 5.0, 1.0, 6.0, 2.0, 7.0])
    assert seasonal_scale(seasonal, config_of(), 600).tolist() == [[1.0]]
    repeating = one_sensor([0.0, 4.0] * 5)
    assert seasonal_scale(repeating, config_of(), 1_000).tolist() == [[2.0]]  # mean absolute deviation
    assert seasonal_scale(one_sensor([3.0] * 9), config_of(), 900).tolist() == [[1.0]]
    assert seasonal_scale(seasonal, config_of(), 0).tolist() == [[1.0]]  # no reading before the bound


@pytest.mark.parametrize("constant", [20.3, 0.1, 7.7, -1e9 / 3])
def test_the_rounding_of_a_mean_is_not_taken_for_a_scale(constant: float) -> None:
    """The mean of equal numbers is rarely that number: errors divided by the difference would dominate all scores."""
    constant_sensor = one_sensor([constant] * 777)
    assert seasonal_scale(constant_sensor, config_of(), 77_700).tolist() == [[1.0]]
    assert standard_deviations(constant_sensor, config_of(), 77_700).tolist() == [[1.0]]
    one_unit = one_sensor([1.7e9, 1.7e9 + 0.5] * 100)
    assert seasonal_scale(one_unit, config_of(), 20_000).tolist() == [[0.25]]


def test_an_absurd_value_hardly_changes_the_robust_scale_of_its_sensor() -> None:
    random = np.random.default_rng(0)
    for count in (30, 300, 3_000):
        values = random.normal(size=count)
        values[count // 2] = 1e9
        plain = np.delete(values, count // 2)
        until_us = count * CADENCE_US
        expected = seasonal_scale(one_sensor(plain.tolist()), config_of(), until_us)
        found = seasonal_scale(one_sensor(values.tolist()), config_of(), until_us, robust=True)
        np.testing.assert_allclose(found, expected, rtol=0.7 if count == 30 else 0.15)
        # The published definition is not robust: errors of this sensor would weigh nothing.
        assert (seasonal_scale(one_sensor(values.tolist()), config_of(), until_us) > 1e5).all()


@pytest.mark.parametrize("shape", ["normal", "exponential", "rare events", "constant", "repeating", "few"])
def test_the_robust_scale_of_an_ordinary_sensor_is_the_published_one(shape: str) -> None:
    random = np.random.default_rng(1)
    values = {
        "normal": random.normal(5.0, 2.0, 5_000),
        "exponential": random.exponential(3.0, 5_000),
        "rare events": np.where(random.random(5_000) < 0.002, random.exponential(3.0, 5_000), 0.0),
        "constant": np.full(500, 7.7),
        "repeating": np.tile([0.0, 4.0], 100),
        "few": np.array([0.0, 5.0, 1.0, 6.0, 2.0, 9.0]),
    }[shape]
    sensor = one_sensor(values.tolist())
    until_us = len(values) * CADENCE_US
    assert seasonal_scale(sensor, config_of(), until_us, robust=True) == seasonal_scale(sensor, config_of(), until_us)


@pytest.mark.parametrize("size", [5e-324, 1e-310, 1e-200, 1e-170, 1e-150])
def test_a_sensor_of_denormal_values_has_a_scale_whose_square_can_be_divided_by(size: float) -> None:
    values = np.random.default_rng(2).normal(size=400) * size
    for robust in (False, True):
        assert seasonal_scale(one_sensor(values.tolist()), config_of(), 40_000, robust=robust).tolist() == [[1.0]]
    assert standard_deviations(one_sensor(values.tolist()), config_of(), 40_000).tolist() == [[1.0]]
