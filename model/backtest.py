"""The evaluator: all forecasts are scored by it, and predictors do not see the labels.

Scores are prequential: a forecast is issued at every reading in turn, from the state after the readings so far. A
predictor gets a sensor's steps up to the end of the stretch to forecast, and the evaluator looks up the labels
afterwards. Within a stretch, and while fitting, a predictor could still look ahead: ``assert_causal`` detects that by
changing the future.

Letters: n steps, S sensors, K targets, Q quantiles, h horizon steps.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .autoregression import Autoregression
from .baselines import Persistence, SeasonalNaive, is_constant, seasonal_scale
from .carrying_predictor import ForecastRequest
from .config import ModelConfig
from .metrics import Metric, Scores
from .outlooks import NO_OUTLOOK
from .predictor import model_predictor
from .sequences import Sequences

__all__ = [
    "Autoregression",
    "ForecastRequest",
    "Leak",
    "Metric",
    "Persistence",
    "Predictor",
    "Scores",
    "SeasonalNaive",
    "TogetherPredictor",
    "ask",
    "assert_causal",
    "backtest",
    "baselines",
    "is_constant",
    "model_predictor",
    "seasonal_scale",
]

Floats = NDArray[np.float64]

# Numbers in the forecasts of all sensors that are scored at once: arrays of 32 MB.
_STRETCH_NUMBERS: Final = 4_000_000
# Sensors forecast together: enough for efficient matrix products.
_SENSORS_TOGETHER: Final = 256


class Predictor(Protocol):
    """A source of forecasts; it may carry state from one call to the next."""

    @property
    def name(self) -> str:
        """The name of the predictor's scores; unique in a back-test."""

    def forecasts(self, sequences: Sequences, sensor: int, lo: int, hi: int) -> Floats:
        """(hi-lo, K, Q, h) quantiles after each of a sensor's steps [lo, hi), in the sensor's unit.

        The evaluator passes ``sequences`` with this sensor alone and only its steps before ``hi``, so ``lo`` and ``hi``
        count from its first step. It asks for the stretches of a sensor in ascending order.
        """


@runtime_checkable
class TogetherPredictor(Protocol):
    """A predictor that can forecast many sensors in one call; the evaluator prefers that."""

    @property
    def name(self) -> str:
        """The name of the predictor's scores; unique in a back-test."""

    def forecasts_together(self, requests: Sequence[ForecastRequest]) -> list[Floats]:
        """(n, K, Q, h) for each request; the requests are of different sensors."""


def baselines(config: ModelConfig, sequences: Sequences, until_us: int) -> list[Predictor]:
    """The predictors that every model is compared with, fitted to the steps before ``until_us``."""
    return [kind(config).fit(sequences, until_us) for kind in (Autoregression, SeasonalNaive, Persistence)]


def backtest(
    predictors: Sequence[Predictor],
    sequences: Sequences,
    config: ModelConfig,
    start_us: int,
    end_us: int | None = None,
    *,
    scale: Floats | None = None,
) -> dict[str, Scores]:
    """Scores by predictor's name, over the forecasts whose whole horizon lies in ``[start_us, end_us)``.

    So every horizon step is scored on the same forecasts: those issued at accepted readings from one cadence before
    ``start_us`` on. The memory used does not grow with the number of steps.

    Args:
        config: its targets, quantiles, horizon and season are those of all predictors.
        end_us: by default just after the last step.
        scale: (S, K) divisor of errors in scaled scores; by default ``seasonal_scale`` before ``start_us``.

    Raises:
        ValueError: no forecast has its horizon in the range, a forecast is non-finite or of another shape, or two
            predictors have the same name.
    """
    end_us = int(sequences.timestamp_us.max(initial=start_us)) + 1 if end_us is None else end_us
    season = seasonal_scale(sequences, config, start_us)
    scale = season if scale is None else scale
    h = config.horizon_steps
    scores = {
        predictor.name: Scores.empty(sequences.sensors, config.targets, config.quantiles, scale, h, season)
        for predictor in predictors
    }
    if len(scores) < len(predictors):
        raise ValueError("two predictors have the same name; give each its own")
    columns = sequences.columns(config.targets)
    for stretches in _stretches(sequences, config, start_us, end_us):
        labels = [_labels(sequences, stretch, h, columns, start_us, end_us) for stretch in stretches]
        for predictor in predictors:
            found = ask(predictor, _requests(sequences, stretches))
            for stretch, forecasts, label in zip(stretches, found, labels, strict=True):
                observed = sequences.observed[stretch.lo : stretch.hi]
                _check(predictor.name, sequences, stretch, forecasts[observed], config)
                scores[predictor.name].add(stretch.sensor, forecasts[observed], label[observed])
    if not any(score.count.any() for score in scores.values()) and predictors:
        raise ValueError(
            f"nothing to score: no reading in the range is followed by {h} steps of horizon within it; "
            "choose a longer range or a shorter horizon"
        )
    return scores


@dataclass(frozen=True)
class _Stretch:
    """Steps [lo, hi) of a sensor."""

    sensor: int
    lo: int
    hi: int


