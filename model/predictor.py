"""A model's forecasts over whole data sets: many sensors side by side, with carried states.

The inputs come from the same functions as in the stream, so forecasts agree with those of ``model.stepper`` up to the
rounding of float32 matrix products. That rounding depends on the products' shapes here, and does not in the stepper.

Letters: G sensors together, T rounds, M steps in all rounds, C steps of context, n steps, F features, K targets,
Q quantiles, P profile slots, h horizon steps, L layers, H hidden, D inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .adaptation import Rounds, adapt
from .ahead_inputs import AheadInputs
from .carrying_predictor import CarriedState, CarryingPredictor, Group
from .config import NO_ADAPTATION, Adaptation, ModelConfig
from .experts import AdaptationConfig, States, adaptation_dtype
from .forecaster import Forecaster
from .inputs import Past, marks_of_begins, step_inputs
from .normaliser import Floats, NormaliserState, NormaliserTrace
from .published_unit import to_published_unit
from .target_scale import to_model_scale
from .tiled_gru import using_threads
from .unit_change import Followed, follow
from .unit_kernel import HYPOTHESES, NUMBERS

# Largest number of rounds, and of numbers in the forecasts of all sensors, that are computed at once: a bound on memory
# for a long past. Adaptation holds some seven arrays of that size.
_ROUNDS: Final = 256
_NUMBERS: Final = 4_000_000


@dataclass
class _SensorState(CarriedState):
    norm: NormaliserState  # one row
    hidden: Tensor  # (L, H)
    tail: Floats  # (C, K) the targets' last values, step by step
    begin: NDArray[np.int64]  # (K,) newest steps of the tail that belong to the state
    adaptation: States  # one record
    units: Floats  # (1, F, numbers) of ``model.unit_change``
    unit_evidence: NDArray[np.float32]  # (1, F, hypotheses)


class ModelPredictor(CarryingPredictor[_SensorState]):
    """A model's forecasts for the evaluator; see ``model_predictor``."""

    def __init__(self, forecaster: Forecaster, name: str, adaptation: Adaptation = NO_ADAPTATION) -> None:
        super().__init__(forecaster.config)
        self.name = name
        self._adapting = AdaptationConfig.of(forecaster.config, adaptation)
        self._forecaster = forecaster.eval()
        self._known_ahead = forecaster.ahead_inputs()

    def _blank_state(self) -> _SensorState:
        F, K = self._config.feature_count, self._config.target_count
        return _SensorState(
            next=0,
            norm=NormaliserState.blank(self._config, 1),
            hidden=self._forecaster.gru.zeros(1)[:, 0],
            tail=np.zeros((_context(self._config), K)),
            begin=np.zeros(K, np.int64),
            adaptation=np.zeros(1, adaptation_dtype(self._adapting)),
            units=np.zeros((1, F, NUMBERS)),
            unit_evidence=np.zeros((1, F, HYPOTHESES), np.float32),
        )

    def _most_rounds(self, sensors: int) -> int:
        numbers = self._config.target_count * len(self._config.quantiles) * self._config.horizon_steps
        return min(_ROUNDS, _NUMBERS // max(1, numbers * sensors))

    @torch.inference_mode()
    @using_threads(1)  # a step's products are small: a second thread gains nothing, and crawls on a busy core
    def _step_group(self, group: Group[_SensorState]) -> list[tuple[slice, Floats]]:
        return _Rounds(self._forecaster, self._adapting, self._known_ahead, group).forecasts()


def model_predictor(
    forecaster: Forecaster, name: str = "model", adaptation: Adaptation = NO_ADAPTATION
) -> ModelPredictor:
    """A predictor for the evaluator that steps a model through each sensor from its first reading on.

    With the stream's ``adaptation`` its forecasts are those of the stream.
    """
    return ModelPredictor(forecaster, name, adaptation)


def _context(config: ModelConfig) -> int:
    """C: steps before the current one that the lags among its inputs reach."""
    return max(config.lag_steps - 1, 0)


class _Rounds:
    """The next steps of several sensors, longest first; round r takes each sensor's r-th."""

    def __init__(
        self,
        forecaster: Forecaster,
        adapting: AdaptationConfig,
        known_ahead: AheadInputs | None,
        group: Group[_SensorState],
    ) -> None:
        self._forecaster = forecaster
        self._known_ahead = known_ahead
        self._adapting = adapting
        self._group = group
        self._lengths = np.array([length for _, _, length in group])
        self._T, self._G, self._C = int(self._lengths[0]), len(group), _context(forecaster.config)
        # (T, G) whether a sensor has a step in a round. Indexing with it lists the steps round by round.
        self._has_step = np.arange(self._T)[:, None] < self._lengths

    def forecasts(self) -> list[tuple[slice, Floats]]:
        """Step the states; return a slice of each sensor's answer and the quantiles to put there."""
        config = self._forecaster.config
        targets = list(config.target_indices)
        norm = self._join_normaliser_states()
        before = norm.profile.copy()
        followed = [self._follow(g) for g in range(self._G)] if self._adapting.active else []
        values = self._join([each.values for each in followed]) if followed else self._gather("values")
        values = to_model_scale(config, values)
        trace = self._forecaster.normaliser().step(
            norm, values, self._has_step.sum(axis=1).tolist(), self._gather("reset")
        )
        x = self._spread(step_inputs(trace, self._gather("timestamp_us"), self._gather("elapsed")))
        past = self._past(trace, ~np.isnan(values[:, targets]))
        hidden, h = self._unroll(x, self._spread(trace.steps) == 1)
        level, scale = (self._spread(each[:, targets]) for each in (trace.levels[:, :, 1], trace.scale))
        found = []
        for g, (_, _, length) in enumerate(self._group):
            # Adaptation learns from every forecast, including those before the first that is wanted.
            first = 0 if self._adapting.active else self._first_requested(g)
            index = self._place(g) + np.arange(first, length)
            around = past.inputs(
                index,
                level[first:length, g],
                scale[first:length, g],
                np.broadcast_to(before[g], (len(index), *before.shape[1:])),
            )
            raw = self._forecaster.quantiles(
                hidden[g, first:length],
                self._tensor(x[first:length, g]),
                self._tensor(around),
                self._ahead(g, first, length),
            )
            quantiles = raw.cpu().numpy().astype(np.float64)
            quantiles *= scale[first:length, g, :, None, None]
            quantiles += level[first:length, g, :, None, None]
            found.append(quantiles)
        if self._adapting.active:
            adapted = self._adapt(values[:, targets], hidden, found)
            found = [each[self._first_requested(g) :] for g, each in enumerate(adapted)]
        for g, quantiles in enumerate(found):
            asked = slice(self._first_requested(g), self._group[g][2])
            found[g], _ = to_published_unit(config, quantiles, followed[g] if followed else None, asked)
        answers = []
        for g, (one, state, _) in enumerate(self._group):
            start = state.next + self._first_requested(g) - one.lo
            answers.append((slice(start, start + len(found[g])), found[g]))
        self._store_states(norm, past, h)
        return answers

    def _ahead(self, g: int, first: int, end: int) -> Tensor | None:
        """(end-first, A) the inputs known ahead of some of the sensor's rounds; None if the model has none."""
        if self._known_ahead is None:
            return None
        one, state, _ = self._group[g]
        here = slice(state.next + first, state.next + end)
        steps = one.steps
        row = steps.outlook[here] if steps.outlook is not None else None
        return self._known_ahead.of_arrays(steps.timestamp_us[here], steps.outlooks, row)

    def _follow(self, g: int) -> Followed:
        """The sensor's values in its state's own units. Steps the state's units."""
        one, state, length = self._group[g]
        here = slice(state.next, state.next + length)
        return follow(
            state.units, state.unit_evidence, np.array([0, length]), one.steps.reset[here], one.steps.values[here]
        )

    def _first_requested(self, g: int) -> int:
        """The first of the sensor's rounds whose forecast is wanted; without one, its number of rounds."""
        one, state, length = self._group[g]
        return min(max(one.lo - state.next, 0), length)

    def _adapt(self, values: Floats, hidden: Tensor, found: Sequence[Floats]) -> list[Floats]:
        """Each sensor's forecasts ``found``, adapted at its readings. Steps the sensors' adaptation states."""
        observed = self._gather("observed")
        forecast = np.full(len(observed), -1)
        forecast[observed] = np.arange(int(observed.sum()))
        quantiles = np.zeros((self._T, self._G, *found[0].shape[1:]))
        for g, each in enumerate(found):
            quantiles[: len(each), g] = each
        flat = quantiles[self._has_step]
        states = np.concatenate([state.adaptation for _, state, _ in self._group])
        rounds = Rounds(
            sizes=self._has_step.sum(axis=1).tolist(),
            reset=self._gather("reset"),
            timestamp_us=self._gather("timestamp_us"),
            values=values,
            hidden=hidden.transpose(0, 1).cpu().numpy()[self._has_step],
            forecast=forecast,
            quantiles=flat[observed],
        )
        flat[observed] = adapt(self._adapting, states, rounds).quantiles
        for g, (_, state, _) in enumerate(self._group):
            state.adaptation = states[g : g + 1].copy()
        adapted = self._spread(flat)
        return [adapted[: len(each), g] for g, each in enumerate(found)]

    def _place(self, g: int) -> int:
        """The index of the sensor's first round in the arrays of ``_past``, where it follows its context."""
        return g * (self._C + self._T) + self._C

    def _gather(self, field: str) -> NDArray[Any]:
        """(M, ...) of a field of the steps, round by round."""
        return self._join(
            [getattr(one.steps, field)[state.next : state.next + length] for one, state, length in self._group]
        )

    def _join(self, parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """(M, ...) of the numbers of each sensor's steps, round by round."""
        joined = np.zeros((self._T, self._G, *parts[0].shape[1:]), parts[0].dtype)
        for g, part in enumerate(parts):
            joined[: len(part), g] = part
        return joined[self._has_step]

    def _spread(self, flat: NDArray[Any]) -> NDArray[Any]:
        """(T, G, ...) from the numbers (M, ...) of the steps, round by round; 0 where a sensor has no step."""
        spread = np.zeros((self._T, self._G, *flat.shape[1:]), flat.dtype)
        spread[self._has_step] = flat
        return spread

    def _join_normaliser_states(self) -> NormaliserState:
        joined = NormaliserState.blank(self._forecaster.config, self._G)
        for g, (_, state, _) in enumerate(self._group):
            joined.steps[g] = state.norm.steps[0]
            for name, array in joined.arrays().items():
                array[g] = state.norm.arrays()[name][0]
        return joined

    def _past(self, trace: NormaliserTrace, seen: NDArray[np.bool_]) -> Past:
        """Each sensor's context and rounds, sensor by sensor."""
        config = self._forecaster.config
        targets = list(config.target_indices)
        steps = self._spread(trace.steps)
        place = np.array([self._place(g) for g in range(self._G)])
        index = place + np.arange(self._T)[:, None]
        began = self._spread(marks_of_begins(trace.count[:, targets], seen, trace.steps == 1))
        begin = np.where(began, index[:, :, None], 0)
        begin[0] = np.maximum(begin[0], place[:, None] - np.array([state.begin for _, state, _ in self._group]))
        begin = np.maximum.accumulate(begin, axis=0)

        def laid_out(rounds: NDArray[Any]) -> NDArray[Any]:
            out = np.zeros((self._G, self._C + self._T, *rounds.shape[2:]), rounds.dtype)
            out[:, self._C :] = np.swapaxes(rounds, 0, 1)
            return out

        last = laid_out(self._spread(trace.last[:, targets]))
        last[:, : self._C] = [state.tail for _, state, _ in self._group]
        flat = self._G * (self._C + self._T)
        run = np.minimum(steps, np.arange(1, self._T + 1)[:, None])
        return Past(
            config,
            last.reshape(flat, -1),
            laid_out(self._spread(trace.shape)).reshape(flat, -1),
            laid_out(steps).reshape(flat),
            laid_out(run).reshape(flat),
            laid_out(begin).reshape(flat, -1),
        )

    def _unroll(self, x: NDArray[np.float32], fresh: NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
        """Hidden states of the last layer (G, T, H); of all layers after each sensor's last round (L, G, H)."""
        gru = self._forecaster.gru
        rows = torch.from_numpy(self._forecaster.sensor_rows([one.sensor for one, _, _ in self._group]))
        h = torch.stack([state.hidden for _, state, _ in self._group], dim=1)
        known = self._forecaster.sensor_vectors(rows.to(h.device))[:, None].expand(-1, self._T, -1)
        inputs = torch.cat([self._tensor(x.swapaxes(0, 1)), known], dim=2)
        hidden = h.new_zeros(self._G, self._T, h.shape[2])
        # Between these rounds no sensor ends and no state is reset, so that one pass steps all active sensors.
        cuts = sorted({0, *self._lengths.tolist(), *np.flatnonzero(fresh.any(axis=1)).tolist()})
        for a, b in pairwise(cuts):
            active = int(self._has_step[a].sum())
            h[:, torch.from_numpy(fresh[a])] = 0.0
            hidden[:active, a:b], h[:, :active] = gru.unroll(inputs[:active, a:b], h[:, :active].contiguous())
        return hidden, h

    def _store_states(self, norm: NormaliserState, past: Past, h: Tensor) -> None:
        for g, (_, state, length) in enumerate(self._group):
            end = self._place(g) + length
            state.next += length
            state.norm.steps[0] = norm.steps[g]
            for name, array in state.norm.arrays().items():
                array[0] = norm.arrays()[name][g]
            state.hidden = h[:, g].clone()
            state.tail = past.last[end - self._C : end].copy()
            state.begin = np.minimum(end - past.begin[end - 1], self._C)

    def _tensor(self, array: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._forecaster.gru.fc.weight.device)
