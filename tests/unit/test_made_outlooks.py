"""The benchmark's outlooks are noisy copies of the readings to come, and its steps see none before it was issued."""

from dataclasses import replace
from typing import Final

import numpy as np
import pytest

from model.backtest import Leak
from model.outlooks import NO_OUTLOOK
from model.sequences import Sequences
from pipeline.evaluation.evaluate import model_config
from pipeline.files.reading_table import ReadingTable
from pipeline.settings import Settings
from tests.benchmarks import outlook_leaks
from tests.benchmarks.made_outlooks import COVARIATES, EVERY_STEPS, STEPS, MadeOutlooks, Weather, joined, with_group
from tests.benchmarks.outlook_leaks import check_leaks, check_revisions
from tests.benchmarks.outlooks import EXACT, ITSELF, WITH, WITHOUT, Losses, OutlookItself, report, unmet
from tests.random_models import random_forecaster
from tests.series import HOUR_US

HOURS: Final = 400
SENSORS: Final = ("a", "b")
PLAIN: Final = Settings(features=COVARIATES, targets=("TEMP",), horizon_steps=6, max_gap_steps=24)
SETTINGS: Final = with_group(PLAIN, SENSORS)


def readings() -> ReadingTable:
    """Two sensors; "b" is 2 above "a" and lacks a value in ten."""
    random = np.random.default_rng(0)
    hours = np.arange(HOURS)
    level = 10.0 * np.sin(hours / 4.0) + random.normal(size=HOURS)
    temperature = np.column_stack([level, level + 2.0])
    temperature[random.random(HOURS) < 0.1, 1] = np.nan
    wind = np.abs(random.normal(3.0, 1.0, (HOURS, 2)))
    return ReadingTable(
        SENSORS,
        np.tile([0, 1], HOURS),
        np.repeat(hours, 2) * HOUR_US,
        {"TEMP": temperature.ravel(), "WSPM": wind.ravel()},
        (),
    )


TABLE: Final = readings()
WEATHER: Final = Weather.of(TABLE, HOUR_US)


def steps(made: MadeOutlooks) -> Sequences:
    return joined(TABLE, SETTINGS, made)


def test_the_noise_grows_with_the_root_of_the_hours_ahead() -> None:
    long = Weather(0, HOUR_US, np.random.default_rng(0).normal(50.0, 3.0, (30_000, 2)))
    exact, noisy = (MadeOutlooks.of(long, noise, seed=0) for noise in (0.0, 0.5))
    deviation = np.nanstd(noisy.values - exact.values, axis=0)
    for hours in (1, 6, 24, 48):
        expected = 0.5 * long.daily_change() * np.sqrt(hours / 24.0)
        np.testing.assert_allclose(deviation[hours - 1], expected, rtol=0.05)
    assert MadeOutlooks.of(long, 0.5, seed=0).values.tobytes() == noisy.values.tobytes()


def test_outlooks_without_noise_are_the_means_of_the_hours_after_their_issue() -> None:
    made = MadeOutlooks.of(WEATHER, 0.0, seed=0)
    at = made.issued_us // HOUR_US
    assert set(np.diff(at).tolist()) == {EVERY_STEPS}
    np.testing.assert_array_equal(made.values[3], WEATHER.values[at[3] + 1 : at[3] + 1 + STEPS])
    assert np.isnan(made.values[-1][HOURS - 1 - at[-1] :]).all()


def test_readings_from_the_hour_after_an_issue_on_see_the_outlook() -> None:
    sequences = steps(MadeOutlooks.of(WEATHER, 0.0, seed=0))
    assert sequences.outlooks is not None
    assert sequences.outlook is not None
    seen = sequences.outlook != NO_OUTLOOK
    hour = sequences.timestamp_us // HOUR_US
    np.testing.assert_array_equal(seen, hour >= EVERY_STEPS)
    issued = sequences.outlooks.issued_us[sequences.outlook[seen]] // HOUR_US
    np.testing.assert_array_equal(hour[seen] - 1 - issued, hour[seen] % EVERY_STEPS)


def test_an_exact_outlook_of_one_sensor_is_its_own_forecast() -> None:
    one = ReadingTable(("a",), np.zeros(HOURS, int), np.arange(HOURS) * HOUR_US, {
        name: values[::2] for name, values in TABLE.values.items()
    }, ())  # fmt: skip
    settings = with_group(PLAIN, ("a",))
    sequences = joined(one, settings, MadeOutlooks.of(Weather.of(one, HOUR_US), 0.0, seed=0))
    found = OutlookItself(model_config(settings)).forecasts(sequences, 0, 20, 300)
    for step in range(6):
        np.testing.assert_allclose(found[:, 0, 0, step], one.values["TEMP"][21 + step : 301 + step], rtol=1e-6)


def test_the_checks_accept_outlooks_in_their_time_and_catch_early_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlook_leaks, "BESIDE_STEPS", 100)
    made = MadeOutlooks.of(WEATHER, 0.5, seed=0)
    forecaster = random_forecaster(model_config(SETTINGS))
    forecaster.fit_outlooks(steps(made), 2**62)
    cut_us = made.issue_before(200 * HOUR_US)
    check_revisions(forecaster, TABLE, SETTINGS, made, cut_us)
    check_leaks(forecaster, TABLE, SETTINGS, made, cut_us)
    early = replace(made, arrived_us=made.issued_us - EVERY_STEPS * HOUR_US)
    with pytest.raises(Leak, match="depends on readings or outlooks"):
        check_leaks(forecaster, TABLE, SETTINGS, early, cut_us)


def test_the_checks_say_if_outlooks_have_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlook_leaks, "BESIDE_STEPS", 100)
    made = MadeOutlooks.of(WEATHER, 0.5, seed=0)
    blind = random_forecaster(model_config(PLAIN))
    cut_us = made.issue_before(200 * HOUR_US)
    with pytest.raises(ValueError, match="changed no forecast at all"):
        check_revisions(blind, TABLE, SETTINGS, made, cut_us)
    with pytest.raises(ValueError, match="were not caught"):
        check_leaks(blind, TABLE, SETTINGS, made, cut_us)


def losses(loss: float) -> Losses:
    """Equal losses of TEMP at 24 steps ahead."""
    by_step = np.full((1, 24), loss)
    return Losses(("TEMP",), {"pinball": by_step, "mae": 2.0 * by_step}, np.full((1, 24), 10))


def test_the_table_has_the_mean_change_and_its_range_over_the_seeds() -> None:
    by_seed = {
        WITHOUT: [losses(1.0), losses(1.0)],
        WITH: [losses(0.5), losses(0.9)],
        EXACT: [losses(0.25), losses(0.25)],
        ITSELF: [losses(2.0), losses(2.0)],
    }
    text = report(by_seed, ("TEMP",))
    row = "1.000 | 0.700 | -30.0 % (-50.0 to -10.0) | 0.250 | -75.0 % (-75.0 to -75.0) | 2.000 |"
    assert f"| TEMP | 12 | {row}" in text
    assert f"| TEMP | 1 to 24 | {row}" in text
    assert unmet(by_seed) == []
    worse = {**by_seed, WITH: [losses(1.5), losses(0.9)]}
    assert unmet(worse)[0] == "TEMP, 12 hours ahead: 1.200 with outlooks and 1.000 without"
