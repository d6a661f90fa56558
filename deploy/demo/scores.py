"""Scores of the forecasts on the topic and of baselines, and a comparison with the evaluator's forecasts.

Letters: n forecasts, K targets, Q quantiles, h horizon steps.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import numpy as np
from numpy.typing import NDArray

from deploy.demo.data import LiveReadings
from model.acceptance import ACCEPTED
from model.backtest import model_predictor
from model.baselines import Persistence, SeasonalNaive
from model.carrying_predictor import ForecastRequest
from model.forecaster import Forecaster
from model.metrics import Scores
from model.sequences import Sequences, build_sequences
from pipeline.audit.delivery import ForecastLog, ReadingLog
from pipeline.evaluation.evaluate import model_config
from pipeline.forecast_encoding import round_to_scale
from pipeline.messages import microseconds
from pipeline.settings import Settings

FORECAST: Final = "streamgru"
TRACED_SENSORS: Final = 3
TRACED_LEAD_STEPS: Final = 6

Outage = tuple[datetime, datetime]  # begin and end of the time without readings of a sensor


@dataclass(frozen=True)
class RecordedForecasts:
    """The forecasts on the topic, indexed by the steps of their readings' sequences."""

    sequences: Sequences
    quantiles: NDArray[np.float32]  # (n + 1, K, Q, h); the last row is NaN
    row: NDArray[np.int64]  # (steps,) index of the forecast issued at the step; -1, the NaN row, without one

    def span(self, sensor: int) -> tuple[int, int]:
        """Bounds of the sensor's steps from its first forecast to its last: the history before has none."""
        lo, hi = self.sequences.span(sensor)
        issued = lo + np.flatnonzero(self.row[lo:hi] >= 0)
        return (int(issued[0]), int(issued[-1]) + 1) if len(issued) else (lo, lo)

    def at(self, lo: int, hi: int) -> NDArray[np.float64]:
        """(hi-lo, K, Q, h), NaN for steps without a forecast."""
        return self.quantiles[self.row[lo:hi]].astype(np.float64)


def lay_out(readings: ReadingLog, forecasts: ForecastLog, settings: Settings) -> RecordedForecasts:
    """The accepted readings as sequences, each with its first forecast."""
    assert forecasts.quantiles is not None
    accepted = np.flatnonzero(readings.verdict == ACCEPTED)
    by_sensor = accepted[np.lexsort((readings.timestamp_us[accepted], readings.sensor[accepted]))]
    counts = np.bincount(readings.sensor[by_sensor], minlength=len(readings.sensors))
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    sequences = _sequences(readings, by_sensor, readings.sensors, starts, settings)
    index = {name: number for number, name in enumerate(readings.sensors)}
    row = np.full(len(sequences), -1, dtype=np.int64)
    for number, name in enumerate(forecasts.sensors):
        if name not in index:
            continue
        # Newest first: if a reading has two forecasts, the first one overwrites the second.
        mine = np.flatnonzero(forecasts.sensor == number)[::-1]
        lo, hi = sequences.span(index[name])
        steps = lo + np.searchsorted(sequences.timestamp_us[lo:hi], forecasts.issued_us[mine])
        fits = (steps < hi) & (sequences.timestamp_us[np.minimum(steps, hi - 1)] == forecasts.issued_us[mine])
        row[steps[fits]] = mine[fits]
    missing = np.full((1, *forecasts.quantiles.shape[1:]), np.nan, dtype=np.float32)
    return RecordedForecasts(sequences, np.concatenate([forecasts.quantiles, missing]), row)


def _sequences(
    readings: ReadingLog,
    rows: NDArray[np.int64],
    sensors: tuple[str, ...],
    starts: NDArray[np.int64],
    settings: Settings,
) -> Sequences:
    return build_sequences(
        sensors,
        starts,
        readings.timestamp_us[rows],
        readings.values[rows],
        readings.offset[rows],
        features=settings.features,
        cadence_us=settings.cadence_us,
        max_gap_steps=settings.max_gap_steps,
    )


