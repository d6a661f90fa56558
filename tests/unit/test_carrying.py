"""The studies of carried states compare the states that they name, and their page shows every result."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import NO_ADAPTATION, Adaptation, ModelConfig
from model.forecaster import Forecaster
from model.sequences import Split, build_sequences
from model.stepper import Stepper
from tests.benchmarks import carrying, carrying_report, disturbances, long_run
from tests.benchmarks.case import Case, by_sensor, carried, side_by_side
from tests.benchmarks.panel import Panel, Walk
from tests.series import HOUR_US, noisy_days

HOURS = 700
CONFIG = ModelConfig(("value",), ("value",), HOUR_US, 3, season_steps=24, hidden_size=8, sensors=("s0", "s1"))


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch) -> Case:
    """An untrained small model, with studies of few moments."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    values = np.sin(2 * np.pi * np.arange(HOURS) / 24) + random.normal(0, 0.2, (2, HOURS))
    values[0, 300] = np.nan
    sequences = build_sequences(
        ("s0", "s1"),
        np.array([0, HOURS, 2 * HOURS]),
        np.tile(np.arange(HOURS) * HOUR_US, 2),
        values.reshape(-1, 1),
        np.arange(2 * HOURS),
        features=("value",),
        cadence_us=HOUR_US,
        max_gap_steps=12,
    )
    for module, name, value in (
        (long_run, "MOMENTS", 5),
        (long_run, "WINDOWS", (1, 4, 30)),
        (long_run, "TILED_STEPS", 400),
        (disturbances, "MOMENTS", 3),
        (disturbances, "AFTER_CHANGE", (1, 20)),
        (disturbances, "GAPS", (1, 5, 20)),
    ):
        monkeypatch.setattr(module, name, value)
    return Case(Forecaster(CONFIG).eval(), sequences, Split(300 * HOUR_US, 400 * HOUR_US), np.ones((2, 1)), seed=1)


def test_a_walk_takes_each_sensor_through_its_own_readings(case: Case) -> None:
    panel, stepper = case.panel, Stepper(case.forecaster)
    moments = np.array([50, 120])
    at = carried(case, NO_ADAPTATION, moments.tolist())
    names, times, values = side_by_side(panel, moments + 1, moments + 11)
    walk = Walk(stepper, names, np.concatenate([at[50], at[120]]))
    found = by_sensor(walk.go(times, values, [9]), 2)
    alone = Walk.blank(stepper, panel.sensors)
    expected = alone.go(panel.timestamp_us, panel.values, moments + 10)
    np.testing.assert_array_equal(found[:, :, 0], expected)
    np.testing.assert_array_equal(case.labels([60])[1, 0, 0], panel.values[1, 61:64, 0])


def test_a_panel_of_sensors_with_different_times_is_refused() -> None:
    with pytest.raises(ValueError, match="at the same times"):
        Panel.of(noisy_days())


@pytest.mark.parametrize("adaptation", [NO_ADAPTATION, Adaptation("light", True)], ids=lambda one: one.level)
def test_every_study_has_a_result_and_a_section_on_the_page(case: Case, adaptation: Adaptation, tmp_path: Path) -> None:
    found = {
        "windows": long_run.windows(case, adaptation),
        "tiled": long_run.tiled(case, adaptation),
        "rescaled": disturbances.rescaled(case, adaptation),
        "swap": disturbances.swap(case, case, adaptation),
        "gaps": disturbances.gaps(case, adaptation),
    }
    for study, result in found.items():
        path = carrying.result_path(tmp_path, study, carrying.STUDIES[study][0], adaptation.level, 0)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(result))
    page = "\n\n".join(carrying_report.sections(tmp_path, (0, 1)))
    assert page.count("\n## ") + page.startswith("## ") == len(found)
    assert "nan" not in page
    # The old and the new model are the same, so its states need no warm-up.
    swapped = found["swap"]["errors"]
    assert swapped["the old model's states"] == swapped["never interrupted"] == swapped["the old model"]
    # Every tile repeats the test part, so its errors are about the same.
    assert found["tiled"]["tiles"][-1]["mse"] == pytest.approx(found["tiled"]["tiles"][1]["mse"], rel=0.1)
    whole, longest = (found["gaps"]["by_gap"][gap]["model"][0]["mse"] for gap in ("0", "20"))
    assert whole != longest


def test_studies_without_models_write_no_results(tmp_path: Path) -> None:
    carrying.run_all([], (0,), tmp_path)
    assert not list(tmp_path.iterdir())
