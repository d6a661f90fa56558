"""The stepper: forecasts from states and readings, with the same bits however the stream is cut.

Each sensor's new readings become steps by the gap rule. Steps are taken in rounds: round r takes the r-th new step of
every sensor that has one. Matrix products, which span sensors, are computed in padded tiles of one fixed size
(``model.tiled_gru``); all other arithmetic is element by element. So on one kind of processor a forecast's bits depend
on its own sensor's readings alone.

Letters: B sensors, A of them with readings, n readings, M steps, F features, K targets, Q quantiles, h horizon steps,
L layers, H hidden, R lags, P slots of the seasonal profile, E experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .adaptation import AdaptedForecasts, Rounds, adapt, compile_kernel
from .ahead_inputs import AheadTerm
from .config import NO_ADAPTATION, Adaptation
from .experts import AdaptationConfig
from .forecaster import Forecaster
from .inputs import Past, last_marks, marks_of_begins, step_inputs
from .normaliser import NORMALISER_FIELDS, Floats, NormaliserState, NormaliserTrace
from .outlooks import NO_ISSUE_US, Arrivals, StepOutlooks, step_outlooks, store_outlooks
from .published_unit import to_published_unit
from .state import NO_OFFSET, States, state_dtype
from .step_plan import StepPlan
from .target_scale import scale_in_unit, to_model_scale
from .tiled_gru import TiledGRU, TiledLinear, padded, using_threads
from .unit_change import Followed, compile_rule, follow

Indexes = NDArray[np.int64]


@dataclass(frozen=True)
class Forecasts:
    """A forecast for each reading, in the order of the readings."""

    quantiles: Floats  # (n, K, Q, h) in the sensor's unit
    scale: Floats  # (n, K) the normaliser's scale after the reading; 0 while the sensor has been constant
    origin: Indexes  # (n,) offset of the first reading stepped into the forecast's state
    steps: Indexes  # (n,) steps of that state
    warm: NDArray[np.bool_]  # (n,) whether these reach the model's warm-up length
    weights: Floats  # (n, K, E) of the experts in the mixture; E is 0 if adaptation is off
    limits: Floats  # (n, K, 2) least and largest possible value in the sensor's unit; (n, 0, 2) without bounds
    # By feature, of the state after the reading (`model.unit_change`); F is 0 without adaptation and calibration.
    unit_outcome: NDArray[np.int8]  # (n, F) `model.unit_kernel.COUNTED` to `GAVE_UP`
    unit_factor: Floats  # (n, F) 0 where there is no map
    unit_offset: Floats  # (n, F)
    outlook_issued_us: Indexes  # (n,) of the outlook behind each forecast; ``outlooks.NO_ISSUE_US`` for none
    outlook_verdict: NDArray[np.int8]  # (m,) ``outlooks.ACCEPTED``, ``OUTDATED`` or ``WITHOUT_STATE``, by arrival


class Stepper:
    """Steps the states of one model's sensors. One thread at a time may use it.

    Args:
        forecaster: on the CPU; its weights must not change afterwards.
        adaptation: of its forecasts.
        tile: rows of a matrix product, a multiple of 32. Results of different tiles differ in their last bits.
        whole: whether forecasts of counts are rounded to whole numbers. Rounding turns a difference in the last bits
            into one of 1, so a comparison does without.

    Raises:
        ValueError: ``tile`` is not a multiple of 32.
    """

    def __init__(
        self, forecaster: Forecaster, adaptation: Adaptation = NO_ADAPTATION, tile: int = 128, *, whole: bool = True
    ) -> None:
        self.forecaster = forecaster.eval()
        self.config = forecaster.config
        self.adaptation = adaptation
        self.dtype = state_dtype(forecaster.config, adaptation)
        self._adapting = AdaptationConfig.of(forecaster.config, adaptation)
        if adaptation.active:
            compile_kernel(self._adapting)
            compile_rule()
        self._tile = tile
        self._whole = whole
        self._normaliser = forecaster.normaliser()
        self._gru = TiledGRU(forecaster.gru.gru, tile)
        head = forecaster.gru.fc
        skip = forecaster.skip
        weight = head.weight if skip is None else torch.cat([head.weight, skip.weight], dim=1)
        self._head = TiledLinear(weight, head.bias, tile)
        self._outputs = head.out_features
        self._known_ahead = forecaster.ahead_inputs()
        self._ahead = _TiledAhead(forecaster.ahead, tile) if forecaster.ahead is not None else None

    @torch.inference_mode()
    @using_threads(1)
    def step(
        self,
        states: States,
        sensors: Sequence[str],
        slots: Indexes,
        timestamp_us: Indexes,
        values: Floats,
        offsets: Indexes,
        may_anchor: NDArray[np.bool_] | None = None,
        arrivals: Arrivals | None = None,
    ) -> Forecasts:
        """Forecasts after each of n accepted readings. Steps ``states`` in place.

        Args:
            states: (B,) of ``state_dtype``; sensors: their B ids.
            slots: (n,) index in ``states`` for each reading. Sensors may interleave. Each sensor's readings are in
                order of time, and later than its state's last reading.
            timestamp_us: (n,); values: (n, F), NaN where missing; offsets: (n,).
            may_anchor: (n,) whether a rebuild may begin with each reading (``model.reorder_buffer``); by default with
                any.
            arrivals: outlooks that come between the readings, for a model with outlooks.
        """
        if not len(slots):
            return self._no_forecasts(states, arrivals)
        plan = StepPlan.build(states, slots, timestamp_us, self.config.cadence_us, self.config.max_gap_steps)
        known = self._outlooks(states, slots, plan.reset[plan.step], offsets, arrivals)
        rows = states[plan.slots]
        norm = NormaliserState(rows["steps"].copy(), **{name: rows[name].copy() for name in NORMALISER_FIELDS})
        profile = norm.profile.copy()
        seen = plan.spread(values)
        followed = self._follow(rows, plan, seen) if self.adaptation.active else None
        if followed is not None:
            seen = followed.values
        seen = to_model_scale(self.config, seen)
        trace = self._normaliser.step(norm, seen[plan.rounds], plan.sizes, plan.reset[plan.rounds])
        x = step_inputs(trace, plan.timestamp_us[plan.rounds], plan.elapsed[plan.rounds])
        hidden = self._step_network(x, rows, [sensors[slot] for slot in plan.slots.tolist()], plan)
        past, place = self._past(rows, seen, trace, plan)
        at = plan.turn[plan.step]  # the index of each reading's step, round by round
        targets = list(self.config.target_indices)
        level, scale = trace.levels[at][:, targets, 1], trace.scale[at][:, targets]
        around = past.inputs(place[plan.step], level, scale, profile[plan.sensor[plan.step]])
        forecasts = self._quantiles(
            hidden[torch.from_numpy(at)], x[at], around, self._ahead_inputs(timestamp_us, known)
        )
        quantiles: Floats = level[:, :, None, None] + scale[:, :, None, None] * forecasts
        weights = np.empty((*quantiles.shape[:2], 0))
        if self.adaptation.active:
            adapted = self._adapt(rows, plan, seen, hidden.numpy(), at, quantiles)
            quantiles, weights = adapted.quantiles, adapted.weights[:, :, : self._expert_count]
        scale = scale_in_unit(self.config, level, scale)
        quantiles, between = to_published_unit(self.config, quantiles, followed, plan.step, whole=self._whole)
        if followed is not None:
            scale = followed.in_present_unit(plan.step, targets, scale, sizes=True)
        rows["lags"] = past.lags(place[plan.starts + plan.lengths - 1])
        rows["steps"] = norm.steps
        for name, array in norm.arrays().items():
            rows[name] = array
        origin = _store_origin_and_anchors(
            rows, plan, timestamp_us, offsets, may_anchor, self.adaptation.anchor_spacing
        )
        states[plan.slots] = rows
        steps = trace.steps[at]
        warm = steps >= self.config.warmup_steps
        if known is not None:
            store_outlooks(states, known)
        maps = _unit_maps(followed, plan)
        return Forecasts(
            quantiles, scale, origin, steps, warm, weights, between, *maps, *_by_outlook(known, len(slots))
        )

    def _outlooks(
        self,
        states: States,
        slots: Indexes,
        reset: NDArray[np.bool_],
        offsets: Indexes,
        arrivals: Arrivals | None,
    ) -> StepOutlooks | None:
        """The outlooks of the readings; None if the model has none."""
        if self.config.outlook is None:
            return None
        return step_outlooks(states, slots, reset, offsets, arrivals)

    def _ahead_inputs(self, timestamp_us: Indexes, known: StepOutlooks | None) -> Tensor | None:
        """(n, A) the inputs known ahead of the readings; None if the model has none."""
        if self._known_ahead is None:
            return None
        return self._known_ahead.of_arrays(
            timestamp_us, known.outlooks if known else None, known.row if known else None
        )

    def _no_forecasts(self, states: States, arrivals: Arrivals | None) -> Forecasts:
        """The answer to no readings. Arriving outlooks are put into the states."""
        config = self.config
        K = config.target_count
        none = np.empty(0, np.int64)
        quantiles = np.empty((0, K, len(config.quantiles), config.horizon_steps))
        weights = np.empty((0, K, self._expert_count))
        maps = np.empty((0, config.feature_count if self.adaptation.active else 0))
        between = np.empty((0, len(config.bounds), 2))
        warm = none.astype(bool)
        flags = maps.astype(np.int8)
        known = self._outlooks(states, none, warm, none, arrivals)
        if known is not None:
            store_outlooks(states, known)
        of_outlooks = _by_outlook(known, 0)
        scale = np.empty((0, K))
        return Forecasts(quantiles, scale, none, none, warm, weights, between, flags, maps, maps, *of_outlooks)

    @property
    def _expert_count(self) -> int:
        """E: the experts in the mixture, 0 if adaptation is off."""
        return 0 if self.adaptation.level == "off" else len(self._adapting.experts)

    def _follow(self, rows: States, plan: StepPlan, seen: Floats) -> Followed:
        """The steps' values in the states' own units. Steps the units in ``rows``."""
        units, evidence = rows["units"].copy(), rows["unit_evidence"].copy()
        followed = follow(units, evidence, np.append(plan.starts, len(seen)), plan.reset, seen)
        rows["units"], rows["unit_evidence"] = units, evidence
        return followed

    def _adapt(
        self, rows: States, plan: StepPlan, seen: Floats, hidden: NDArray[np.float32], at: Indexes, quantiles: Floats
    ) -> AdaptedForecasts:
        """The forecasts, adapted. Steps the adaptation states in ``rows``."""
        config = self.config
        forecast = np.full(len(plan.turn), -1)
        forecast[at] = np.arange(len(at))
        rounds = Rounds(
            sizes=plan.sizes,
            reset=plan.reset[plan.rounds],
            timestamp_us=plan.timestamp_us[plan.rounds],
            values=seen[plan.rounds][:, list(config.target_indices)],
            hidden=hidden,
            forecast=forecast,
            quantiles=quantiles,
        )
        block = rows["adaptation"].copy()
        adapted = adapt(self._adapting, block, rounds)
        rows["adaptation"] = block
        return adapted

    def _step_network(self, x: NDArray[np.float32], rows: States, sensors: Sequence[str], plan: StepPlan) -> Tensor:
        """(M or more, H) after each step, round by round. Steps the hidden states in ``rows``."""
        M, D = x.shape
        known = self.forecaster.sensor_vectors(torch.from_numpy(self.forecaster.sensor_rows(sensors)))
        inputs = torch.zeros(padded(M, self._tile), D + known.shape[1])
        inputs[:M, :D] = torch.from_numpy(x)
        position = 0
        for size in plan.sizes:
            inputs[position : position + size, D:] = known[:size]
            position += size
        carried = rows["hidden"]  # (A, L, H)
        A, L, H = carried.shape
        states = torch.zeros(L, padded(A, self._tile), H)
        states[:, :A] = torch.from_numpy(carried.transpose(1, 0, 2).copy())
        hidden = self._gru.run(inputs, states, plan.sizes, plan.reset[plan.rounds])
        rows["hidden"] = states[:, :A].numpy().transpose(1, 0, 2)
        return hidden

    def _past(self, rows: States, seen: Floats, trace: NormaliserTrace, plan: StepPlan) -> tuple[Past, Indexes]:
        """The targets' past, sensor by sensor (R carried lags, then new steps); and (M,) the steps' indexes."""
        config = self.config
        R, K = config.lag_steps, config.target_count
        targets = list(config.target_indices)
        place = np.arange(len(plan.turn)) + (plan.sensor + 1) * R
        count = np.zeros((len(plan.turn) + len(rows) * R, K))
        last, shape, there = np.zeros_like(count), np.zeros_like(count), np.zeros(count.shape, bool)
        steps = np.zeros(len(count), np.int64)
        fresh = np.zeros(len(count), bool)
        before = (plan.starts + np.arange(len(rows)) * R)[:, None] + np.arange(R)
        last[before] = rows["lags"][:, :, ::-1].transpose(0, 2, 1)
        fresh[plan.starts + np.arange(len(rows)) * R] = True
        fresh[place[plan.reset]] = True
        last[place] = trace.last[plan.turn][:, targets]
        shape[place] = trace.shape[plan.turn]
        count[place] = trace.count[plan.turn][:, targets]
        there[place] = ~np.isnan(seen[:, targets])
        steps[place] = trace.steps[plan.turn]
        run = steps.copy()
        run[place] = np.minimum(trace.steps[plan.turn], plan.number + 1)
        return Past(config, last, shape, steps, run, last_marks(marks_of_begins(count, there, fresh))), place

    def _quantiles(
        self, hidden: Tensor, x: NDArray[np.float32], around: NDArray[np.float32], ahead: Tensor | None
    ) -> NDArray[np.float32]:
        """(n, K, Q, h) less the level, in scales, before adaptation."""
        n = len(hidden)
        parts = (
            [hidden, torch.from_numpy(x), torch.from_numpy(around)] if self.forecaster.skip is not None else [hidden]
        )
        given = torch.zeros(padded(n, self._tile), sum(part.shape[1] for part in parts))
        torch.cat(parts, dim=1, out=given[:n])
        raw = torch.empty(len(given), self._head.width)
        self._head(given, raw)
        if self._ahead is not None:
            assert ahead is not None, "the inputs known ahead are missing"
            raw += self._ahead(torch.cat([hidden, ahead], dim=1), len(raw))
        quantiles: NDArray[np.float32] = self.forecaster.uncrossed(raw[:, : self._outputs])[:n].numpy()
        return quantiles


class _TiledAhead:
    """The term of the inputs known ahead (``ahead_inputs.AheadTerm``), in tiles."""

    def __init__(self, term: AheadTerm, tile: int) -> None:
        into, out = term.take_in, term.give_out
        self._take_in = TiledLinear(into.weight, into.bias, tile)
        self._give_out = TiledLinear(out.weight, out.weight.new_zeros(len(out.weight)), tile)

    def __call__(self, given: Tensor, rows: int) -> Tensor:
        """(rows, width of the head) from (n, H+A); ``rows`` are whole tiles."""
        whole = torch.zeros(rows, given.shape[1])
        whole[: len(given)] = given
        between = torch.empty(rows, self._take_in.width)
        self._take_in(whole, between)
        out = torch.empty(rows, self._give_out.width)
        self._give_out(between.relu_(), out)
        return out


def _unit_maps(followed: Followed | None, plan: StepPlan) -> tuple[NDArray[np.int8], Floats, Floats]:
    """The ``unit_`` fields of the forecasts."""
    if followed is None:
        none = np.empty((len(plan.step), 0))
        return none.astype(np.int8), none, none
    return followed.outcome[plan.step], followed.factor[plan.step], followed.offset[plan.step]


def _by_outlook(known: StepOutlooks | None, n: int) -> tuple[Indexes, NDArray[np.int8]]:
    """The ``outlook_`` fields of the forecasts."""
    if known is None:
        return np.full(n, NO_ISSUE_US), np.empty(0, np.int8)
    return known.issued_us, known.verdict


def _store_origin_and_anchors(
    rows: States,
    plan: StepPlan,
    timestamp_us: Indexes,
    offsets: Indexes,
    may_anchor: NDArray[np.bool_] | None,
    spacing: int,
) -> Indexes:
    """(n,) the origin of each forecast's state. Stores origin, anchors and last reading in ``rows``."""
    order = plan.order
    whose = plan.sensor[plan.step[order]]
    reset = plan.reset[plan.step[order]]
    offset = offsets[order]
    first = np.ones(len(order), bool)
    first[1:] = whose[1:] != whose[:-1]
    final = np.append(first[1:], True)
    # The state's first reading among the new ones, as an index in `order`.
    begin = np.maximum.accumulate(np.where(first | reset, np.arange(len(order)), 0))
    fresh = reset[begin]
    earlier = np.where(fresh, 0, rows["accepted"][whose])
    accepted = earlier + np.arange(len(order)) - begin + 1
    origin = np.where(fresh, offset[begin], rows["origin"][whose])
    due = (accepted - 1) % spacing == 0
    noted = due
    if may_anchor is not None:
        suitable = may_anchor[order]
        wanting = (rows["anchors"][:, -1] == NO_OFFSET) & (rows["accepted"] > 0)  # the due anchor is missing
        wanting[whose[~suitable]] = True
        noted = due | suitable & wanting[whose]
    for at in np.flatnonzero(noted).tolist():
        anchors = rows["anchors"][whose[at]]
        if due[at]:
            if accepted[at] == 1:
                anchors[:] = NO_OFFSET
            anchors[:-1] = anchors[1:].copy()
            anchors[-1] = NO_OFFSET
        if anchors[-1] == NO_OFFSET and (may_anchor is None or may_anchor[order[at]]):
            anchors[-1] = offset[at]
    rows["origin"] = origin[final]
    rows["accepted"] = accepted[final]
    rows["offset"] = offset[final]
    rows["last_us"] = timestamp_us[order][final]
    unordered = np.empty_like(origin)
    unordered[order] = origin
    return unordered
