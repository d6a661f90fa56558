"""Periodic retraining in a back-test: each model forecasts until the next one has been trained.

As in service, a retraining uses only the readings before its moment, and the new model's states are warmed up on past
readings before it takes over.

Letters: n steps, K targets, Q quantiles, h horizon steps.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from .carrying_predictor import BatchPredictor, ForecastRequest
from .config import Adaptation
from .forecaster import Forecaster
from .normaliser import Floats
from .predictor import model_predictor
from .sequences import Sequences, Split
from .training import EpochReport, TrainingOptions, train


@dataclass(frozen=True)
class Retraining:
    """A model, and the moment from which it forecasts."""

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
    """The first model, then one retrained after each ``every_us`` of the test part, in order of time.

    Each training begins from the weights of the model before it, and uses the steps before its moment. Its best epoch
    is chosen on the newest steps, over a time as long as the validation part of ``split``.

    Args:
        first: trained on the steps before ``split.validation_end_us``.
        report: called with the moment of the retraining, in µs, and each of its epochs.

    Raises:
        ValueError: as for ``train``.
    """
    yield Retraining(int(sequences.timestamp_us.min()), first)
    config = replace(first.config, sensors=())
    options = replace(options, preset=first.config.preset, hidden_size=first.config.hidden_size)
    validation_us = split.validation_end_us - split.train_end_us
    last_us = int(sequences.timestamp_us.max())
    for moment_us in range(split.validation_end_us + every_us, last_us + 1, every_us):
        seen = sequences.slice_time(None, moment_us)
        parts = Split(moment_us - validation_us, moment_us)
        progress = None if report is None else partial(report, moment_us)
        first = train(config, options, seen, parts, initial=first, report=progress).forecaster
        yield Retraining(moment_us, first)


class RetrainedPredictor(BatchPredictor):
    """The forecasts of several models for the evaluator, each from its moment until the moment of the next model."""

    def __init__(self, models: Sequence[Retraining], name: str, adaptation: Adaptation) -> None:
        self.name = name
        self._from_us = np.array([model.from_us for model in models])
        self._predictors = [model_predictor(one.forecaster, name, adaptation) for one in models]

    def forecasts_together(self, requests: Sequence[ForecastRequest]) -> list[Floats]:
        """(n, K, Q, h) for each request."""
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
