"""Days of a calendar are settings, travel with a model, and lower its loss on such days."""

import re
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.backtest import model_predictor
from model.config import Adaptation, ModelConfig
from model.known_ahead import CalendarCovariate
from model.sequences import Sequences, split_by_time
from model.training import train
from model.training_options import TrainingOptions
from pipeline.errors import SettingsError
from pipeline.evaluation.evaluate import model_config
from pipeline.remarks.calendar import calendar_difference, calendar_remarks
from pipeline.settings import Settings, load_settings
from tests.series import joined

SECONDS = 1_000_000
DAY_US = 86_400 * SECONDS


def settings_for(**calendar: Any) -> Settings:
    return Settings(calendar=calendar)


def values_at(covariate: CalendarCovariate, *moments: str) -> list[float]:
    return covariate.at(np.array([int(np.datetime64(each, "us").astype(np.int64)) for each in moments])).tolist()


# --- settings ---------------------------------------------------------------------------------------------------------


def test_without_days_a_model_has_no_covariates() -> None:
    assert model_config(Settings()).calendar == ()
    assert model_config(settings_for(timezone="UTC")).calendar == ()


def test_days_begin_and_end_at_midnight_of_their_zone() -> None:
    settings = settings_for(timezone="Europe/Berlin", days={"fair": ["2016-03-26/2016-03-27", "2016-04-14"]})
    (fair,) = model_config(settings).calendar
    assert fair.name == "fair"
    # On 27 March the clocks went forward, so the day had 23 hours.
    assert values_at(fair, "2016-03-25T22:59", "2016-03-25T23:00") == [0, 1]
    assert values_at(fair, "2016-03-27T21:59", "2016-03-27T22:00") == [1, 0]
    assert values_at(fair, "2016-04-13T21:59", "2016-04-13T22:00", "2016-04-14T22:00") == [0, 1, 0]
    assert len(fair.changes_s) == 4  # neighbouring days have one beginning


def test_public_holidays_of_a_country_and_of_its_parts() -> None:
    china = {each.name: each for each in settings_for(country="CN", timezone="Asia/Shanghai").calendar_covariates}
    assert list(china) == ["holiday", "worked_weekend"]
    # 1 October 2015 in Shanghai begins at 16:00 UTC. On 10 October, a Saturday, people worked for it.
    assert values_at(china["holiday"], "2015-09-30T15:59", "2015-09-30T16:00", "2015-10-07T15:59") == [0, 1, 1]
    assert values_at(china["worked_weekend"], "2015-10-09T15:59", "2015-10-09T16:00", "2015-10-10T16:00") == [0, 1, 0]
    germany, bavaria = (settings_for(country=code, timezone="Europe/Berlin") for code in ("DE", "DE-BY"))
    epiphany = "2020-01-06T12:00"  # a holiday in the south
    found = [each.calendar_covariates for each in (germany, bavaria)]
    assert [[each.name for each in covariates] for covariates in found] == [["holiday"], ["holiday"]]
    assert [values_at(covariates[0], epiphany) for covariates in found] == [[0], [1]]


@pytest.mark.parametrize(
    ("zone", "skipped"),
    [("Pacific/Apia", "2011-12-30"), ("Pacific/Kiritimati", "1994-12-31"), ("Pacific/Kwajalein", "1993-08-21")],
)
def test_a_day_that_its_zone_skipped_has_no_time(zone: str, skipped: str) -> None:
    day = date.fromisoformat(skipped)
    before, after = day - timedelta(days=1), day + timedelta(days=1)
    lists = {
        "skipped": [skipped],
        "span": [f"{before}/{after}"],
        "around": [str(before), str(after)],
    }
    around, alone, span = model_config(settings_for(timezone=zone, days=lists)).calendar
    assert alone.changes_s == ()
    assert span.changes_s == around.changes_s
    begin, end = span.changes_s
    assert end - begin == 2 * 86_400


