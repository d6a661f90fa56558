"""``streamgru backtest``: splits, the report, and the command over a history table."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from deploy.commands.backtest import backtest
from deploy.context import Context
from model.artefact import save_artefact
from model.backtest import Persistence
from model.backtest import backtest as score
from model.forecaster import Forecaster
from model.sequences import Sequences, Split
from pipeline.errors import DataFileError, HistoryError, ModelUnusable, SettingsError
from pipeline.evaluation.evaluate import after_selection, model_config, split_by
from pipeline.evaluation.report import read_trained_model
from pipeline.messages import iso_timestamp
from pipeline.settings import Settings
from pipeline.settings.outlooks import OutlookSettings
from tests.series import HOUR_US, noisy_days


def test_fractions_count_readings() -> None:
    sequences = noisy_days(sensors=1, hours=420)
    same, split = split_by("0.5,0.25,0.25", sequences)
    assert same is sequences
    assert sequences.observed[: sequences.span(0, None, split.train_end_us)[1]].sum() == 200
    assert sequences.observed[: sequences.span(0, None, split.validation_end_us)[1]].sum() == 300


def test_months_have_thirty_days_and_later_readings_are_left_out() -> None:
    sequences = noisy_days(sensors=2, hours=5 * 720)
    first_us = int(sequences.timestamp_us.min())
    within, split = split_by("2/1/1", sequences)
    assert split == Split(first_us + 2 * 720 * HOUR_US, first_us + 3 * 720 * HOUR_US)
    assert within.timestamp_us.max() < first_us + 4 * 720 * HOUR_US


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("0.7,0.3", "three positive numbers"),
        ("a,b,c", "three positive numbers"),
        ("0.7,0.2,-0.1", "three positive numbers"),
        ("0.7,0.2,0.2", "must sum to 1"),
        ("12/4/4", "would begin at 1971-"),
        ("0.999,0.0005,0.0005", "too few to split"),
    ],
)
def test_an_impossible_split_is_refused_with_the_reason(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        split_by(text, noisy_days(sensors=1, hours=420))


SPLIT = Split(100 * HOUR_US, 200 * HOUR_US)


@pytest.fixture
def days() -> Sequences:
    return noisy_days(sensors=2, hours=420)


@pytest.mark.parametrize(("hour", "test_from_hour"), [(150, 200), (200, 200), (300, 300)])
def test_the_test_part_begins_after_the_readings_that_a_version_was_chosen_on(
    days: Sequences, hour: int, test_from_hour: int
) -> None:
    trained = replace(model_config(Settings()), sensors=("s1",))
    moved = after_selection(SPLIT, days, trained, iso_timestamp(hour * HOUR_US))
    assert moved == Split(SPLIT.train_end_us, test_from_hour * HOUR_US)


# Each sensor's last reading is at hour 419, and the horizon is 24 hours.
@pytest.mark.parametrize("hour", [397, 744])
def test_a_version_that_has_seen_all_outcomes_is_not_scored(days: Sequences, hour: int) -> None:
    trained = replace(model_config(Settings()), sensors=("s1",))
    until = iso_timestamp(hour * HOUR_US)
    with pytest.raises(ValueError, match=rf"until {until}, .*: at most 0 forecasts of a sensor remain"):
        after_selection(SPLIT, days, trained, until)


def test_a_split_that_leaves_too_few_forecasts_is_refused(days: Sequences) -> None:
    trained = replace(model_config(Settings()), sensors=("s1",))
    start_us = 300 * HOUR_US
    whole = replace(days, values=np.ones_like(days.values), observed=np.ones_like(days.observed))
    level = replace(trained, features=whole.features, targets=whole.features[:1])
    scores = score([Persistence(level).fit(whole, 0)], whole, level, start_us)
    left = int(scores["persistence"].count[..., -1].max())
    assert after_selection(SPLIT, whole, trained, iso_timestamp(start_us), left).validation_end_us == start_us
    with pytest.raises(
        ValueError, match=f"at most {left} forecasts of a sensor remain .* at least {left + 1} are needed"
    ):
        after_selection(SPLIT, whole, trained, iso_timestamp(start_us), left + 1)


def test_one_reading_with_a_clock_ahead_does_not_count_as_more_to_score(days: Sequences) -> None:
    trained = replace(model_config(Settings()), sensors=("s1",))
    ahead = days.timestamp_us.copy()
    ahead[-1] = 100_000 * HOUR_US
    with pytest.raises(ValueError, match="at most 0 forecasts of a sensor"):
        after_selection(SPLIT, replace(days, timestamp_us=ahead), trained, iso_timestamp(456 * HOUR_US))


def test_an_invalid_selection_time_is_named(days: Sequences) -> None:
    trained = replace(model_config(Settings()), sensors=("s1",))
    with pytest.raises(ValueError, match="'2024-01-01', is not a time"):
        after_selection(SPLIT, days, trained, "2024-01-01")


def test_a_version_trained_on_other_sensors_keeps_the_split(days: Sequences) -> None:
    trained = replace(model_config(Settings()), sensors=("elsewhere",))
    assert after_selection(SPLIT, days, trained, "1970-02-01T00:00:00Z") == SPLIT


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        home=tmp_path,
        features=("level", "other"),
        targets=("level",),
        horizon_steps=6,
        training={"hidden_size": 4, "epochs": 1, "budget_s": 30.0, "device": "cpu"},
    )


def test_the_command_scores_a_model_trained_on_a_wide_file(settings: Settings, tmp_path: Path) -> None:
    hours = np.arange(600)
    wide = pl.DataFrame(
        {
            "date": np.datetime64("2024-01-01", "us") + hours * np.timedelta64(1, "h"),
            "north": np.sin(2 * np.pi * hours / 24),
            "south": np.cos(2 * np.pi * hours / 24),
        }
    )
    wide.write_csv(tmp_path / "wide.csv", datetime_format="%Y-%m-%d %H:%M:%S")
    layout = [str(tmp_path / "wide.csv"), "--columns-as-sensors", "--timezone", "UTC"]
    options = ["--standardise", "--split", "0.6,0.2,0.2", "--horizon", "4", "--seed", "1", "--metrics", "all"]
    options += ["--adaptation", "light", "--adaptation", "off"]
    more = ["--retrain-every", "3", "--baseline", "plain"]
    alone = Context(lambda: settings.model_copy(update={"features": ("level",)}))
    result = CliRunner().invoke(backtest, [*layout, *options, *more], obj=alone)
    assert result.exit_code == 0, result.output
    for words in ("mase", "crps", "winkler", "coverage of the intervals", "forecasts worst", "north"):
        assert words in result.output
    for words in ("streamgru", "adaptive AR(24)", "seasonal naive", "persistence", "gain"):
        assert words in result.output
    folder = settings.home / "backtests" / "wide-4"
    assert {file.name for file in folder.iterdir()} == {
        *("scores.json", "scores.png", "forecasts.png", "state_age.png", "loss.png", "model")
    }
    report = json.loads((folder / "scores.json").read_text())
    assert (report["sensors"], report["seed"], report["model"]["horizon_steps"]) == (2, 1, 4)
    assert report["scores"]["seasonal naive"]["scaled"]["mse"] < 1e-9
    models = ["streamgru", "streamgru, off", "streamgru, every 3 days", "plain GRU"]
    assert list(report["scores"])[:4] == models
    for words in ("retrained at 2024-01-24T00:00:00Z, epoch 1", "plain, epoch 1", *models):
        assert words in result.output
    mine = report["scores"]["streamgru"]
    assert math.isfinite(mine["scaled"]["pinball"])
    assert len(mine["by_horizon"]["level"]["mae"]) == 4
    assert set(mine["scaled"]) == {"mse", "mae", "pinball", "mase", "crps", "coverage", "winkler", "width"}
    assert [round(interval["nominal"], 6) for interval in mine["intervals"]] == [0.8]
    against = report["skill"]["persistence"]["mae"]
    assert against["all"] == pytest.approx(1 - mine["scaled"]["mae"] / report["scores"]["persistence"]["scaled"]["mae"])
    assert len(against["by_horizon"]) == 4
    again = [*layout, *options, "--model", str(folder), "--out", str(tmp_path / "again")]
    result = CliRunner().invoke(backtest, again, obj=alone)
    assert result.exit_code == 0, result.output
    assert "epoch 1" not in result.output
    repeated = json.loads((tmp_path / "again" / "scores.json").read_text())
    assert "the test part begins there" not in result.stderr
    bounds = ("train_until", "validate_until", "selected_until")
    assert [repeated[name] for name in bounds] == [report[name] for name in bounds]
    assert repeated["training"] == report["training"]
    assert repeated["scores"] == {name: report["scores"][name] for name in repeated["scores"]}


@pytest.fixture
def half_hourly(tmp_path: Path) -> Path:
    file = tmp_path / "taxi.csv"
    times = np.datetime64("2024-01-01") + np.arange(600) * np.timedelta64(30, "m")
    file.write_text("time,level\n" + "".join(f"{time}:00Z,{number % 48}\n" for number, time in enumerate(times)))
    return file


def run_on(file: Path, settings: Settings, *more: str) -> tuple[str, int]:
    """The command's stderr, and the cadence in microseconds."""
    command = [str(file), "--horizon", "4", *more]
    result = CliRunner().invoke(backtest, command, obj=Context(lambda: settings), catch_exceptions=False)
    report = json.loads((settings.home / "backtests" / "taxi-4" / "scores.json").read_text())
    return result.stderr, report["model"]["cadence_us"]


