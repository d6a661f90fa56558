"""The value of a carried state: losses by a state's age in steps, compared with a state that is never reset.

A state of age ``a`` has been stepped through the last ``a`` readings, like a window of that length. So if the carried
state's loss is at most the younger state's at every age, no window length would forecast better.

Letters: S sensors, n steps, K targets, h horizon steps, A ages.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .backtest import TogetherPredictor
from .carrying_predictor import ForecastRequest
from .config import Adaptation, ModelConfig
from .forecaster import Forecaster
from .metrics import quantile_losses
from .predictor import model_predictor
from .sequences import Sequences

Floats = NDArray[np.float64]
Indexes = NDArray[np.int64]

# Largest number of sensors and of steps after each restart, and the number of restarts: enough to average over, and
# computed within seconds.
MOST_SENSORS: Final = 12
MOST_STEPS: Final = 2_048
RESTARTS: Final = 4


@dataclass(frozen=True)
class LossByAge:
    """Mean scaled pinball losses by steps since the restart; bin i holds the ages [edges[i], edges[i+1]).

    All losses of a bin are over the same readings and labels.
    """

    edges: Indexes  # (A+1,) steps, ascending from 1
    count: Indexes  # (A,) labels
    restarted: Floats  # (A,) losses of a state that is blank at the restart
    carried: dict[str, Floats]  # predictor whose states are never reset -> (A,) losses

    @property
    def ages(self) -> Floats:
        """(A,) the geometric middle of each bin, in steps."""
        return np.asarray(np.sqrt(self.edges[:-1] * np.maximum(self.edges[1:] - 1, 1.0)))


def loss_of_restarts(
    forecaster: Forecaster,
    adaptation: Adaptation,
    sequences: Sequences,
    start_us: int,
    scale: Floats,
    *,
    carried: TogetherPredictor | None = None,
    beside: Sequence[TogetherPredictor] = (),
) -> LossByAge:
    """Losses of a model that is restarted ``RESTARTS`` times, evenly spaced from ``start_us`` on.

    Args:
        scale: (S, K) divisor of the losses.
        carried: the model with carried states; by default one that begins at each sensor's first reading.
        beside: more predictors whose states are carried.
    """
    config = forecaster.config
    steps = max((int(sequences.timestamp_us.max(initial=start_us)) + 1 - start_us) // config.cadence_us, 1)
    restarts_us = [start_us + int(part) * config.cadence_us for part in np.arange(RESTARTS) * steps // RESTARTS]
    build = partial(model_predictor, forecaster, "model", adaptation)
    return loss_by_age(build, [carried or build(), *beside], sequences, config, restarts_us, scale)


def loss_by_age(
    build: Callable[[], TogetherPredictor],
    carried: Sequence[TogetherPredictor],
    sequences: Sequences,
    config: ModelConfig,
    restarts_us: Sequence[int],
    scale: Floats,
) -> LossByAge:
    """Losses after each restart, for as many steps as lie between the two closest restarts.

    Args:
        build: builds a predictor with blank states, for each restart.
        carried: predictors whose states are carried. If their states are past the first restart, they begin again at
            a kept state, or at the first reading.
        restarts_us: moments, ascending.
        scale: (S, K) divisor of the losses.
    """
    h, cadence_us = config.horizon_steps, config.cadence_us
    last_us = int(sequences.timestamp_us.max()) + 1
    spacing = min(np.diff([*restarts_us, last_us]).tolist()) // cadence_us
    steps = int(min(max(spacing, 1), MOST_STEPS))
    edges = np.unique(np.rint(2.0 ** np.arange(0.0, np.log2(steps + 1) + 0.5, 0.5)).astype(np.int64))
    bins = len(edges) - 1
    count = np.zeros(bins, np.int64)
    names = ["", *(predictor.name for predictor in carried)]
    totals = {name: np.zeros(bins) for name in names}
    sensors = range(0, len(sequences.sensors), max(1, -(-len(sequences.sensors) // MOST_SENSORS)))
    columns, ahead = sequences.columns(config.targets), np.arange(1, h + 1)
    for restart_us in restarts_us:
        part = sequences.slice_time(restart_us, restart_us + steps * cadence_us)
        spans = {sensor: part.span(sensor) for sensor in sensors}
        spans = {sensor: (lo, hi) for sensor, (lo, hi) in spans.items() if hi > lo}
        if not spans:
            continue  # no reading after this restart
        whole = {
            sensor: sequences.span(sensor, int(part.timestamp_us[lo]), int(part.timestamp_us[hi - 1]) + 1)
            for sensor, (lo, hi) in spans.items()
        }
        cold = build().forecasts_together(
            [ForecastRequest(part.past(sensor, hi), 0) for sensor, (_, hi) in spans.items()]
        )
        requests = [
            ForecastRequest(sequences.past(sensor, hi), lo - int(sequences.starts[sensor]))
            for sensor, (lo, hi) in whole.items()
        ]
        answers = dict(
            zip(names, [cold, *(predictor.forecasts_together(requests) for predictor in carried)], strict=True)
        )
        for number, (sensor, (lo, hi)) in enumerate(whole.items()):
            labels = sequences.labels(lo, hi, ahead, columns)
            labels[~sequences.observed[lo:hi]] = np.nan
            known = ~np.isnan(labels)
            place = np.searchsorted(edges, np.arange(1, hi - lo + 1), side="right") - 1
            within = (place >= 0) & (place < bins)
            count += np.bincount(place[within], known.sum(axis=(1, 2))[within], bins).astype(np.int64)
            for name, found in answers.items():
                losses = quantile_losses(found[number], labels, config.quantiles).mean(axis=2)
                losses = np.nansum(losses / scale[sensor][:, None], axis=(1, 2))
                totals[name] += np.bincount(place[within], losses[within], bins)
    with np.errstate(invalid="ignore"):  # NaN for a bin without labels
        means = {name: total / count for name, total in totals.items()}
    return LossByAge(edges, count, means.pop(""), means)
