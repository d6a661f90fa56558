"""The benchmark of bounds counts impossible quantiles, reads counts from files, and tabulates its results."""

from pathlib import Path

import numpy as np
import pytest

from model.backtest import SeasonalNaive, backtest
from model.bounds import Bounds
from tests.benchmarks import bounds
from tests.benchmarks.bounds import MOVED, ROOTS, WITHOUT, Problem, Watched
from tests.series import CONFIG, HOUR_US, noisy_days


def test_impossible_quantiles_are_counted() -> None:
    sequences = noisy_days(hours=300)
    start_us = 250 * HOUR_US
    inner = SeasonalNaive(CONFIG).fit(sequences, start_us)
    counts = {}
    for limits in (Bounds(), Bounds(minimum=0.0), Bounds(count=True), Bounds(maximum=1e6)):
        watched = Watched(inner, "naive", limits)
        backtest([watched], sequences, CONFIG, start_us)
        counts[str(limits)] = (watched.outside, watched.fractions)
    outside = counts["minimum 0"][0]
    assert 0 < outside < watched.quantiles
    assert counts == {
        "no bounds": (0, 0),
        "minimum 0": (outside, 0),
        "a count": (outside, watched.quantiles),
        "maximum 1e+06": (0, 0),
    }


@pytest.fixture
def cars(tmp_path: Path) -> Problem:
    """Two sensors that count cars: few at night, up to a hundred by day."""
    random = np.random.default_rng(0)
    minutes = np.datetime64("2024-01-01T00:00:00") + 5 * np.arange(900).astype("timedelta64[m]")
    rate = 40.0 * np.maximum(np.sin(np.arange(900) * 2.0 * np.pi / 288.0), 0.01) ** 2
    paths = [tmp_path / "north.csv", tmp_path / "south.csv"]
    for path in paths:
        rows = [f"{time},{count}" for time, count in zip(minutes, random.poisson(rate), strict=True)]
        path.write_text("\n".join(["timestamp,value", *rows]) + "\n", encoding="utf-8")
    problem = bounds.counts(paths, 3)
    training = problem.settings.training.model_copy(update={"hidden_size": 4})
    return Problem(problem.name, problem.settings.model_copy(update={"training": training}), problem.sequences)


def test_forecasts_keep_bounds_that_the_same_weights_break_without(cars: Problem) -> None:
    assert cars.sequences.sensors == ("north", "south")
    found = bounds.compare(cars, seed=0, epochs=1)
    rows = found["rows"]
    assert set(rows) == {WITHOUT, MOVED} | ({ROOTS} if found["roots"] else set())
    assert found["roots"] == (found["by_roots"] < 0.99 * found["by_values"])
    assert rows[WITHOUT]["outside"] > 0
    assert rows[WITHOUT]["fractions"] > 0
    assert all(row["outside"] == row["fractions"] == 0 for name, row in rows.items() if name != WITHOUT)
    assert rows[MOVED]["pinball"] < rows[WITHOUT]["pinball"]


def test_the_tables_have_means_and_deviations_over_seeds() -> None:
    def result(seed: int, pinball: float, outside: int) -> dict[str, object]:
        row = {"pinball": pinball, "mae": 1.0, "coverage": 0.8, "width": 2.0, "quantiles": 1_000, "fractions": 0}
        rows = {WITHOUT: row | {"outside": outside}, MOVED: row | {"outside": 0}}
        return {"target": "rain", "seed": seed, "by_values": 0.5, "by_roots": 0.4, "roots": True, "rows": rows}

    text = bounds.report([result(0, 0.2, 10), result(1, 0.4, 30)])
    assert text.startswith("### rain\n\nTraining chose square roots: ")
    assert f"| {WITHOUT} | 0.300 ± 0.141 | 1.000 ± 0.000 | 80.0% | 2.000 ± 0.000 | 2.00% | 0 |" in text
    assert f"| {MOVED} | 0.300 ± 0.141 | 1.000 ± 0.000 | 80.0% | 2.000 ± 0.000 | 0 | 0 |" in text
