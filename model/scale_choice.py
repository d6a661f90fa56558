"""Chooses the scale that a target is modelled on (``model.target_scale``), before the training.

The adaptive autoregression, which takes seconds, forecasts a target on both scales. Its forecasts are scored in the
sensors' units on the validation part; later readings are not seen.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from .autoregression import Autoregression
from .backtest import backtest, seasonal_scale
from .bounds import Floats, within_bounds
from .carrying_predictor import BatchPredictor, ForecastRequest
from .config import ModelConfig
from .forecaster import Forecaster
from .sequences import Sequences, Split
from .target_scale import from_model_scale, to_model_scale
from .training_options import TrainingOptions
from .unit_change import in_own_units

logger = logging.getLogger("streamgru.training")

MARGIN: Final = 0.01  # least relative gain in pinball loss for which square roots are chosen
# Bounds on the time: targets with a minimum that are tried, sensors of each, steps of a sensor that are scored, and
# steps before them that the autoregression learns from.
_TARGETS: Final = 16
_SENSORS: Final = 16
_SCORED_STEPS: Final = 4_000
_EARLIER_STEPS: Final = 2_000


@dataclass(frozen=True)
class Choice:
    """The scale of one target, with the pinball losses of the autoregression on the validation part."""

    target: str
    by_values: float
    by_roots: float

    @property
    def roots(self) -> bool:
        """Whether the target is modelled by roots."""
        return self.by_roots < (1.0 - MARGIN) * self.by_values

    def __str__(self) -> str:
        scale = "square roots" if self.roots else "its values"
        return (
            f"{self.target} is modelled by {scale}: on the validation part, the pinball loss of an autoregression is "
            f"{self.by_roots:.4g} with square roots and {self.by_values:.4g} without"
        )


def scaled_config(
    config: ModelConfig,
    options: TrainingOptions,
    sequences: Sequences,
    split: Split,
    initial: Forecaster | None = None,
) -> ModelConfig:
    """The configuration with the scale of each target: that of ``initial``, otherwise chosen.

    Each choice is logged. The plain preset has no other scale than the values.
    """
    if initial is not None:
        for target, each in zip(config.targets, config.bounds, strict=False):
            if np.isfinite(each.lowest):
                logger.info("%s keeps the scale of the model whose weights training begins with", target)
        return replace(config, roots=initial.config.roots)
    if options.preset == "plain":
        return config
    config, choices = choose_scale(config, sequences, split)
    for choice in choices:
        logger.info("%s", choice)
    return config


def choose_scale(config: ModelConfig, sequences: Sequences, split: Split) -> tuple[ModelConfig, list[Choice]]:
    """The configuration with the scale of each target, and a choice for each target with a minimum."""
    bounded = [target for target, each in zip(config.targets, config.bounds, strict=False) if np.isfinite(each.lowest)]
    choices = []
    if len(bounded) > _TARGETS:
        logger.info("modelled by their values, since %d targets have been tried: %s", _TARGETS, bounded[_TARGETS:])
    for target in bounded[:_TARGETS]:
        choice = _choice(config, target, sequences, split)
        if choice is not None:
            choices.append(choice)
    by_roots = {choice.target for choice in choices if choice.roots}
    roots = tuple(target in by_roots for target in config.targets) if by_roots else ()
    return replace(config, roots=roots), choices


def _choice(config: ModelConfig, target: str, sequences: Sequences, split: Split) -> Choice | None:
    """None if the validation part has no forecast of the target to score."""
    one = replace(
        config, features=(target,), targets=(target,), bounds=(config.bounds[config.targets.index(target)],), roots=()
    )
    data = _part(one, sequences, split)
    scales = {"by_values": one, "by_roots": replace(one, roots=(True,))}
    try:
        rivals = [_OnScale(scaled, name).fit(data, split.train_end_us) for name, scaled in scales.items()]
        usual = seasonal_scale(data, one, split.train_end_us, robust=True)
        scores = backtest(rivals, data, one, split.train_end_us, scale=usual)
    except ValueError as error:  # such as a validation part that is shorter than the horizon
        logger.info("%s is modelled by its values: %s", target, error)
        return None
    losses = {name: score.mean("pinball") for name, score in scores.items()}
    return Choice(target, **losses) if np.isfinite(list(losses.values())).all() else None


def _part(config: ModelConfig, sequences: Sequences, split: Split) -> Sequences:
    """Some sensors' steps around the beginning of the validation part, in own units, with one feature alone."""
    column = sequences.columns(config.targets)
    count = len(sequences.sensors)
    chosen = np.unique(np.linspace(0, count - 1, min(count, _SENSORS)).astype(int))
    spans = []
    for sensor in chosen.tolist():
        at = sequences.span(sensor, split.train_end_us)[0]
        lo, hi = sequences.span(sensor, None, split.validation_end_us)
        spans.append((max(lo, at - _EARLIER_STEPS), min(hi, at + _SCORED_STEPS)))
    index = np.concatenate([np.arange(lo, max(lo, hi)) for lo, hi in spans])
    starts = np.cumsum([0, *(max(lo, hi) - lo for lo, hi in spans)])
    part = sequences.select(index, starts, tuple(sequences.sensors[sensor] for sensor in chosen.tolist()))
    values = in_own_units(part.starts, part.reset, np.ascontiguousarray(part.values[:, column]))
    return replace(part, values=values, features=config.features)


class _OnScale(BatchPredictor):
    """An autoregression on a model's scale, with forecasts in the sensors' units."""

    def __init__(self, config: ModelConfig, name: str) -> None:
        self.name = name
        self._config = config
        self._inner = Autoregression(replace(config, bounds=(), roots=()))

    def fit(self, sequences: Sequences, until_us: int) -> "_OnScale":
        """Set the forecast of sensors without a value yet."""
        self._inner.fit(self._scaled(sequences), until_us)
        return self

    def forecasts_together(self, requests: Sequence[ForecastRequest]) -> list[Floats]:
        """(n, 1, Q, h) for each request."""
        config = self._config
        found = self._inner.forecasts_together([replace(one, steps=self._scaled(one.steps)) for one in requests])
        return [within_bounds(config.bounds, from_model_scale(config, each)) for each in found]

    def _scaled(self, sequences: Sequences) -> Sequences:
        return replace(sequences, values=to_model_scale(self._config, sequences.values))