def test_dates_of_toml_need_no_quotes(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('[calendar]\ntimezone = "UTC"\n[calendar.days]\nfair = [2016-04-14, "2016-04-15"]\n')
    (fair,) = load_settings(path).calendar_covariates
    assert values_at(fair, "2016-04-14T00:00", "2016-04-15T23:59", "2016-04-16T00:00") == [1, 1, 0]


def test_days_come_from_variables_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMGRU_CALENDAR", '{"timezone": "UTC", "days": {"fair": ["2016-04-14"]}}')
    assert [each.name for each in load_settings().calendar_covariates] == ["fair"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('country = "CN"', "set timezone"),
        ('days = { fair = ["2016-04-14"] }', "set timezone"),
        ('timezone = "Shanghai"', "not a time zone"),
        ('timezone = "UTC"\ncountry = "XX"', "the holidays of 'XX' are not known; write the code of a country"),
        ('timezone = "UTC"\ncountry = "constants"', "write the code of a country in ISO 3166 such as DE"),
        ('timezone = "UTC"\ncountry = "__class__"', "the holidays of '__class__' are not known"),
        ('timezone = "UTC"\ncountry = "HolidayBase"', "the holidays of 'HolidayBase' are not known"),
        ('timezone = "UTC"\ncountry = ""', "the holidays of '' are not known"),
        ('timezone = "UTC"\ncountry = "DE-XX"', "write DE for the whole country, or for a part of it DE-BB, DE-BE, "),
        ('timezone = "UTC"\ncountry = "DE-"', "the holidays of 'DE-' are not known; write DE for the whole country"),
        ('timezone = "UTC"\ncountry = "LU-XX"', "write LU for the whole country"),
        ('timezone = "UTC"\ndays = { fair = ["14.04.2016"] }', "neither a date such as 2016-04-14"),
        ('timezone = "UTC"\ndays = { fair = ["2016-04-14/2016-04-10"] }', "must ascend"),
        ('timezone = "UTC"\ndays = { fair = ["1016-04-14"] }', "between the years 1900 and 2200"),
        ('timezone = "UTC"\ndays = { fair = ["1900-01-01/2199-01-01"] }', "must ascend"),
        ('timezone = "UTC"\ndays = { "" = ["2016-04-14"] }', "1 to 100 printable characters"),
        ('timezone = "UTC"\ncountry = "CN"\ndays = { holiday = ["2016-04-14"] }', "give the list another name"),
        ('zone = "UTC"', "zone"),
    ],
)
def test_an_invalid_calendar_is_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(f"[calendar]\n{text}\n")
    with pytest.raises(SettingsError, match=re.escape(told)):
        load_settings(path)


def test_the_calendar_is_not_in_the_fingerprint_because_models_carry_their_own() -> None:
    assert settings_for(timezone="UTC", days={"fair": ["2016-04-14"]}).fingerprint == Settings().fingerprint


# --- remarks ----------------------------------------------------------------------------------------------------------


def hours_from(day: str, hours: int) -> Sequences:
    times = int(np.datetime64(day, "us").astype(np.int64)) + np.arange(hours) * 3600 * SECONDS
    return joined([times], [np.ones((hours, 1))], ("value",), 3600 * SECONDS, max_gap_steps=24)


def test_a_covariate_without_a_day_in_the_readings_is_pointed_out() -> None:
    settings = settings_for(timezone="UTC", days={"fair": ["2016-04-14"], "always": ["2000-01-01/2030-01-01"]})
    told = "within the time of the readings, so its effect cannot be learned"
    assert calendar_remarks(hours_from("2016-04-10", 240), settings) == [f"always has every day {told}"]
    assert calendar_remarks(hours_from("2016-05-10", 240), settings) == [
        f"always has every day {told}",
        f"fair has no day {told}",
    ]


def test_a_model_with_other_days_than_the_settings_is_pointed_out() -> None:
    fair = settings_for(timezone="UTC", days={"fair": ["2016-04-14"]})
    config = model_config(fair)
    end = "; `streamgru retrain` trains a version with the days of the settings"
    assert calendar_difference(config, fair) is None
    assert calendar_difference(config, Settings()) == (f"was trained with fair, which the settings do not have{end}")
    later = settings_for(timezone="UTC", days={"fair": ["2017-04-14"]})
    assert calendar_difference(config, later) == f"was trained with other days of fair than the settings{end}"
    also = settings_for(timezone="UTC", days={"fair": ["2017-04-14"], "strike": ["2016-05-02"]})
    assert calendar_difference(config, also) == (
        f"was trained without strike and with other days of fair than the settings{end}"
    )


