"""A model's forecasts over whole data sets: many sensors side by side, the state carried from stretch to stretch.

The same functions of the same float64 numbers as in the stream, so that forecasts agree with ``model.stepper`` up to
the rounding of float32 matrix products, which depends on their shapes here and does not there.

Letters: G sensors together, T rounds, C steps of context, F features, K targets, Q quantiles, P profile slots,
h horizon steps, L layers, H hidden, D inputs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .adaptation import Rounds, adapt
from .config import NO_ADAPTATION, Adaptation
from .experts import AdaptationConfig, States, adaptation_dtype
from .forecaster import Forecaster
from .inputs import Past, step_inputs
from .normaliser import Floats, NormaliserState, NormaliserTrace
from .sequences import Sequences
from .tiled_gru import using_threads

# What is prepared in one go while catching up with a long past: at most so many rounds, and so many numbers of their
# forecasts, all sensors together; adaptation has some seven arrays of those at a time.
_ROUNDS: Final = 256
_NUMBERS: Final = 4_000_000


@dataclass(frozen=True)
class ForecastRequest:
    """What a predictor is shown of a sensor: its steps so far, of which those from ``lo`` on are asked for."""

    steps: Sequences
    lo: int

    @property
    def sensor(self) -> str:
        """The sensor's id."""
        return self.steps.sensors[0]


@dataclass
class _SensorState:
    """A sensor's state after its first ``next`` steps."""

    next: int
    norm: NormaliserState  # one row
    hidden: Tensor  # (L, H)
    tail: Floats  # (C, K) the targets' last values, step by step
    begin: NDArray[np.int64]  # (K,) steps of the tail that lags may reach back over
    adaptation: States  # one record