@pytest.mark.usefixtures("no_plots")
def test_the_cadence_comes_from_the_file_unless_it_is_set(settings: Settings, half_hourly: Path) -> None:
    settings = settings.model_copy(update={"features": ("level",)})
    told, cadence_us = run_on(half_hourly, settings)
    assert cadence_us == HOUR_US // 2
    assert "note: the cadence is 1800 s, the usual time between two readings here, with a season of 48 steps" in told
    assert "warning" not in told
    hourly = settings.model_copy(update={"cadence_s": 3600.0})
    for chosen, more in ((settings, ("--cadence", "3600")), (hourly, ())):
        told, cadence_us = run_on(half_hourly, chosen, *more)
        assert cadence_us == HOUR_US
        assert "warning: readings usually come 1800 s apart, but the cadence is 3600 s" in told
        assert "note" not in told
    model, out = settings.home / "backtests" / "taxi-4", settings.home / "again"
    told, _ = run_on(half_hourly, settings, "--model", str(model), "--out", str(out))
    assert json.loads((out / "scores.json").read_text())["model"]["cadence_us"] == HOUR_US
    assert "but the cadence is 3600 s" in told
    assert "the test part begins there" not in told


@pytest.mark.usefixtures("no_plots")
def test_outlooks_of_files_come_between_the_readings(settings: Settings, half_hourly: Path) -> None:
    named = OutlookSettings(covariates=("level",))
    chosen = settings.model_copy(update={"features": ("level",), "outlooks": named})
    outlooks = half_hourly.with_name("outlooks.csv")
    start, half_hour = np.datetime64("2024-01-01"), np.timedelta64(30, "m")
    rows = [
        f"{start + issued * half_hour}:00Z,{start + time * half_hour}:00Z,taxi,{time % 48}\n"
        for issued in range(0, 600, 4)
        for time in range(issued, issued + 8)
    ]
    outlooks.write_text("made,time,sensor,level\n" + "".join(rows))
    told, _ = run_on(half_hourly, chosen)
    assert "note: without --outlooks the model is scored as if no outlook had come" in told
    folder = settings.home / "backtests" / "taxi-4"
    without = json.loads((folder / "scores.json").read_text())
    out = settings.home / "again"
    layout = ("--time-column", "time", "--sensor-column", "sensor")
    with_sensor = half_hourly.with_name("taxi2.csv")
    lines = half_hourly.read_text().splitlines()
    with_sensor.write_text("\n".join([f"{lines[0]},sensor", *(f"{line},taxi" for line in lines[1:])]))
    given = ("--outlooks", str(outlooks), "--issued-column", "made", "--out", str(out), *layout)
    told, _ = run_on(with_sensor, chosen, *given)
    assert "without --outlooks" not in told
    report = json.loads((out / "scores.json").read_text())
    assert report["outlooks"] == [str(outlooks)]
    assert report["scores"]["persistence"] == without["scores"]["persistence"]
    assert report["scores"]["streamgru"]["scaled"] != without["scores"]["streamgru"]["scaled"]
    alone = Context(lambda: chosen)
    for command in (["--outlooks", str(outlooks)], [str(half_hourly), "--issued-column", "made"]):
        assert CliRunner().invoke(backtest, command, obj=alone).exit_code == 2


