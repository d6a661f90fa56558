"""The evaluator: the one way in which forecasts are scored, laid out so that they cannot see what they are scored on.

Prequential: every reading is forecast from in turn, with whatever state the readings before it have left. A predictor
is handed a sensor's steps only up to the end of the stretch it is asked for; labels are looked up afterwards, by the
evaluator. Within a stretch, and while fitting, a predictor could still cheat: ``assert_causal`` finds out by changing
the future.

Letters: n steps, S sensors, K targets, Q quantiles, h horizon steps.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .autoregression import Autoregression
from .baselines import Persistence, SeasonalNaive, is_constant, seasonal_scale
from .config import ModelConfig
from .metrics import Metric, Scores
from .predictor import ForecastRequest, model_predictor
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

# Numbers in the forecasts of one stretch, all its sensors together: 32 MB, a few times over.
_STRETCH_NUMBERS: Final = 4_000_000
# Sensors forecast together: as many as keep a batched model busy.
_SENSORS_TOGETHER: Final = 256


class Predictor(Protocol):
    """Whatever forecasts; it may carry state from one call to the next."""

    @property
    def name(self) -> str:
        """What its scores are listed under."""

    def forecasts(self, sequences: Sequences, sensor: int, lo: int, hi: int) -> Floats:
        """(hi-lo, K, Q, h) quantiles after each of a sensor's steps [lo, hi), in the sensor's unit.

        The evaluator asks for each sensor's stretches in ascending order, and shows no step from ``hi`` on and no other
        sensor: ``sequences`` then holds that one alone, and ``lo`` counts from its first step.
        """


@runtime_checkable
class TogetherPredictor(Protocol):
    """A predictor that is faster over many sensors at once; the evaluator then asks it so."""

    @property
    def name(self) -> str:
        """As ``Predictor.name``."""

    def forecasts_together(self, requests: Sequence[ForecastRequest]) -> list[Floats]:
        """As ``forecasts``, for a stretch of each of several sensors."""


def baselines(config: ModelConfig, sequences: Sequences, until_us: int) -> list[Predictor]:
    """What every model is scored beside; they may know all that came before ``until_us``."""
    kinds = (Autoregression, SeasonalNaive, Persistence)
    return [kind(config).fit(sequences, until_us) for kind in kinds]


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
    ``start_us`` on. Memory is bounded, whatever the number of steps.

    Args:
        config: for targets, quantiles, horizon and season, which all predictors share.
        end_us: by default just after the last step.
        scale: (S, K) that errors are divided by in scaled scores; by default ``seasonal_scale`` before ``start_us``.

    Raises:
        ValueError: there is nothing to score, or a forecast is not a finite number.
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
        raise ValueError("predictors need names that differ")
    columns = sequences.columns(config.targets)
    for stretches in _stretches(sequences, config, start_us, end_us):
        labels = [_labels(sequences, stretch, h, columns, start_us, end_us) for stretch in stretches]
        for predictor in predictors:
            found = ask(predictor, _shown(sequences, stretches))
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
    """What to forecast in one go: stretches of several sensors, each sensor's in ascending order of time."""
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
    """Each stretch's forecasts (hi-lo, K, Q, h), of all sensors together where the predictor can do that."""
    if isinstance(predictor, TogetherPredictor):
        return predictor.forecasts_together(requests)
    return [predictor.forecasts(one.steps, 0, one.lo, len(one.steps)) for one in requests]


def _shown(sequences: Sequences, stretches: list[_Stretch]) -> list[ForecastRequest]:
    return [
        ForecastRequest(sequences.past(stretch.sensor, stretch.hi), stretch.lo - int(sequences.starts[stretch.sensor]))
        for stretch in stretches
    ]


def _labels(sequences: Sequences, stretch: _Stretch, h: int, columns: list[int], start_us: int, end_us: int) -> Floats:
    index = sequences.label_index(stretch.lo, stretch.hi, np.arange(1, h + 1), until_us=end_us)
    index[(index >= 0) & (sequences.timestamp_us[index] < start_us)] = -1
    return sequences.values_at(index, columns)


def _check(name: str, sequences: Sequences, stretch: _Stretch, forecasts: Floats, config: ModelConfig) -> None:
    """Every predictor is scored on the same labels, so none may decline to forecast."""
    shape = (config.target_count, len(config.quantiles), config.horizon_steps)
    if forecasts.shape[1:] != shape:
        raise ValueError(f"{name} gave forecasts of shape {forecasts.shape[1:]}, and {shape} is wanted")
    if not np.isfinite(forecasts).all():
        sensor = sequences.sensors[stretch.sensor]
        raise ValueError(f"{name} gave a forecast for sensor {sensor} that is not a finite number")


class Leak(AssertionError):
    """A predictor's forecasts depend on what came after them."""


def assert_causal(
    build: Callable[[Sequences], Predictor],
    sequences: Sequences,
    config: ModelConfig,
    cuts_us: Sequence[int],
    *,
    tolerance: float = 0.0,
) -> None:
    """Pass only where changing everything from each cut on leaves the forecasts before it as they were.

    Args:
        build: makes the predictor, fitting and all, from the data set it is given; fitting may use what lies before the
            earliest cut.
        cuts_us: moments, best in the middle of stretches.
        tolerance: largest difference allowed, in scales; 0 asks for equal bits.

    Raises:
        Leak: naming the predictor, the sensor and the moment.
    """
    scale = seasonal_scale(sequences, config, max(cuts_us))
    for number, cut_us in enumerate(cuts_us):
        changed = _with_another_future(sequences, cut_us, seed=number)
        truth, fake = build(sequences), build(changed)
        for sensor, name in enumerate(sequences.sensors):
            lo, hi = sequences.span(sensor)
            before = slice(0, sequences.span(sensor, None, cut_us)[1] - lo)
            one = _Stretch(sensor, lo, hi)
            expected, found = (ask(p, _shown(s, [one]))[0][before] for p, s in ((truth, sequences), (fake, changed)))
            differs = ~np.isclose(found, expected, rtol=0.0, atol=tolerance * scale[sensor].max(), equal_nan=True)
            if differs.any():
                step = lo + int(np.flatnonzero(differs.any(axis=(1, 2, 3)))[0])
                raise Leak(
                    f"{truth.name}: the forecast for sensor {name} issued at {sequences.timestamp_us[step]} µs changes "
                    f"with what was read at {cut_us} µs or later"
                )


def _with_another_future(sequences: Sequences, cut_us: int, seed: int) -> Sequences:
    """Other values from the cut on, of another size and with other gaps; nothing changed before it."""
    random = np.random.default_rng(seed)
    future = sequences.timestamp_us >= cut_us
    size = 1.0 + np.nan_to_num(np.nanmax(np.abs(sequences.values), axis=0, initial=0.0))
    noise = random.normal(3.0, 10.0, (int(future.sum()), len(sequences.features))) * size
    noise[random.random(noise.shape) < 0.1] = np.nan
    noise[~sequences.observed[future]] = np.nan
    values = sequences.values.copy()
    values[future] = noise
    return replace(sequences, values=values)
