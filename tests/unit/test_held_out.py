"""The benchmark of held-out stations compares two models over the same labels, by age, and runs on a small file."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from model.artefact import save_artefact
from model.config import Adaptation
from model.forecaster import Forecaster
from pipeline.evaluation.evaluate import model_config
from pipeline.settings import load_settings
from tests.benchmarks import held_out
from tests.benchmarks.held_out import AGES, EDGES, Losses, Pair, beginnings, compared, of_sensors
from tests.random_models import random_forecaster
from tests.series import CONFIG, HOUR_US, noisy_days

HOURS = EDGES[-1] + CONFIG.horizon_steps


def pair(held_out: float, trained_on: float) -> Pair:
    """Means of 10 labels at each age, of one target."""
    shape = (len(EDGES) - 1, 1)
    labels = np.full(shape, 10)
    return Pair(Losses(np.full(shape, 10 * held_out), labels), Losses(np.full(shape, 10 * trained_on), labels))


def test_every_beginning_leaves_time_for_all_ages_and_the_last_horizon() -> None:
    found = beginnings(0, 1_000 * HOUR_US, HOUR_US, 24)
    assert [begin_us // HOUR_US for begin_us in found] == [0, 173]
    assert (found[-1] // HOUR_US) + EDGES[-1] + 24 <= 1_000


def test_models_with_equal_forecasts_lose_the_same_and_each_label_counts_at_one_age() -> None:
    sequences = noisy_days(sensors=2, hours=HOURS)
    model = random_forecaster(CONFIG)
    found = compared(model, model, Adaptation("light", True), sequences, [0])
    assert [found.worse(age, 0) for age in AGES] == [0.0] * len(AGES)
    most = 2 * CONFIG.horizon_steps * np.diff(EDGES)
    assert (found.held_out.labels[:, 0] <= most).all()
    assert (found.held_out.labels[:, 0] > 0.8 * most).all()  # a few readings are missing
    np.testing.assert_array_equal(found.held_out.labels, found.trained_on.labels)


def test_only_the_readings_after_a_beginning_are_seen() -> None:
    sequences = noisy_days(sensors=1, hours=HOURS + 100)
    begin_us = 100 * HOUR_US
    earlier = sequences.timestamp_us < begin_us
    changed = replace(sequences, values=np.where(earlier[:, None], 1e6, sequences.values))
    model = random_forecaster(CONFIG)
    losses = [compared(model, model, Adaptation(), data, [begin_us]).held_out.loss for data in (sequences, changed)]
    np.testing.assert_array_equal(*losses)


def test_the_steps_of_some_sensors_are_those_of_the_data_set() -> None:
    sequences = noisy_days(sensors=3)
    found = of_sensors(sequences, [2, 0])
    assert found.sensors == ("s2", "s0")
    lo, hi = sequences.span(2)
    np.testing.assert_array_equal(found.values[: hi - lo], sequences.values[lo:hi])


def test_a_share_above_the_promise_is_named() -> None:
    kept, missed = [[pair(1.1, 1.0)]], [[pair(1.3, 1.0)], [pair(1.1, 1.0)]]
    assert held_out.unmet(("level",), kept) == []
    assert held_out.unmet(("level",), missed) == [
        f"level, {age}: +20.0 % worse, must be at most +15.0 %" for age in ("day 2", "days 2 to 8")
    ]


def test_the_table_has_the_mean_share_and_its_range_over_the_seeds() -> None:
    by_seed = [[pair(1.0 + 0.1 * seed, 1.0)] * held_out.FOLDS for seed in (0, 2)]
    assert "| level | day 2 | 1.100 | 1.000 | +10.0 % (+0.0 % to +20.0 %) | at most +15.0 % |" in held_out.report(
        ("level",), by_seed
    )


def test_the_program_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = load_settings(held_out.SETTINGS)
    stations = ("a", "b", "c")
    path = made_file(tmp_path / "air.parquet", stations, settings.features)
    torch.manual_seed(0)
    for name, known in (
        ("all", stations),
        *((f"without-{out}", stations[:out] + stations[out + 1 :]) for out in range(3)),
    ):
        config = replace(model_config(settings), sensors=known, hidden_size=8)
        save_artefact(Forecaster(config), tmp_path / "seed-0" / name)
    page = tmp_path / "HELD_OUT.md"
    words = ["held_out", str(path), "--seeds", "0", "--runs", str(tmp_path), "--report", str(page)]
    monkeypatch.setattr(sys, "argv", words)
    held_out.main()  # untrained models hardly differ, so that the promise is kept
    assert "the tables are in" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Stations that training has not seen\n")
    for target in settings.targets:
        assert f"| {target} | day 2 |" in text


def made_file(path: Path, stations: tuple[str, ...], features: tuple[str, ...]) -> Path:
    """Hourly random walks, of which a fifth is long enough for all ages."""
    random = np.random.default_rng(0)
    hours = 5 * (EDGES[-1] + 60)
    times = pl.datetime_range(
        pl.datetime(2020, 1, 1), pl.datetime(2020, 1, 1) + pl.duration(hours=hours - 1), "1h", eager=True
    )
    frames = []
    for station in stations:
        values = 50.0 + np.abs(np.cumsum(random.normal(size=(hours, len(features))), axis=0))
        frames.append(
            pl.DataFrame(
                {"timestamp": times, "station": station, **dict(zip(features, values.T, strict=True))},
            )
        )
    pl.concat(frames).write_parquet(path)
    return path
