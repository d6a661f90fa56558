"""How good the forecasts on the topic were, beside baselines, and whether the evaluator gives the same ones.

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
from model.forecaster import Forecaster
from model.metrics import Scores
from model.predictor import ForecastRequest
from model.sequences import Sequences, build_sequences
from pipeline.audit.delivery import ForecastLog, ReadingLog
from pipeline.evaluation.evaluate import model_config
from pipeline.messages import microseconds
from pipeline.settings import Settings

FORECAST: Final = "streamgru"
# Largest difference from the evaluator, in standard deviations of the sensor, or relative to the number where that is
# larger: the evaluator's matrix products have other shapes, and so other last bits.
TOLERANCE: Final = 1e-4
TRACED_SENSORS: Final = 3
TRACED_LEAD_STEPS: Final = 6

Outage = tuple[datetime, datetime]  # since when and until when a sensor sent no readings


@dataclass(frozen=True)
class RecordedForecasts:
    """The forecasts of a topic, laid out along the steps of the sequences that their readings make."""

    sequences: Sequences
    quantiles: NDArray[np.float32]  # (n + 1, K, Q, h); the last row is NaN
    row: NDArray[np.int64]  # (steps,) the forecast issued there, -1 (so NaN) without one

    def at(self, lo: int, hi: int) -> NDArray[np.float64]:
        """(hi-lo, K, Q, h), NaN where there is no forecast."""
        return self.quantiles[self.row[lo:hi]].astype(np.float64)


def lay_out(readings: ReadingLog, forecasts: ForecastLog, settings: Settings) -> RecordedForecasts:
    """The accepted readings as sequences, and with them the first forecast of each."""
    assert forecasts.quantiles is not None
    accepted = np.flatnonzero(readings.verdict == ACCEPTED)
    by_sensor = accepted[np.lexsort((readings.timestamp_us[accepted], readings.sensor[accepted]))]
    counts = np.bincount(readings.sensor[by_sensor], minlength=len(readings.sensors))
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    sequences = _sequences(readings.sensors, starts, readings, by_sensor, settings)
    index = {name: number for number, name in enumerate(readings.sensors)}
    row = np.full(len(sequences), -1, dtype=np.int64)
    for number, name in enumerate(forecasts.sensors):
        if name not in index:
            continue
        # Of two forecasts of one reading the first is kept: it is written last.
        mine = np.flatnonzero(forecasts.sensor == number)[::-1]
        lo, hi = sequences.span(index[name])
        steps = lo + np.searchsorted(sequences.timestamp_us[lo:hi], forecasts.issued_us[mine])
        fits = (steps < hi) & (sequences.timestamp_us[np.minimum(steps, hi - 1)] == forecasts.issued_us[mine])
        row[steps[fits]] = mine[fits]
    nothing = np.full((1, *forecasts.quantiles.shape[1:]), np.nan, dtype=np.float32)
    return RecordedForecasts(sequences, np.concatenate([forecasts.quantiles, nothing]), row)


def _sequences(
    sensors: tuple[str, ...],
    starts: NDArray[np.int64],
    readings: ReadingLog,
    rows: NDArray[np.int64],
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
    """Scores of the forecasts on the topic and of the baselines, by name, each over the same times and labels."""
    sequences, targets = recorded.sequences, settings.targets
    config = model_config(settings)
    baselines = (Persistence(config), SeasonalNaive(config))  # not fitted: points only, no intervals
    shape = (sequences.sensors, targets, settings.quantiles, np.ones((len(sequences.sensors), len(targets))))
    scores = {
        name: Scores.empty(*shape, settings.horizon_steps)
        for name in (FORECAST, *(baseline.name for baseline in baselines))
    }
    ahead = np.arange(1, settings.horizon_steps + 1)
    for sensor in range(len(sequences.sensors)):
        lo, hi = sequences.span(sensor)
        forecasts = {FORECAST: recorded.at(lo, hi)}
        forecasts |= {baseline.name: baseline.forecasts(sequences, sensor, lo, hi) for baseline in baselines}
        labels = sequences.labels(lo, hi, ahead, sequences.columns(targets))
        for found in forecasts.values():
            labels[np.isnan(found).any(axis=2)] = np.nan  # all are scored on the same labels
        for name, found in forecasts.items():
            scores[name].add(sensor, found, labels)
    return scores


@dataclass(frozen=True)
class Agreement:
    """How far the forecasts on the topic are from the evaluator's."""

    compared: int
    different: int  # farther apart than ``TOLERANCE``
    largest: float  # difference, in a sensor's standard deviations
    largest_mae: float  # difference between two mean absolute errors of one target and step ahead, relative

    @property
    def holds(self) -> bool:
        """Whether every forecast is the evaluator's."""
        return self.different == 0


