"""How good the forecasts on the topic were, against baselines over exactly the same forecasts and labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.baselines import Persistence, SeasonalNaive
from model.metrics import Scores
from model.rules import ACCEPTED
from model.sequences import Sequences, build_sequences
from pipeline.audit.findings import ForecastLog, ReadingLog
from pipeline.evaluation.back_test import model_config
from pipeline.settings import Settings

FORECAST: Final = "streamgru"

Silence = Sequence[tuple[datetime, datetime]]  # stretches in which no readings were sent


@dataclass(frozen=True)
class Trace:
    """A stretch of one sensor: what was measured, and what had been forecast ``lead`` before."""

    sensor: str
    target: str
    lead: str
    interval: str
    moments: NDArray[np.datetime64]
    actual: NDArray[np.float64]
    low: NDArray[np.float64]
    median: NDArray[np.float64]
    high: NDArray[np.float64]
    silent: Silence


@dataclass(frozen=True)
class Recorded:
    """The forecasts of a topic, laid out along the steps of the sequences that their readings make."""

    sequences: Sequences
    quantiles: NDArray[np.float32]  # (forecasts + 1, targets, levels, horizon); the last row is NaN
    row: NDArray[np.int64]  # (steps,) the forecast issued there, -1 (so NaN) for none

    def at(self, lo: int, hi: int) -> NDArray[np.float64]:
        """(hi-lo, targets, levels, horizon), NaN where there is none."""
        return self.quantiles[self.row[lo:hi]].astype(np.float64)


def lay_out(readings: ReadingLog, forecasts: ForecastLog, settings: Settings) -> Recorded:
    """The accepted readings as sequences, and with them the first forecast of each."""
    assert forecasts.quantiles is not None
    accepted = np.flatnonzero(readings.verdict == ACCEPTED)
    by_sensor = accepted[np.lexsort((readings.timestamp_us[accepted], readings.sensor[accepted]))]
    counts = np.bincount(readings.sensor[by_sensor], minlength=len(readings.sensors))
    sequences = build_sequences(
        readings.sensors,
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        readings.timestamp_us[by_sensor],
        readings.values[by_sensor],
        readings.offset[by_sensor],
        features=settings.features,
        cadence_us=settings.cadence_us,
        max_gap_steps=settings.max_gap_steps,
    )
    index = {name: number for number, name in enumerate(readings.sensors)}
    row = np.full(len(sequences), -1, dtype=np.int64)
    for number, name in enumerate(forecasts.sensors):
        if name not in index:
            continue
        mine = np.flatnonzero(forecasts.sensor == number)[
            ::-1
        ]  # of two for one reading the first is kept: written last
        lo, hi = sequences.span(index[name])
        steps = lo + np.searchsorted(sequences.timestamp_us[lo:hi], forecasts.issued_us[mine])
        fits = (steps < hi) & (sequences.timestamp_us[np.minimum(steps, hi - 1)] == forecasts.issued_us[mine])
        row[steps[fits]] = mine[fits]
    nothing = np.full((1, *forecasts.quantiles.shape[1:]), np.nan, dtype=np.float32)
    return Recorded(sequences, np.concatenate([forecasts.quantiles, nothing]), row)


def score(recorded: Recorded, settings: Settings) -> dict[str, Scores]:
    """Scores of the forecasts on the topic and of the baselines, by name, each over the same times and labels."""
    sequences, targets = recorded.sequences, settings.targets
    config = model_config(settings)
    baselines = (Persistence(config), SeasonalNaive(config))  # not fitted: their points only, so no intervals
    shape = (sequences.sensors, targets, settings.quantiles, np.ones((len(sequences.sensors), len(targets))))
    scores = {
        name: Scores.nothing_yet(*shape, settings.horizon_steps)
        for name in (FORECAST, *(baseline.name for baseline in baselines))
    }
    ahead = np.arange(1, settings.horizon_steps + 1)
    for sensor in range(len(sequences.sensors)):
        lo, hi = sequences.span(sensor)
        forecasts = {FORECAST: recorded.at(lo, hi)}
        forecasts |= {baseline.name: baseline.forecasts(sequences, sensor, lo, hi) for baseline in baselines}
        labels = sequences.labels(lo, hi, ahead, sequences.columns(targets))
        for found in forecasts.values():
            labels[np.isnan(found).any(axis=2)] = np.nan  # what one cannot forecast counts for none
        for name, found in forecasts.items():
            scores[name].add(sensor, found, labels)
    return scores


@dataclass(frozen=True)
class Stretch:
    """Which part of the stream to draw."""

    sensor: str
    target: str
    middle_us: int
    steps: int
    lead_steps: int


def trace(recorded: Recorded, settings: Settings, stretch: Stretch, silent: Silence) -> Trace:
    """A stretch on a regular grid, with NaN where nothing was measured or issued."""
    sequences, cadence_us, levels = recorded.sequences, settings.cadence_us, settings.quantiles
    first, last = sequences.span(sequences.sensors.index(stretch.sensor))
    moments, observed = sequences.timestamp_us[first:last], sequences.observed[first:last]
    grid = stretch.middle_us + cadence_us * np.arange(-(stretch.steps // 2), stretch.steps - stretch.steps // 2)

    def step_at(wanted: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        found = np.searchsorted(moments, wanted).clip(max=len(moments) - 1)
        return found + first, (moments[found] == wanted) & observed[found]

    measured, is_measured = step_at(grid)
    issued, is_issued = step_at(grid - stretch.lead_steps * cadence_us)
    column, number = sequences.columns((stretch.target,))[0], settings.targets.index(stretch.target)
    rows = np.where(is_issued, recorded.row[issued], -1)
    quantiles = recorded.quantiles[rows, number, :, stretch.lead_steps - 1].astype(np.float64)
    return Trace(
        sensor=stretch.sensor,
        target=stretch.target,
        lead=f"{stretch.lead_steps * settings.cadence_s / 3_600:g} h",
        interval=f"{levels[-1] - levels[0]:.0%} interval",
        moments=grid.astype("datetime64[us]"),
        actual=np.where(is_measured, sequences.values[measured, column], np.nan),
        low=quantiles[:, 0],
        median=quantiles[:, levels.index(0.5)],
        high=quantiles[:, -1],
        silent=silent,
    )
