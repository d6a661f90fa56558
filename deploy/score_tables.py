"""Scores of a back-test as tables for the terminal."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from rich import box
from rich.table import Table

from model.metrics import Interval, Metric, Scores, skill
from pipeline.evaluation.evaluate import MODEL
from pipeline.text.visible_text import visible

if TYPE_CHECKING:
    from pipeline.evaluation.evaluate import Evaluation

SHOWN: Final[tuple[Metric, ...]] = ("mse", "mae", "pinball")
WORST_SENSORS: Final = 5


def score_table(done: "Evaluation", name: str, unit: str, also: Sequence[Metric]) -> Table:
    """Scores of every predictor at some horizons and over all; errors are in each sensor's ``unit``.

    The last column shows by how much the model's error is lower than the predictor's.

    Args:
        also: metrics shown besides ``SHOWN``.
    """
    table = _table(f"{visible(name)}: errors in units of each sensor's {unit}, on the test part")
    table.add_column("ahead", justify="right")
    table.add_column("forecast", no_wrap=True)
    for metric in (*SHOWN, *also):
        table.add_column(metric, justify="right")
    table.add_column(f"{MODEL}'s gain in {', '.join(SHOWN)}", justify="right")
    h, season = done.config.horizon_steps, done.config.season_steps
    model_scores = done.scores[MODEL]
    for horizon in (*sorted({1, min(season, h), h}), None):
        for number, (predictor, score) in enumerate(done.scores.items()):
            gains = (skill(model_scores, score, metric, horizon) for metric in SHOWN)
            table.add_row(
                ("all" if horizon is None else str(horizon)) if number == 0 else "",
                predictor,
                *(f"{score.mean(metric, horizon=horizon):.4g}" for metric in (*SHOWN, *also)),
                "" if predictor == MODEL else " ".join(_percent(gain) for gain in gains),
            )
        table.add_section()
    return table


def interval_table(scores: dict[str, Scores]) -> Table:
    """Coverage of every predictor's intervals, overall and for the sensors with the largest deviation."""
    table = _table("coverage of the intervals, overall and for the worst sensor (from 20 sensors on: the worst tenth)")
    table.add_column("interval", justify="right")
    table.add_column("forecast", no_wrap=True)
    for column in ("covered", "off by", "worst", "off by"):
        table.add_column(column, justify="right")
    by_interval: dict[float, list[tuple[str, Interval]]] = {}
    for predictor, score in scores.items():
        for interval in score.intervals():
            by_interval.setdefault(interval.nominal, []).append((predictor, interval))
    for nominal, found in by_interval.items():
        for number, (predictor, interval) in enumerate(found):
            table.add_row(
                f"{nominal:.0%}" if number == 0 else "",
                predictor,
                f"{interval.overall:.1%}",
                f"{100 * (interval.overall - nominal):+.1f}",
                f"{interval.worst:.1%}",
                f"{100 * interval.worst_off:.1f}",
            )
        table.add_section()
    return table


def sensor_table(scores: Scores) -> Table:
    """The sensors that the model forecasts worst, by their scaled pinball loss."""
    table = _table(f"the sensors that {MODEL} forecasts worst")
    table.add_column("sensor", no_wrap=True)
    for metric in (*SHOWN, "coverage"):
        table.add_column(metric, justify="right")
    by_sensor = {metric: scores.by_sensor(metric) for metric in (*SHOWN, "coverage")}
    for sensor, _ in scores.worst_sensors(limit=WORST_SENSORS):
        row = scores.sensors.index(sensor)
        table.add_row(visible(sensor), *(f"{values[row]:.4g}" for values in by_sensor.values()))
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _percent(share: float) -> str:
    return f"{share:+.1%}" if math.isfinite(share) else "-"