def _stretches(sequences: Sequences, config: ModelConfig, start_us: int, end_us: int) -> Iterator[list[_Stretch]]:
    """The stretches to forecast: groups with one stretch of several sensors; a sensor's stretches in order of time."""
    first_us = start_us - config.cadence_us
    last_us = end_us - config.horizon_steps * config.cadence_us  # the horizon's last step lies before `end_us`
    spans = [_Stretch(sensor, *sequences.span(sensor, first_us, last_us)) for sensor in range(len(sequences.sensors))]
    spans = [span for span in spans if span.hi > span.lo]
    numbers = config.target_count * len(config.quantiles) * config.horizon_steps
    rows = max(1, _STRETCH_NUMBERS // numbers)
    together = min(_SENSORS_TOGETHER, rows)
    for begin in range(0, len(spans), together):
        group = spans[begin : begin + together]
        length = max(1, rows // len(group))
        for back in range(0, max(span.hi - span.lo for span in group), length):
            yield [
                _Stretch(span.sensor, span.lo + back, min(span.lo + back + length, span.hi))
                for span in group
                if span.lo + back < span.hi
            ]


def ask(predictor: Predictor, requests: Sequence[ForecastRequest]) -> list[Floats]:
    """(n, K, Q, h) for each request; in one call if the predictor is a ``TogetherPredictor``."""
    if isinstance(predictor, TogetherPredictor):
        return predictor.forecasts_together(requests)
    return [predictor.forecasts(one.steps, 0, one.lo, len(one.steps)) for one in requests]


def _requests(sequences: Sequences, stretches: list[_Stretch]) -> list[ForecastRequest]:
    return [
        ForecastRequest(sequences.past(stretch.sensor, stretch.hi), stretch.lo - int(sequences.starts[stretch.sensor]))
        for stretch in stretches
    ]


def _labels(sequences: Sequences, stretch: _Stretch, h: int, columns: list[int], start_us: int, end_us: int) -> Floats:
    index = sequences.label_index(stretch.lo, stretch.hi, np.arange(1, h + 1), until_us=end_us)
    index[(index >= 0) & (sequences.timestamp_us[index] < start_us)] = -1
    return sequences.values_at(index, columns)


def _check(name: str, sequences: Sequences, stretch: _Stretch, forecasts: Floats, config: ModelConfig) -> None:
    """Raise ``ValueError`` for incomplete forecasts: all predictors must be scored on the same labels."""
    shape = (config.target_count, len(config.quantiles), config.horizon_steps)
    if forecasts.shape[1:] != shape:
        raise ValueError(f"{name} gave forecasts of shape {forecasts.shape[1:]} instead of {shape}")
    if not np.isfinite(forecasts).all():
        sensor = sequences.sensors[stretch.sensor]
        raise ValueError(f"{name} gave a non-finite forecast for sensor {sensor}")


class Leak(AssertionError):
    """A predictor's forecasts depend on later readings."""


def assert_causal(
    build: Callable[[Sequences], Predictor],
    sequences: Sequences,
    config: ModelConfig,
    cuts_us: Sequence[int],
    *,
    tolerance: float = 0.0,
) -> None:
    """Check that other values from each cut on change no forecast before it.

    Outlooks that were issued at the cut or later change too, whichever steps see them. So the steps' own outlooks are
    checked: a step must not see an outlook that was issued after its own time.

    Args:
        build: builds and fits the predictor from a data set; fitting may use the steps before the earliest cut.
        cuts_us: moments, best in the middle of stretches.
        tolerance: largest difference allowed, in scales; with 0 the bits must be equal.

    Raises:
        Leak: a forecast changed; the message names the predictor, the sensor and the moment.
    """
    scale = seasonal_scale(sequences, config, max(cuts_us))
    for number, cut_us in enumerate(cuts_us):
        changed = _with_another_future(sequences, cut_us, seed=number)
        truth, fake = build(sequences), build(changed)
        for sensor, name in enumerate(sequences.sensors):
            lo, hi = sequences.span(sensor)
            # No forecast is issued at an inserted step; it may see an outlook whose record came after it.
            before = np.flatnonzero(sequences.observed[lo : sequences.span(sensor, None, cut_us)[1]])
            one = _Stretch(sensor, lo, hi)
            expected, found = (ask(p, _requests(s, [one]))[0][before] for p, s in ((truth, sequences), (fake, changed)))
            differs = ~np.isclose(found, expected, rtol=0.0, atol=tolerance * scale[sensor].max(), equal_nan=True)
            if differs.any():
                step = lo + int(before[differs.any(axis=(1, 2, 3))][0])
                raise Leak(
                    f"{truth.name}: the forecast for sensor {name} issued at {sequences.timestamp_us[step]} µs depends "
                    f"on readings or outlooks at {cut_us} µs or later"
                )


def _with_another_future(sequences: Sequences, cut_us: int, seed: int) -> Sequences:
    """The same data set, with other values and other missing values from the cut on.

    Outlooks that were issued from the cut on, or that no earlier reading sees, have other values.
    """
    random = np.random.default_rng(seed)
    future = sequences.timestamp_us >= cut_us
    size = 1.0 + np.nan_to_num(np.nanmax(np.abs(sequences.values), axis=0, initial=0.0))
    noise = random.normal(3.0, 10.0, (int(future.sum()), len(sequences.features))) * size
    noise[random.random(noise.shape) < 0.1] = np.nan
    noise[~sequences.observed[future]] = np.nan
    values = sequences.values.copy()
    values[future] = noise
    outlooks = sequences.outlooks
    if outlooks is not None and sequences.outlook is not None:
        later = np.ones(len(outlooks), bool)
        seen = sequences.outlook[~future & sequences.observed]
        later[seen[seen != NO_OUTLOOK]] = False
        later |= outlooks.issued_us >= cut_us
        cells = outlooks.values.copy()
        cells[later] = random.normal(0.0, 100.0, cells[later].shape)
        outlooks = replace(outlooks, values=cells)
    return replace(sequences, values=values, outlooks=outlooks)