class ModelPredictor:
    """Forecasts of a model, by the evaluator's protocol; see ``model_predictor``."""

    def __init__(self, forecaster: Forecaster, name: str, adaptation: Adaptation = NO_ADAPTATION) -> None:
        self.name = name
        self._adapting = AdaptationConfig.of(forecaster.config, adaptation)
        self._forecaster = forecaster.eval()
        self._normaliser = forecaster.normaliser()
        self._carried: dict[str, _SensorState] = {}

    def forecasts(self, sequences: Sequences, sensor: int, lo: int, hi: int) -> Floats:
        """(hi-lo, K, Q, h) after each of a sensor's steps [lo, hi)."""
        return self.forecasts_together(
            [ForecastRequest(sequences.past(sensor, hi), lo - int(sequences.starts[sensor]))]
        )[0]

    @torch.inference_mode()
    @using_threads(1)  # a step's products are small: a second thread gains nothing, and crawls on a busy core
    def forecasts_together(self, requests: Sequence[ForecastRequest]) -> list[Floats]:
        """As ``forecasts``, for a stretch of each of several sensors, which must differ.

        A state goes on from where the sensor's last stretch ended; where that lies behind ``lo``, or the sensor was not
        among the last ones asked for, it is made anew from the sensor's first step. The evaluator goes through all
        stretches of a group of sensors before it takes the next.
        """
        config = self._forecaster.config
        shape = (config.target_count, len(config.quantiles), config.horizon_steps)
        found = [np.empty((len(one.steps) - one.lo, *shape)) for one in requests]
        states = [self._state(one) for one in requests]
        most = max(1, min(_ROUNDS, _NUMBERS // max(1, math.prod(shape) * len(requests))))
        while True:
            left = np.array([len(one.steps) - state.next for one, state in zip(requests, states, strict=True)])
            lengths = np.minimum(left, most)
            order = np.argsort(-lengths, kind="stable")
            order = order[lengths[order] > 0]
            if not len(order):
                break
            group = [(requests[i], states[i], int(lengths[i])) for i in order]
            for i, (rows, quantiles) in zip(
                order, _Rounds(self._forecaster, self._adapting, group).forecasts(), strict=True
            ):
                found[i][rows] = quantiles
        self._carried = {one.sensor: state for one, state in zip(requests, states, strict=True)}
        return found

    def _state(self, one: ForecastRequest) -> _SensorState:
        carried = self._carried.get(one.sensor)
        if carried is not None and carried.next <= one.lo:
            return carried
        config = self._forecaster.config
        return _SensorState(
            next=0,
            norm=NormaliserState.blank(config, 1),
            hidden=self._forecaster.gru.zeros(1)[:, 0],
            tail=np.zeros((_context(self._forecaster), config.target_count)),
            begin=np.zeros(config.target_count, np.int64),
            adaptation=np.zeros(1, adaptation_dtype(self._adapting)),
        )


def model_predictor(
    forecaster: Forecaster, name: str = "model", adaptation: Adaptation = NO_ADAPTATION
) -> ModelPredictor:
    """A predictor for the evaluator that steps ``forecaster`` through each sensor from its first reading on.

    With the adaptation that the stream is served with, it forecasts what the stream is told.
    """
    return ModelPredictor(forecaster, name, adaptation)


def _context(forecaster: Forecaster) -> int:
    """C: how many steps back of the current one its inputs look."""
    return max(forecaster.config.lag_steps - 1, 0)


class _Rounds:
    """The next steps of several sensors, longest first; round r takes each sensor's r-th."""

    def __init__(
        self, forecaster: Forecaster, adapting: AdaptationConfig, group: list[tuple[ForecastRequest, _SensorState, int]]
    ) -> None:
        self._forecaster = forecaster
        self._adapting = adapting
        self._group = group
        self._lengths = np.array([length for _, _, length in group])
        self._T, self._G, self._C = int(self._lengths[0]), len(group), _context(forecaster)
        # (T, G): in C order, the steps that there are stand as the normaliser takes them: round by round.
        self._has_step = np.arange(self._T)[:, None] < self._lengths

    def forecasts(self) -> list[tuple[slice, Floats]]:
        """Of each sensor, the rows of its answer and the quantiles in them; the sensors' states are stepped."""
        config = self._forecaster.config
        targets = list(config.target_indices)
        norm = self._join_normaliser_states()
        before = norm.profile.copy()
        values = self._gather("values")
        trace = self._forecaster.normaliser().step(
            norm, values, self._has_step.sum(axis=1).tolist(), self._gather("reset")
        )
        x = self._spread(step_inputs(trace, self._gather("timestamp_us"), self._gather("elapsed")))
        past = self._past(trace, ~np.isnan(values[:, targets]))
        hidden, h = self._unroll(x, self._spread(trace.steps) == 1)
        level, scale = (self._spread(each[:, targets]) for each in (trace.levels[:, :, 1], trace.scale))
        found = []
        for g, (_, _, length) in enumerate(self._group):
            # Adaptation learns from every forecast, asked for or only caught up with.
            first = 0 if self._adapting.active else self._first_requested(g)
            index = self._place(g) + np.arange(first, length)
            around = past.inputs(
                index,
                level[first:length, g],
                scale[first:length, g],
                np.broadcast_to(before[g], (len(index), *before.shape[1:])),
            )
            raw = self._forecaster.quantiles(
                hidden[g, first:length], self._tensor(x[first:length, g]), self._tensor(around)
            )
            quantiles = raw.cpu().numpy().astype(np.float64)
            quantiles *= scale[first:length, g, :, None, None]
            quantiles += level[first:length, g, :, None, None]
            found.append(quantiles)
        if self._adapting.active:
            adapted = self._adapt(values[:, targets], hidden, found)
            found = [each[self._first_requested(g) :] for g, each in enumerate(adapted)]
        answers = []
        for g, (one, state, _) in enumerate(self._group):
            start = state.next + self._first_requested(g) - one.lo
            answers.append((slice(start, start + len(found[g])) if len(found[g]) else slice(0, 0), found[g]))
        self._store_states(norm, past, h)
        return answers

    def _first_requested(self, g: int) -> int:
        """The sensor's first round that is asked for; those before it are only caught up with."""
        one, state, length = self._group[g]
        return min(max(one.lo - state.next, 0), length)

    def _adapt(self, values: Floats, hidden: Tensor, found: Sequence[Floats]) -> list[Floats]:
        """Each sensor's forecasts ``found``, adapted at its readings; the sensors' records are stepped."""
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
        """Where, in the arrays of ``_past``, the sensor's first round stands: behind its context."""
        return g * (self._C + self._T) + self._C

    def _gather(self, field: str) -> NDArray[Any]:
        """(M, ...) of a field of the steps, round by round."""
        parts = [getattr(one.steps, field)[state.next : state.next + length] for one, state, length in self._group]
        joined = np.zeros((self._T, self._G, *parts[0].shape[1:]), parts[0].dtype)
        for g, part in enumerate(parts):
            joined[: len(part), g] = part
        return joined[self._has_step]

    def _spread(self, flat: NDArray[Any]) -> NDArray[Any]:
        """(T, G, ...) from what stands round by round; 0 where a sensor has no step."""
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
        began = self._spread((trace.steps == 1)[:, None] | (seen & (trace.count[:, targets] == 1.0)))
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
        """Hidden states of the last layer (G, T, H) and, after each sensor's last round, of all layers (L, G, H)."""
        gru = self._forecaster.gru
        rows = torch.from_numpy(self._forecaster.sensor_rows([one.sensor for one, _, _ in self._group]))
        h = torch.stack([state.hidden for _, state, _ in self._group], dim=1)
        known = self._forecaster.embedding(rows.to(h.device))[:, None].expand(-1, self._T, -1)
        inputs = torch.cat([self._tensor(x.swapaxes(0, 1)), known], dim=2)
        hidden = h.new_zeros(self._G, self._T, h.shape[2])
        # Between these rounds no sensor ends and none begins anew, so that one pass serves all that are there.
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
