"""Periodic retraining in a back-test: each model forecasts from when it was trained until the next one.

As it would be in service: a retraining sees what had been read by then, and nothing later; the new model's states are
warmed up on the past before it takes over.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .config import Adaptation, ModelConfig
from .forecaster import Forecaster
from .normaliser import Floats
from .predictor import ForecastRequest, ModelPredictor, model_predictor
from .sequences import Sequences, Split
from .training import EpochReport, TrainingOptions, train


@dataclass(frozen=True)
class Retraining:
    """A model and the moment from which on it forecasts."""

    from_us: int
    forecaster: Forecaster


def retrain_every(
    every_us: int,
    first: Forecaster,
    options: TrainingOptions,
    sequences: Sequences,
    split: Split,
    report: Callable[[int, EpochReport], None] | None = None,
) -> Iterator[Retraining]:
    """The first model from the beginning on, then one after each period of the test part, in order of time.

    Each begins from the weights before it, is trained on all that was read before its moment but the newest part, as
    long as the validation part of ``split``, on which its best epoch is chosen.

    Args:
        first: trained on what came before ``split.validation_end_us``.
        report: gets the moment of the retraining, and each of its epochs.

    Raises:
        ValueError: as ``train``.
    """
    yield Retraining(int(sequences.timestamp_us.min()), first)
    config = replace(first.config, sensors=())
    options = replace(options, preset=first.config.preset, hidden_size=first.config.hidden_size)
    validation_us = split.validation_end_us - split.train_end_us
    last_us = int(sequences.timestamp_us.max())
    for moment_us in range(split.validation_end_us + every_us, last_us + 1, every_us):
        seen = sequences.slice_time(None, moment_us)
        first = _retrain(config, options, seen, Split(moment_us - validation_us, moment_us), first, report)
        yield Retraining(moment_us, first)


def _retrain(
    config: ModelConfig,
    options: TrainingOptions,
    seen: Sequences,
    split: Split,
    initial: Forecaster,
    report: Callable[[int, EpochReport], None] | None,
) -> Forecaster:
    def told(epoch: EpochReport) -> None:
        if report is not None:
            report(split.validation_end_us, epoch)

    return train(config, options, seen, split, initial=initial, report=told).forecaster


class RetrainedPredictor:
    """Forecasts of several models by the evaluator's protocol, each from its moment on."""

    def __init__(self, models: Sequence[Retraining], name: str, adaptation: Adaptation) -> None:
        self.name = name
        self._from_us = np.array([model.from_us for model in models])
        self._predictors: list[ModelPredictor] = [model_predictor(one.forecaster, name, adaptation) for one in models]

    def forecasts(self, sequences: Sequences, sensor: int, lo: int, hi: int) -> Floats:
        """(hi-lo, K, Q, h) after each of a sensor's steps [lo, hi)."""
        return self.forecasts_together(
            [ForecastRequest(sequences.past(sensor, hi), lo - int(sequences.starts[sensor]))]
        )[0]

    def forecasts_together(self, requests: Sequence[ForecastRequest]) -> list[Floats]:
        """As ``forecasts``, for a stretch of each of several sensors."""
        parts: list[list[Floats]] = [[] for _ in requests]
        ends = np.append(self._from_us[1:], np.iinfo(np.int64).max)
        for predictor, begin_us, end_us in zip(self._predictors, self._from_us, ends, strict=True):
            asked, numbers = [], []
            for number, one in enumerate(requests):
                lo, hi = one.steps.span(0, None if begin_us == self._from_us[0] else int(begin_us), int(end_us))
                lo = max(lo, one.lo)
                if hi > lo:
                    asked.append(ForecastRequest(one.steps.past(0, hi), lo))
                    numbers.append(number)
            for number, found in zip(numbers, predictor.forecasts_together(asked) if asked else [], strict=True):
                parts[number].append(found)
        return [np.concatenate(found) for found in parts]