def score(recorded: RecordedForecasts, settings: Settings) -> dict[str, Scores]:
    """Scores of the forecasts on the topic and of the baselines, by name; all over the same times and labels."""
    sequences, targets = recorded.sequences, settings.targets
    config = model_config(settings)
    baselines = (Persistence(config), SeasonalNaive(config))  # not fitted, so without intervals
    shape = (sequences.sensors, targets, settings.quantiles, np.ones((len(sequences.sensors), len(targets))))
    scores = {
        name: Scores.empty(*shape, settings.horizon_steps)
        for name in (FORECAST, *(baseline.name for baseline in baselines))
    }
    ahead = np.arange(1, settings.horizon_steps + 1)
    for sensor in range(len(sequences.sensors)):
        lo, hi = recorded.span(sensor)
        forecasts = {FORECAST: recorded.at(lo, hi)}
        forecasts |= {baseline.name: baseline.forecasts(sequences, sensor, lo, hi) for baseline in baselines}
        labels = sequences.labels(lo, hi, ahead, sequences.columns(targets))
        for found in forecasts.values():
            labels[np.isnan(found).any(axis=2)] = np.nan  # score all on the same labels
        for name, found in forecasts.items():
            scores[name].add(sensor, found, labels)
    return scores


@dataclass(frozen=True)
class Agreement:
    """The differences between the forecasts on the topic and the evaluator's."""

    compared: int
    different: int  # forecasts with a number that is not the evaluator's, to the bit
    largest: float  # largest difference, in standard deviations of the sensor
    largest_mae: float  # largest relative difference of the mean absolute error of a target and step ahead

    @property
    def holds(self) -> bool:
        """Whether no forecast differs from the evaluator's."""
        return self.different == 0

    def __str__(self) -> str:
        return (
            f"{self.different:,} of {self.compared:,} forecasts differ from the evaluator's; the largest difference is "
            f"{self.largest:.1g} standard deviations of the sensor, and mean absolute errors differ by at most "
            f"{100 * self.largest_mae:.1g} %"
        )


def agreement(
    recorded: RecordedForecasts,
    readings: ReadingLog,
    forecasts: ForecastLog,
    load: Callable[[int], Forecaster],
    settings: Settings,
) -> Agreement:
    """Compare the forecasts on the topic with the evaluator's, made from the readings since each state's first one.

    Args:
        recorded: the forecasts as ``lay_out`` returns them.
        load: returns the model of a version.
    """
    assert forecasts.quantiles is not None
    found = _evaluated(readings, forecasts, load, settings)
    spread = _spreads(readings, forecasts, settings)[:, :, None, None]
    difference = np.abs(found - forecasts.quantiles)
    theirs = RecordedForecasts(recorded.sequences, np.concatenate([found, recorded.quantiles[-1:]]), recorded.row)
    streamed, evaluated = (_mean_absolute_errors(each, settings) for each in (recorded, theirs))
    with np.errstate(invalid="ignore"):
        apart = np.abs(evaluated - streamed) / streamed
    return Agreement(
        compared=len(forecasts),
        different=int((found != forecasts.quantiles).any(axis=(1, 2, 3)).sum()),  # NaN differs
        largest=float(np.nanmax(difference / spread, initial=0.0)),
        largest_mae=float(np.nanmax(apart, initial=0.0)),
    )


def _mean_absolute_errors(recorded: RecordedForecasts, settings: Settings) -> NDArray[np.float64]:
    """(K, h): of the median."""
    sequences, median = recorded.sequences, settings.quantiles.index(0.5)
    ahead = np.arange(1, settings.horizon_steps + 1)
    total, count = np.zeros((2, len(settings.targets), settings.horizon_steps))
    for sensor in range(len(sequences.sensors)):
        lo, hi = recorded.span(sensor)
        labels = sequences.labels(lo, hi, ahead, sequences.columns(settings.targets))
        errors = np.abs(labels - recorded.quantiles[recorded.row[lo:hi], :, median])
        total += np.nansum(errors, axis=0)
        count += (~np.isnan(errors)).sum(axis=0)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / count)


