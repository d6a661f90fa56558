"""Holds the stream against the evaluator: the same readings and model must give the same forecasts and scores."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from deploy.demo.scores import FORECAST, Recorded, score
from model.backtest import model_predictor
from model.forecaster import Forecaster
from model.rules import ACCEPTED
from model.sequences import build_sequences
from pipeline.audit.findings import ForecastLog, ReadingLog
from pipeline.settings import Settings

# Of a sensor's spread, or of the number itself where that is larger: the evaluator's matrix products have other shapes,
# so other last bits.
TOLERANCE: Final = 1e-4


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
    recorded: Recorded,
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
    theirs = Recorded(recorded.sequences, np.concatenate([found, recorded.quantiles[-1:]]), recorded.row)
    streamed, evaluated = (score(each, settings)[FORECAST].by_horizon("mae") for each in (recorded, theirs))
    with np.errstate(invalid="ignore"):
        apart = np.abs(evaluated - streamed) / streamed
    return Agreement(
        compared=len(forecasts),
        different=int((~(difference <= tolerance)).any(axis=(1, 2, 3)).sum()),  # NaN differs
        largest=float(np.nanmax(difference / spread, initial=0.0)),
        largest_mae=float(np.nanmax(apart, initial=0.0)),
    )


def _evaluated(
    readings: ReadingLog, forecasts: ForecastLog, load: Callable[[int], Forecaster], settings: Settings
) -> NDArray[np.float32]:
    """(n, K, Q, h): for each forecast what the evaluator says after the same reading; NaN where it says nothing."""
    assert forecasts.quantiles is not None and forecasts.origin is not None
    found = np.full(forecasts.quantiles.shape, np.nan, np.float32)
    accepted = readings.take(readings.verdict == ACCEPTED)
    code = {name: number for number, name in enumerate(accepted.sensors)}
    for version in np.unique(forecasts.version):
        forecaster = load(int(version))
        of_version = forecasts.version == version
        for number, sensor in enumerate(forecasts.sensors):
            mine = accepted.take(accepted.sensor == code.get(sensor, -1))
            of_sensor = of_version & (forecasts.sensor == number)
            for origin in np.unique(forecasts.origin[of_sensor]):
                rows = np.flatnonzero(of_sensor & (forecasts.origin == origin))
                begun_us = mine.timestamp_us[mine.offset == origin].min(initial=np.iinfo(np.int64).max)
                behind = np.flatnonzero(
                    (mine.timestamp_us >= begun_us) & (mine.timestamp_us <= forecasts.issued_us[rows].max())
                )
                behind = behind[np.argsort(mine.timestamp_us[behind])]
                if not len(behind):
                    continue
                sequences = build_sequences(
                    (sensor,),
                    np.array([0, len(behind)]),
                    mine.timestamp_us[behind],
                    mine.values[behind],
                    mine.offset[behind],
                    features=settings.features,
                    cadence_us=settings.cadence_us,
                    max_gap_steps=settings.max_gap_steps,
                )
                predictor = model_predictor(forecaster, adaptation=settings.adaptation)
                after = predictor.forecasts(sequences, 0, 0, len(sequences))
                steps = np.searchsorted(sequences.timestamp_us, forecasts.issued_us[rows])
                there = sequences.timestamp_us[steps.clip(max=len(sequences) - 1)] == forecasts.issued_us[rows]
                found[rows[there]] = after[steps[there]]
    return found


def _spreads(readings: ReadingLog, forecasts: ForecastLog, settings: Settings) -> NDArray[np.float64]:
    """(n, K) of each forecast's sensor: the standard deviation of what was read of the target, at least 1e-9."""
    columns = [settings.features.index(target) for target in settings.targets]
    by_sensor = np.ones((len(forecasts.sensors), len(columns)))
    code = {name: number for number, name in enumerate(readings.sensors)}
    for number, sensor in enumerate(forecasts.sensors):
        values = readings.values[readings.sensor == code.get(sensor, -1)][:, columns]
        if len(values):
            by_sensor[number] = np.maximum(np.nan_to_num(np.nanstd(values, axis=0)), 1e-9)
    spread: NDArray[np.float64] = by_sensor[forecasts.sensor]
    return spread
