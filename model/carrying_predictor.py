"""Predictors for the evaluator that forecast many sensors at once and carry each sensor's state between questions.

Letters: n steps, K targets, Q quantiles, h horizon steps.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import numpy as np

from .config import ModelConfig
from .normaliser import Floats
from .sequences import Sequences

# Most sensors whose state near the first step asked for is kept: a bound on memory for any number of sensors.
_KEPT_SENSORS: Final = 16


@dataclass(frozen=True)
class ForecastRequest:
    """A sensor's steps so far; a forecast is wanted after each step from ``lo`` on."""

    steps: Sequences  # the steps of this sensor alone
    lo: int

    @property
    def sensor(self) -> str:
        """The sensor's id."""
        return self.steps.sensors[0]


class BatchPredictor(ABC):
    """A predictor for the evaluator that forecasts many sensors at once."""

    name: str

    def forecasts(self, sequences: Sequences, sensor: int, lo: int, hi: int) -> Floats:
        """(hi-lo, K, Q, h) after each of a sensor's steps [lo, hi)."""
        request = ForecastRequest(sequences.past(sensor, hi), lo - int(sequences.starts[sensor]))
        return self.forecasts_together([request])[0]

    @abstractmethod
    def forecasts_together(self, requests: Sequence[ForecastRequest]) -> list[Floats]:
        """(n, K, Q, h) for each request."""


@dataclass
class CarriedState:
    """A sensor's state after its first ``next`` steps."""

    next: int


State = TypeVar("State", bound=CarriedState)
Group = Sequence[tuple[ForecastRequest, State, int]]  # and the number of steps to take next; longest first


class CarryingPredictor(BatchPredictor, Generic[State]):
    """A predictor that carries each sensor's state from one stretch to the next."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._carried: dict[str, State] = {}
        self._kept: dict[str, State] = {}  # sensor -> state shortly before the first step ever asked for

    def forecasts_together(self, requests: Sequence[ForecastRequest]) -> list[Floats]:
        """(n, K, Q, h) for each request; the requests are of different sensors.

        Only the states of these sensors are kept: the evaluator goes through all stretches of a group of sensors before
        it takes the next group. A sensor without such a state, or whose state is past ``lo``, begins at its kept state:
        the one shortly before the first step ever asked for. So later questions about the same part of the data do not
        go through its past again. If the kept state is missing or past ``lo``, the sensor begins at its first step.
        """
        config = self._config
        shape = (config.target_count, len(config.quantiles), config.horizon_steps)
        found = [np.empty((len(one.steps) - one.lo, *shape)) for one in requests]
        states = [self._state(one) for one in requests]
        most = max(1, self._most_rounds(len(requests)))
        while True:
            left = np.array([len(one.steps) - state.next for one, state in zip(requests, states, strict=True)])
            lengths = np.minimum(left, most)
            order = np.argsort(-lengths, kind="stable")
            order = order[lengths[order] > 0]
            if not len(order):
                break
            group = [(requests[i], states[i], int(lengths[i])) for i in order]
            for request, state, length in group:
                self._keep(request, state, length)
            for i, (rows, quantiles) in zip(order, self._step_group(group), strict=True):
                found[i][rows] = quantiles
        self._carried = {one.sensor: state for one, state in zip(requests, states, strict=True)}
        return found

    def _state(self, one: ForecastRequest) -> State:
        carried, kept = self._carried.get(one.sensor), self._kept.get(one.sensor)
        if carried is not None and carried.next <= one.lo:
            return carried
        return deepcopy(kept) if kept is not None and kept.next <= one.lo else self._blank_state()

    def _keep(self, one: ForecastRequest, state: State, length: int) -> None:
        """Keep the state if the next ``length`` steps reach the first step that is asked for, once per sensor."""
        reaches = state.next <= one.lo < state.next + length
        if reaches and one.sensor not in self._kept and len(self._kept) < _KEPT_SENSORS:
            self._kept[one.sensor] = deepcopy(state)

    @abstractmethod
    def _blank_state(self) -> State:
        """The state of a sensor before its first step."""

    @abstractmethod
    def _most_rounds(self, sensors: int) -> int:
        """The rounds of this number of sensors that fit into memory at a time."""

    @abstractmethod
    def _step_group(self, group: Group[State]) -> list[tuple[slice, Floats]]:
        """Step the states; return a slice of each sensor's answer and the quantiles to put there."""