def test_a_file_whose_features_are_all_empty_is_named_with_the_settings_to_change(
    settings: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "empty.csv"
    for text in ("time,level\n2024-01-01T00:00Z,\n2024-01-01T01:00Z,\n", "time,level\n2024-01-01T00:00Z,nan\n"):
        file.write_text(text)
        chosen = settings.model_copy(update={"features": ("level",)})
        result = CliRunner().invoke(backtest, [str(file)], obj=Context(lambda chosen=chosen: chosen))
        assert isinstance(result.exception, DataFileError)
        assert "empty.csv: no row has a value of level; set features (and targets) to" in str(result.exception)


def test_an_invalid_cadence_or_one_that_contradicts_the_model_is_refused(settings: Settings, half_hourly: Path) -> None:
    alone = Context(lambda: settings.model_copy(update={"features": ("level",)}))
    for cadence in ("nan", "inf", "0"):
        result = CliRunner().invoke(backtest, [str(half_hourly), "--cadence", cadence], obj=alone)
        assert (result.exit_code, type(result.exception)) == (2, SystemExit)
    save_artefact(Forecaster(model_config(settings)), settings.home / "made" / "model")
    (settings.home / "made" / "scores.json").write_text('{"training": null}')
    arguments = [str(half_hourly), "--cadence", "1800", "--model", str(settings.home / "made")]
    result = CliRunner().invoke(backtest, arguments, obj=alone)
    assert result.exit_code == 2
    assert "trained at a cadence of 3600 s, which --cadence 1800 contradicts" in result.output


def made_before(settings: Settings, name: str = "made", **noted: object) -> Path:
    """The folder of an earlier back-test of a model for sensor ``taxi``; ``noted`` is part of its scores.json."""
    folder = settings.home / name
    config = replace(model_config(settings), cadence_us=HOUR_US // 2, sensors=("taxi",))
    save_artefact(Forecaster(config), folder / "model")
    (folder / "scores.json").write_text(json.dumps({"training": None, **noted}))
    return folder


def test_a_model_that_does_not_fit_the_settings_is_refused(settings: Settings, half_hourly: Path) -> None:
    folder = made_before(settings)
    swapped = settings.model_copy(update={"features": ("other", "level")})
    arguments = [str(half_hourly), "--model", str(folder)]
    result = CliRunner().invoke(backtest, arguments, obj=Context(lambda: swapped))
    assert isinstance(result.exception, ModelUnusable)
    for words in (f"the model in {folder} does not fit the settings: ", "made for features", "the settings say"):
        assert words in str(result.exception)


def test_a_horizon_that_contradicts_the_model_is_refused(settings: Settings, half_hourly: Path) -> None:
    arguments = [str(half_hourly), "--model", str(made_before(settings)), "--horizon", "24"]
    result = CliRunner().invoke(backtest, arguments, obj=Context(lambda: settings))
    assert result.exit_code == 2
    assert "the model forecasts 6 steps, which --horizon 24 contradicts" in result.output


def test_the_results_in_the_folder_of_the_model_are_not_replaced(settings: Settings, half_hourly: Path) -> None:
    folder = made_before(settings, "backtests/taxi-6")
    before = (folder / "scores.json").read_text()
    for more in ([], ["--out", str(folder)], ["--out", str(folder / ".." / "taxi-6")]):
        arguments = [str(half_hourly), "--model", str(folder), *more]
        result = CliRunner().invoke(backtest, arguments, obj=Context(lambda: settings))
        assert result.exit_code == 2
        assert "give another folder with --out" in result.output
    assert (folder / "scores.json").read_text() == before


# The file holds 600 readings, half an hour apart, from 2024-01-01 on.
@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize(
    ("noted", "told", "validate_until"),
    [
        ({"validate_until": "2024-01-10T00:00:00Z"}, "note: the model in ", "2024-01-10T00:00:00Z"),
        (
            {"validate_until": "2024-01-05T00:00:00Z", "selected_until": "2024-01-10T00:00:00Z"},
            "note: the model in ",
            "2024-01-10T00:00:00Z",
        ),
        ({"validate_until": "2024-01-05T00:00:00Z"}, "", "2024-01-07T12:00:00Z"),
        ({}, "warning: the model in ", "2024-01-07T12:00:00Z"),
    ],
)
def test_a_model_is_not_scored_on_readings_that_it_was_chosen_on(
    settings: Settings, half_hourly: Path, noted: dict[str, object], told: str, validate_until: str
) -> None:
    settings = settings.model_copy(update={"features": ("level",)})
    folder, out = made_before(settings, **noted), settings.home / "out"
    arguments = [str(half_hourly), "--model", str(folder), "--split", "0.3,0.22,0.48", "--out", str(out)]
    result = CliRunner().invoke(backtest, arguments, obj=Context(lambda: settings), catch_exceptions=False)
    assert result.exit_code == 0
    about = [line for line in result.stderr.splitlines() if str(folder) in line]
    assert len(about) == bool(told)
    assert all(line.startswith(told) for line in about)
    scores = json.loads((out / "scores.json").read_text())
    assert scores["validate_until"] == validate_until
    assert read_trained_model(out).selected_until == read_trained_model(folder).selected_until


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--budget", "inf"),
        ("--budget", "nan"),
        ("--retrain-every", "inf"),
        ("--seed", "-1"),
        ("--seed", str(2**64)),
    ],
)
def test_invalid_numbers_are_refused_before_the_training(
    settings: Settings, half_hourly: Path, option: str, value: str
) -> None:
    alone = Context(lambda: settings.model_copy(update={"features": ("level",)}))
    result = CliRunner().invoke(backtest, [str(half_hourly), option, value], obj=alone)
    assert (result.exit_code, type(result.exception)) == (2, SystemExit)
    assert f"Invalid value for '{option}': {value} is not" in result.stderr
    assert "epoch" not in result.output