def test_only_the_list_of_days_that_changed_is_pointed_out() -> None:
    days = {"fair": ["2016-04-14"]}
    config = model_config(settings_for(timezone="UTC", country="DE", days=days))
    elsewhere = calendar_difference(config, settings_for(timezone="UTC", country="DE-BY", days=days))
    assert elsewhere is not None
    assert "other days of holiday than" in elsewhere
    moved = settings_for(timezone="UTC", country="DE", days={"fair": ["2016-04-15"]})
    assert "other days of fair than" in (calendar_difference(config, moved) or "")


# --- the loss on days off ---------------------------------------------------------------------------------------------

STEPS_PER_DAY = 4
WORK = ModelConfig(
    ("load",), ("load",), DAY_US // STEPS_PER_DAY, STEPS_PER_DAY, season_steps=STEPS_PER_DAY, max_gap_steps=24
)


def made_load(days: int = 1_200, sensors: int = 4) -> tuple[Sequences, CalendarCovariate]:
    """A made series: a daily cycle with noise that lies lower by 10 deviations of the noise on every 25th day or so."""
    random = np.random.default_rng(0)
    off = np.sort(random.choice(days, days // 25, replace=False))
    times = np.arange(days * STEPS_PER_DAY) * (DAY_US // STEPS_PER_DAY)
    low = np.where(np.isin(times // DAY_US, off), -5.0, 0.0)
    cycles = [4.0 * np.sin(2 * np.pi * (times % DAY_US) / DAY_US + sensor) for sensor in range(sensors)]
    values = [(10.0 + cycle + low + random.normal(0.0, 0.5, len(times)))[:, None] for cycle in cycles]
    sequences = joined([times] * sensors, values, ("load",), WORK.cadence_us, max_gap_steps=24)
    dates = [str(np.datetime64("1970-01-01") + int(day)) for day in off]
    (holiday,) = settings_for(timezone="UTC", days={"day off": dates}).calendar_covariates
    return sequences, holiday


def mean_losses(sequences: Sequences, holiday: CalendarCovariate, config: ModelConfig) -> tuple[float, float]:
    """Pinball loss of forecasts in the test part: for days off, and for all other days."""
    split = split_by_time(sequences, 0.1, 0.25)
    options = TrainingOptions(epochs=3, updates_per_epoch=60, hidden_size=16, threads=1)
    trained = train(config, options, sequences.slice_time(None, split.validation_end_us), split).forecaster
    predictor = model_predictor(trained, adaptation=Adaptation("light", True))
    ahead = np.arange(1, STEPS_PER_DAY + 1)
    levels = np.array(config.quantiles)[:, None]
    losses, off = [], []
    for sensor in range(len(sequences.sensors)):
        lo, hi = sequences.span(sensor, split.validation_end_us)
        error = sequences.labels(lo, hi, ahead, [0])[:, 0, None] - predictor.forecasts(sequences, sensor, lo, hi)[:, 0]
        losses.append(np.maximum(levels * error, (levels - 1.0) * error).mean(axis=1))
        off.append(holiday.at(sequences.timestamp_us[lo:hi, None] + ahead * config.cadence_us) > 0)
    loss, is_off = np.concatenate(losses), np.concatenate(off)
    return float(np.nanmean(loss[is_off])), float(np.nanmean(loss[~is_off]))


def test_days_off_that_are_known_ahead_are_forecast_far_better() -> None:
    """On a made series with a strong effect: seen 1.83 without and 0.44 with the days, on days off."""
    sequences, holiday = made_load()
    without = mean_losses(sequences, holiday, WORK)
    with_days = mean_losses(sequences, holiday, replace(WORK, calendar=(holiday,)))
    assert with_days[0] < 0.4 * without[0]
    assert with_days[1] < 1.05 * without[1]
