"""A model's forecasts over whole data sets: many sensors side by side, with carried states.

The engine that steps the states is the stream's, so the forecasts are the stream's to the bit.

Letters: G sensors of a group, M steps of all of them, n forecasts, K targets, Q quantiles, h horizon steps, C inputs
known ahead.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .carrying_predictor import CarriedState, CarryingPredictor, Group
from .config import NO_ADAPTATION, Adaptation
from .engine import Engine
from .forecaster import Forecaster
from .normaliser import Floats
from .state import States, blank_states
from .step_plan import StepPlan

Rounding = Callable[[Floats, Floats, Floats], Floats]

# Largest number of steps of a sensor, and of numbers in the forecasts of all sensors, that are computed at once: a
# bound on memory for a long past. Adaptation holds some seven arrays of that size.
_ROUNDS: Final = 256
_NUMBERS: Final = 4_000_000


@dataclass
class _SensorState(CarriedState):
    record: States  # (1,)


class ModelPredictor(CarryingPredictor[_SensorState]):
    """A model's forecasts for the evaluator; see ``model_predictor``."""

    def __init__(
        self,
        forecaster: Forecaster,
        name: str,
        adaptation: Adaptation = NO_ADAPTATION,
        rounding: Rounding | None = None,
    ) -> None:
        super().__init__(forecaster.config)
        self.name = name
        self._rounding = rounding
        self._adaptation = adaptation
        self._engine = Engine(forecaster.eval(), adaptation)
        self._known_ahead = forecaster.ahead_inputs()

    def _blank_state(self) -> _SensorState:
        return _SensorState(next=0, record=blank_states(self._config, 1, self._adaptation))

    def _most_rounds(self, sensors: int) -> int:
        numbers = self._config.target_count * len(self._config.quantiles) * self._config.horizon_steps
        return min(_ROUNDS, _NUMBERS // max(1, numbers * sensors))

    def _step_group(self, group: Group[_SensorState]) -> list[tuple[slice, Floats]]:
        states = np.concatenate([state.record for _, state, _ in group])
        plan = StepPlan.of_sequences([(one.steps, state.next, state.next + length) for one, state, length in group])
        asked = [min(max(one.lo - state.next, 0), length) for one, state, length in group]
        # Adaptation learns from every forecast, including those before the first that is wanted.
        first = [0] * len(group) if self._adaptation.active else asked
        ends = np.cumsum([length - begin for begin, (_, _, length) in zip(first, group, strict=True)])
        wanted = np.concatenate(
            [np.arange(*bounds) for bounds in zip(plan.starts[:-1] + first, plan.starts[1:], strict=True)]
        )
        sensors = [one.sensor for one, _, _ in group]
        made = self._engine.step(states, sensors, plan, wanted, self._ahead(group, first))
        quantiles = made.quantiles
        if self._rounding is not None:
            quantiles = self._rounding(quantiles, made.scale, made.limits)
        answers = []
        for g, (one, state, length) in enumerate(group):
            start = state.next + asked[g] - one.lo
            count = length - asked[g]
            answers.append((slice(start, start + count), quantiles[ends[g] - count : ends[g]]))
            state.next += length
            state.record = states[g : g + 1].copy()
        return answers

    def _ahead(self, group: Group[_SensorState], first: list[int]) -> NDArray[np.float32] | None:
        """(n, C) the inputs known ahead of the sensors' rounds from ``first`` on; None if the model has none."""
        if self._known_ahead is None:
            return None
        found = []
        for (one, state, length), begin in zip(group, first, strict=True):
            steps, here = one.steps, slice(state.next + begin, state.next + length)
            row = steps.outlook[here] if steps.outlook is not None else None
            found.append(self._known_ahead.of_arrays(steps.timestamp_us[here], steps.outlooks, row).cpu().numpy())
        return np.concatenate(found)


def model_predictor(
    forecaster: Forecaster,
    name: str = "model",
    adaptation: Adaptation = NO_ADAPTATION,
    rounding: Rounding | None = None,
) -> ModelPredictor:
    """A predictor for the evaluator that steps a model through each sensor from its first reading on.

    With the stream's ``adaptation`` its forecasts are those of the stream, to the bit.

    Args:
        rounding: the forecasts as they are published, from quantiles (n, K, Q, h), scale (n, K) and limits (n, K, 2).
    """
    return ModelPredictor(forecaster, name, adaptation, rounding)