def test_a_folder_without_a_model_is_named(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "level.csv"
    rows = (f"{np.datetime64('2024-01-01') + np.timedelta64(hour, 'h')}:00:00Z,{hour % 24}\n" for hour in range(600))
    file.write_text("time,level\n" + "".join(rows))
    alone = Context(lambda: settings.model_copy(update={"features": ("level",)}))
    result = CliRunner().invoke(backtest, [str(file), "--model", str(tmp_path)], obj=alone)
    assert isinstance(result.exception, DataFileError)
    assert f"{tmp_path} does not contain the results of a back-test" in str(result.exception)


def test_an_unknown_metric_is_named_with_the_known_ones(settings: Settings) -> None:
    result = CliRunner().invoke(backtest, ["--metrics", "crps,rmse"], obj=Context(lambda: settings))
    assert result.exit_code == 2
    assert "unknown metrics: rmse; choose from mase, crps, coverage" in result.output


def test_a_file_with_too_few_readings_is_named_with_the_reason(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "short.csv"
    file.write_text("time,level\n" + "".join(f"2024-01-01T{hour:02}:00:00Z,{hour}\n" for hour in range(5)))
    result = CliRunner().invoke(backtest, [str(file)], obj=Context(lambda: settings))
    assert isinstance(result.exception, DataFileError)
    assert "short.csv cannot be back-tested on: 5 readings are too few to split" in str(result.exception)


def test_an_unusable_device_is_an_error_of_the_settings_not_of_the_file(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "level.csv"
    rows = (f"{np.datetime64('2024-01-01') + np.timedelta64(hour, 'h')}:00:00Z,{hour % 24}\n" for hour in range(600))
    file.write_text("time,level\n" + "".join(rows))
    training = settings.training.model_copy(update={"device": "cuda:99"})
    alone = Context(lambda: settings.model_copy(update={"features": ("level",), "training": training}))
    result = CliRunner().invoke(backtest, [str(file), "--out", str(tmp_path / "scores")], obj=alone)
    assert isinstance(result.exception, SettingsError)
    assert str(result.exception).startswith("training.device: device cuda:99 cannot be used here")


def test_a_folder_that_cannot_be_written_is_named_before_the_training(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "level.csv"
    rows = (f"{np.datetime64('2024-01-01') + np.timedelta64(hour, 'h')}:00:00Z,{hour % 24}\n" for hour in range(600))
    file.write_text("time,level\n" + "".join(rows))
    arguments = [str(file), "--out", str(file / "scores")]
    alone = Context(lambda: settings.model_copy(update={"features": ("level",)}))
    result = CliRunner().invoke(backtest, arguments, obj=alone)
    assert isinstance(result.exception, DataFileError)
    assert f"cannot be written to {file / 'scores'}: Not a directory; name another folder" in str(result.exception)
    assert "epoch" not in result.output


def test_an_empty_history_is_named(settings: Settings) -> None:
    result = CliRunner().invoke(backtest, [], obj=Context(lambda: settings))
    assert isinstance(result.exception, HistoryError)
    assert "no history table" in str(result.exception)