def _evaluated(
    readings: ReadingLog, forecasts: ForecastLog, load: Callable[[int], Forecaster], settings: Settings
) -> NDArray[np.float32]:
    """(n, K, Q, h): the evaluator's forecast after the same reading, as published; NaN if the evaluator has none."""
    assert forecasts.quantiles is not None
    assert forecasts.origin is not None
    found = np.full(forecasts.quantiles.shape, np.nan, np.float32)
    accepted = readings.take(readings.verdict == ACCEPTED)
    for version in np.unique(forecasts.version).tolist():
        forecaster = load(version)
        # Run the n-th states of all sensors through the model together: this takes a fraction of the time.
        rounds: dict[int, list[tuple[NDArray[np.int64], ForecastRequest]]] = defaultdict(list)
        for number in range(len(forecasts.sensors)):
            rows = np.flatnonzero((forecasts.version == version) & (forecasts.sensor == number))
            for nth, origin in enumerate(np.unique(forecasts.origin[rows]).tolist()):
                of_state = rows[forecasts.origin[rows] == origin]
                behind = _behind(accepted, forecasts, of_state, origin, settings)
                if behind is not None:
                    first = int(np.searchsorted(behind.timestamp_us, forecasts.issued_us[of_state].min()))
                    rounds[nth].append((of_state, ForecastRequest(behind, first)))
        for states in rounds.values():
            predictor = model_predictor(forecaster, adaptation=settings.adaptation, rounding=round_to_scale)
            answers = predictor.forecasts_together([shown for _, shown in states])
            for (rows, shown), after in zip(states, answers, strict=True):
                moments = shown.steps.timestamp_us[shown.lo :]
                at = np.searchsorted(moments, forecasts.issued_us[rows])
                there = moments[at.clip(max=len(moments) - 1)] == forecasts.issued_us[rows]
                found[rows[there]] = after[at[there]]
    return found


def _behind(
    accepted: ReadingLog, forecasts: ForecastLog, rows: NDArray[np.int64], origin: int, settings: Settings
) -> Sequences | None:
    """A sensor's readings from ``origin`` to the last of its forecasts ``rows``; None if the readings are missing."""
    sensor = forecasts.sensors[int(forecasts.sensor[rows[0]])]
    code = accepted.sensors.index(sensor) if sensor in accepted.sensors else -1
    mine = np.flatnonzero(accepted.sensor == code)
    begun_us = accepted.timestamp_us[mine[accepted.offset[mine] == origin]].min(initial=np.iinfo(np.int64).max)
    moments = accepted.timestamp_us[mine]
    behind = mine[(moments >= begun_us) & (moments <= forecasts.issued_us[rows].max())]
    if not len(behind) or accepted.timestamp_us[behind].max() < forecasts.issued_us[rows].min():
        return None
    behind = behind[np.argsort(accepted.timestamp_us[behind])]
    return _sequences(accepted, behind, (sensor,), np.array([0, len(behind)]), settings)


def _spreads(readings: ReadingLog, forecasts: ForecastLog, settings: Settings) -> NDArray[np.float64]:
    """(n, K): standard deviation of the target in the readings of each forecast's sensor, at least 1e-9."""
    columns = [settings.features.index(target) for target in settings.targets]
    by_sensor = np.ones((len(forecasts.sensors), len(columns)))
    code = {name: number for number, name in enumerate(readings.sensors)}
    for number, sensor in enumerate(forecasts.sensors):
        values = readings.values[readings.sensor == code.get(sensor, -1)][:, columns]
        if len(values):
            by_sensor[number] = np.maximum(np.nan_to_num(np.nanstd(values, axis=0)), 1e-9)
    spread: NDArray[np.float64] = by_sensor[forecasts.sensor]
    return spread


@dataclass(frozen=True)
class Fan:
    """One forecast, over its whole horizon."""

    moments: NDArray[np.datetime64]
    low: NDArray[np.float64]
    median: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True)