def agreement(
    recorded: RecordedForecasts,
    readings: ReadingLog,
    forecasts: ForecastLog,
    load: Callable[[int], Forecaster],
    settings: Settings,
) -> Agreement:
    """The evaluator's forecasts of the readings behind every state, compared with those on the topic.

    Args:
        recorded: the forecasts as ``lay_out`` gives them.
        load: the model of a version.
    """
    assert forecasts.quantiles is not None
    found = _evaluated(readings, forecasts, load, settings)
    spread = _spreads(readings, forecasts, settings)[:, :, None, None]
    difference = np.abs(found - forecasts.quantiles)
    tolerance = TOLERANCE * np.maximum(spread, np.abs(found))
    theirs = RecordedForecasts(recorded.sequences, np.concatenate([found, recorded.quantiles[-1:]]), recorded.row)
    streamed, evaluated = (_mean_absolute_errors(each, settings) for each in (recorded, theirs))
    with np.errstate(invalid="ignore"):
        apart = np.abs(evaluated - streamed) / streamed
    return Agreement(
        compared=len(forecasts),
        different=int((~(difference <= tolerance)).any(axis=(1, 2, 3)).sum()),  # NaN differs
        largest=float(np.nanmax(difference / spread, initial=0.0)),
        largest_mae=float(np.nanmax(apart, initial=0.0)),
    )


def _mean_absolute_errors(recorded: RecordedForecasts, settings: Settings) -> NDArray[np.float64]:
    """(K, h): of the median."""
    sequences, median = recorded.sequences, settings.quantiles.index(0.5)
    ahead = np.arange(1, settings.horizon_steps + 1)
    total, count = np.zeros((2, len(settings.targets), settings.horizon_steps))
    for sensor in range(len(sequences.sensors)):
        lo, hi = sequences.span(sensor)
        labels = sequences.labels(lo, hi, ahead, sequences.columns(settings.targets))
        errors = np.abs(labels - recorded.quantiles[recorded.row[lo:hi], :, median])
        total += np.nansum(errors, axis=0)
        count += (~np.isnan(errors)).sum(axis=0)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / count)


def _evaluated(
    readings: ReadingLog, forecasts: ForecastLog, load: Callable[[int], Forecaster], settings: Settings
) -> NDArray[np.float32]:
    """(n, K, Q, h): the evaluator's forecast after the same reading; NaN where the evaluator lacks it."""
    assert forecasts.quantiles is not None
    assert forecasts.origin is not None
    found = np.full(forecasts.quantiles.shape, np.nan, np.float32)
    accepted = readings.take(readings.verdict == ACCEPTED)
    for version in np.unique(forecasts.version).tolist():
        forecaster = load(version)
        # The n-th states of all sensors go through the model side by side, which takes a fraction of the time.
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
            predictor = model_predictor(forecaster, adaptation=settings.adaptation)
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
    """The readings from the state's first one to the last of its forecasts ``rows``, all of one sensor."""
    sensor = forecasts.sensors[int(forecasts.sensor[rows[0]])]
    code = accepted.sensors.index(sensor) if sensor in accepted.sensors else -1
    mine = np.flatnonzero(accepted.sensor == code)
    begun_us = accepted.timestamp_us[mine[accepted.offset[mine] == origin]].min(initial=np.iinfo(np.int64).max)
    moments = accepted.timestamp_us[mine]
    behind = mine[(moments >= begun_us) & (moments <= forecasts.issued_us[rows].max())]
    if not len(behind) or accepted.timestamp_us[behind].max() < forecasts.issued_us[rows].min():
        return None
    behind = behind[np.argsort(accepted.timestamp_us[behind])]
    return _sequences((sensor,), np.array([0, len(behind)]), accepted, behind, settings)


def _spreads(readings: ReadingLog, forecasts: ForecastLog, settings: Settings) -> NDArray[np.float64]:
    """(n, K) of each forecast's sensor: the standard deviation of the target's readings, at least 1e-9."""
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
    """A stretch of one sensor: readings, the forecasts issued ``lead`` before each, and whole forecasts on the way."""

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
    """Which part of the stream to draw."""

    sensor: str
    target: str
    middle_us: int
    steps: int
    lead_steps: int


def trace(recorded: RecordedForecasts, settings: Settings, stretch: Stretch, outages: Sequence[Outage]) -> Trace:
    """A stretch on a regular grid, with NaN where nothing was measured or issued."""
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
    begins = grid[
        settings.season // 2 : len(grid) - settings.horizon_steps : max(settings.season, settings.horizon_steps)
    ]
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
    """So many seasons of some sensors: the last one around its outage, the others around this share of the readings."""
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