class Trace:
    """A stretch of one sensor: readings, the forecast issued ``lead`` before each reading, and some whole forecasts."""

    sensor: str
    target: str
    lead: str
    interval: str
    moments: NDArray[np.datetime64]
    actual: NDArray[np.float64]
    low: NDArray[np.float64]
    median: NDArray[np.float64]
    high: NDArray[np.float64]
    outages: Sequence[Outage]
    fans: Sequence[Fan]


@dataclass(frozen=True)
class Stretch:
    """The part of the stream to draw."""

    sensor: str
    target: str
    middle_us: int
    steps: int
    lead_steps: int


def trace(recorded: RecordedForecasts, settings: Settings, stretch: Stretch, outages: Sequence[Outage]) -> Trace:
    """A stretch on a regular grid; NaN for missing readings and forecasts."""
    sequences, cadence_us, levels = recorded.sequences, settings.cadence_us, settings.quantiles
    first, last = sequences.span(sequences.sensors.index(stretch.sensor))
    moments, observed = sequences.timestamp_us[first:last], sequences.observed[first:last]
    grid = stretch.middle_us + cadence_us * np.arange(-(stretch.steps // 2), stretch.steps - stretch.steps // 2)

    def step_at(wanted: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        found = np.searchsorted(moments, wanted).clip(max=len(moments) - 1)
        return found + first, (moments[found] == wanted) & observed[found]

    def issued_at(wanted: NDArray[np.int64]) -> NDArray[np.float64]:
        """(steps, Q, h) of the target."""
        issued, is_issued = step_at(wanted)
        rows = np.where(is_issued, recorded.row[issued], -1)
        found: NDArray[np.float64] = recorded.quantiles[rows, number].astype(np.float64)
        return found

    measured, is_measured = step_at(grid)
    column, number = sequences.columns((stretch.target,))[0], settings.targets.index(stretch.target)
    quantiles = issued_at(grid - stretch.lead_steps * cadence_us)[:, :, stretch.lead_steps - 1]
    median = levels.index(0.5)
    apart = max(settings.season, settings.horizon_steps)
    begins = grid[settings.season // 2 : len(grid) - settings.horizon_steps : apart]
    ahead = cadence_us * np.arange(1, settings.horizon_steps + 1)
    return Trace(
        sensor=stretch.sensor,
        target=stretch.target,
        lead=f"{stretch.lead_steps * settings.cadence_s / 3_600:g} h",
        interval=f"{levels[-1] - levels[0]:.0%} interval",
        moments=grid.astype("datetime64[us]"),
        actual=np.where(is_measured, sequences.values[measured, column], np.nan),
        low=quantiles[:, 0],
        median=quantiles[:, median],
        high=quantiles[:, -1],
        outages=outages,
        fans=[
            Fan((begin + ahead).astype("datetime64[us]"), fan[0], fan[median], fan[-1])
            for begin, fan in zip(begins, issued_at(begins), strict=True)
        ],
    )


def choose_traces(
    recorded: RecordedForecasts, settings: Settings, live: LiveReadings, share: float, seasons: int
) -> list[Trace]:
    """Traces of some sensors over ``seasons``: around the quantile ``share`` of the live time, or around an outage."""
    moments_us = live.frame["timestamp"].dt.timestamp("us").to_numpy()
    middle_us = int(np.quantile(moments_us, share)) // settings.cadence_us * settings.cadence_us
    off = {sensor: (since, until) for sensor, since, until in live.outages}
    shortest = sorted(off, key=lambda sensor: off[sensor][1] - off[sensor][0])[:1]
    others = [sensor for sensor in sorted(recorded.sequences.sensors) if sensor not in off]
    traces = []
    for number, sensor in enumerate([*others[: TRACED_SENSORS - len(shortest)], *shortest]):
        outage = off.get(sensor)
        stretch = Stretch(
            sensor=sensor,
            target=settings.targets[number % len(settings.targets)],
            middle_us=middle_us if outage is None else microseconds(outage[0]),
            steps=seasons * settings.season,
            lead_steps=min(TRACED_LEAD_STEPS, settings.horizon_steps),
        )
        traces.append(trace(recorded, settings, stretch, [outage] if outage else []))
    return traces
