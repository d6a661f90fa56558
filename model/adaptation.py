"""Adaptation between retrainings: per sensor and target, a mixture of experts that learns from every reading.

Experts of every level but ``off``: persistence, seasonal naive, the GRU, and four corrections learned by recursive
least squares, of persistence, of a slow and of a quick seasonal profile, and of the GRU. They share one set of
regressors (``model.signals``), hence one covariance. Level ``full`` adds two experts that also see the GRU's hidden
state. The mixture's median replaces the GRU's; the GRU's spread is kept in shape, resized by the mixture's errors
against the GRU's, and calibrated (``model.calibration``).

Labels are delayed: a forecast is judged, and learned from, only once all of its h steps have been seen
(``model.judging``). Every ``stride``-th forecast is kept for that, so that what is pending stays within ``PENDING``
forecasts for any horizon; corrections are learned at no more than ``LEARN_POINTS`` points of the horizon, losses kept
at ``LOSS_POINTS``, and interpolated between. The state's size is therefore fixed, and grows with the horizon by its
labels only (9 bytes a step and target).

A step without a reading issues no forecast; it moves the signals by the rule of ``model.signals``. A state that is
reset is blank again. On a model swap what knows nothing of the model is carried over, and the rest is learned from the
readings replayed into the new model (``carry_over``).

Nothing here mixes sensors: a sensor's results are the same bits whoever shares the call.

Letters: B sensors, K targets, Q quantiles, h horizon steps, H hidden, E experts, R corrections, D regressors,
P learning points, M loss points, A pending forecasts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from . import calibration, judging, least_squares, mixture, signals
from .experts import BASES, CORRECTED, MODEL_FREE, STORED_BOUND, AdaptationConfig, Indexes, States, groups
from .signals import Bools, Floats

SPREAD_PRIOR: Final = 10.0  # labels' worth of "the mixture errs as the GRU does"


@dataclass(frozen=True)
class Adapted:
    """Forecasts after a step."""

    quantiles: Floats  # (B, K, Q, h) in the sensor's unit
    weights: Floats  # (B, K, E) of the experts, averaged over the horizon


@dataclass(frozen=True)
class Rounds:
    """Steps of A sensors in rounds: the r-th round takes the next step of each of the first ``sizes[r]`` sensors.

    Arrays of M are round by round.
    """

    sizes: Sequence[int]  # falling, at most A
    reset: Bools  # (M,) whether the sensor's state begins anew with the step
    phase: Indexes  # (M,) as in ``advance``
    values: Floats  # (M, K) likewise
    hidden: NDArray[np.float32]  # (M, H)
    forecast: Indexes  # (M,) which of the model's forecasts was issued at the step; -1 where it is no reading
    quantiles: Floats  # (n, K, Q, h) the model's forecasts


def advance(
    config: AdaptationConfig,
    states: States,
    phase: Indexes,
    values: Floats,
    quantiles: Floats,
    hidden: NDArray[np.floating] | None = None,
) -> Adapted:
    """Steps ``states`` in place by one step each, and adapts the forecasts that the model issues at it.

    Args:
        states: (B,) of ``adaptation_dtype``; phase: (B,) the step's place in the season, 0 … season_steps - 1, by its
            timestamp; values: (B, K) the targets, NaN where missing.
        quantiles: (B, K, Q, h) the model's forecasts in the sensor's unit; NaN throughout at a step that is no reading:
            what comes back for that row is NaN too.
        hidden: (B, H) of the last layer after the step; only level ``full`` needs it.
    """
    issued = np.asarray(np.isfinite(quantiles[:, :, 0, 0]).all(axis=1))
    # A target without any value yet has no scale, unit or phase: its sensor's steps count from the first value on.
    begun = np.asarray(((states["observed"] > 0) | np.isfinite(values)).any(axis=1))
    steps = states["steps"].copy()
    x = signals.observe(states, config.signals, phase, values)
    judging.release(config, states, steps)
    states["steps"] += begun
    unit = signals.unit_of(states)
    experts, bases, regressors = _experts(config, states, phase, x, quantiles, unit, hidden)
    weights = _weights(config, states)
    spread = _interpolate(weights, config.loss_points, config.horizon_steps)
    # A target without any value yet has nothing to adapt to: the model's forecast stands.
    known = (states["observed"] > 0)[..., None]
    median = np.where(known, _combine(spread, experts), quantiles[:, :, config.median])
    adapted = _quantiles(config, states, quantiles, median)
    due = np.flatnonzero(begun & (steps % config.stride == 0))
    _keep(config, states, due, issued, unit, experts, bases, regressors, adapted)
    return Adapted(adapted, weights.mean(axis=3))


def advance_rounds(config: AdaptationConfig, states: States, rounds: Rounds) -> Adapted:
    """Steps ``states`` (A,) in place through several rounds; the adapted forecasts are in the order of the model's."""
    quantiles = np.empty_like(rounds.quantiles)
    weights = np.empty((*quantiles.shape[:2], len(config.experts)))
    begin = 0
    for size in rounds.sizes:
        these = slice(begin, begin + size)
        begin += size
        block = states[:size]
        fresh = rounds.reset[these]
        if fresh.any():
            block[fresh] = np.zeros((), block.dtype)
        which = rounds.forecast[these]
        there = which >= 0
        given = np.full((size, *quantiles.shape[1:]), np.nan)
        given[there] = rounds.quantiles[which[there]]
        hidden = rounds.hidden[these] if config.level == "full" else None
        adapted = advance(config, block, rounds.phase[these], rounds.values[these], given, hidden)
        quantiles[which[there]] = adapted.quantiles[there]
        weights[which[there]] = adapted.weights[there]
    return Adapted(quantiles, weights)


def carry_over(config: AdaptationConfig, old: States, new: States) -> States:
    """The states to go on with after a model swap: (B,) as ``new``, with what ``old`` knows of the sensors themselves.

    Signals, the learned corrections of persistence and of the profiles, and these experts' losses take far longer to
    learn than a replay lasts, and owe nothing to a model. What does (the corrections of the GRU, its losses, spreads
    and calibration) comes from the replay. Forecasts that were pending are dropped: the old model issued them.

    Args:
        old: (B,) under the old model; new: (B,) after replaying the newest readings into the new one. Both have seen
            the same last reading. A row that is blank in either comes back as ``new`` has it.
    """
    states = new.copy()
    rows = np.flatnonzero((old["steps"] > 0) & (new["steps"] > 0))
    for name in ("steps", "labels", *(field[0] for field in config.signals.fields(config.targets))):
        states[name][rows] = old[name][rows]
    states["pending_step"][rows] = 0
    if config.level == "off":
        return states
    independent = [expert for expert, name in enumerate(config.experts) if name in MODEL_FREE]
    states["plain_root"][rows] = old["plain_root"][rows]
    for expert in independent:
        states["losses"][rows, :, expert] = old["losses"][rows, :, expert]
    for correction in range(CORRECTED.index("gru+")):
        states["plain_weights"][rows, :, correction] = old["plain_weights"][rows, :, correction]
        states["plain_errors"][rows, :, correction] = old["plain_errors"][rows, :, correction]
    return states


def _experts(
    config: AdaptationConfig,
    states: States,
    phase: Indexes,
    x: Floats,
    quantiles: Floats,
    unit: Floats,
    hidden: NDArray[np.floating] | None,
) -> tuple[Floats, Floats | None, dict[str, Floats]]:
    """(B, K, E, h) every expert's forecast; (B, K, 4, h) what corrections start from; the regressors of each group."""
    gru = quantiles[:, :, config.median]
    if config.level == "off":
        return gru[:, :, None], None, {}
    last = states["values"][:, :, -1]
    bases = np.empty((*gru.shape[:2], 1 + len(BASES), config.horizon_steps))
    bases[:, :, 0] = last[..., None]
    bases[:, :, 1:3] = signals.profile_forecasts(states, config.signals, phase)
    bases[:, :, 3] = gru
    regressors = {"plain": x}
    if config.level == "full":
        assert hidden is not None
        projected = np.matmul(hidden[:, None].astype(np.float64), config.projection)  # (B, 1, 16)
        regressors["hidden"] = np.concatenate([x, np.broadcast_to(projected, (*x.shape[:2], projected.shape[2]))], 2)
    parts = [bases[:, :, :1], signals.seasonal_naive(states, config.signals)[:, :, None], bases[:, :, 3:]]
    for group in groups(config):
        weights = states[f"{group.name}_weights"]  # (B, K, R, D, P)
        flat = weights.reshape(-1, *weights.shape[2:])
        correction = least_squares.predict(flat, regressors[group.name].reshape(len(flat), -1))
        correction = correction.reshape(*weights.shape[:3], -1) * unit[:, :, None, None]
        parts.append(
            bases[:, :, list(group.bases)] + _interpolate(correction, config.learn_points, config.horizon_steps)
        )
    return np.concatenate(parts, axis=2), bases, regressors


def _combine(weights: Floats, experts: Floats) -> Floats:
    """(B, K, h) the weighted mean over the experts (B, K, E, h)."""
    total = weights[:, :, 0] * experts[:, :, 0]
    for expert in range(1, experts.shape[2]):
        total += weights[:, :, expert] * experts[:, :, expert]
    return total


def _weights(config: AdaptationConfig, states: States) -> Floats:
    """(B, K, E, M)."""
    B, K = states["labels"].shape
    losses = states["losses"].astype(np.float64)
    seen = mixture.effective_steps(states["labels"].reshape(-1).astype(np.int64), config.stride)
    return mixture.weigh(losses.reshape(B * K, *losses.shape[2:]), seen, config.prior).reshape(losses.shape)


def _quantiles(config: AdaptationConfig, states: States, quantiles: Floats, median: Floats) -> Floats:
    """(B, K, Q, h) the mixture's median, with the model's spread resized and calibrated."""
    ours, models = states["spreads"][:, :, 0].astype(np.float64), states["spreads"][:, :, 1].astype(np.float64)
    labels = np.minimum(states["labels"], 1.0 / judging.ERROR_RATE)[..., None]
    weight = labels / (labels + SPREAD_PRIOR)
    ratio = np.where(models > 0.0, ours / np.where(models > 0.0, models, 1.0), 1.0)
    ratio = 1.0 + weight * (np.clip(ratio, 1e-2, 1e2) - 1.0)  # (B, K, M)
    factors = np.exp(np.ascontiguousarray(states["factors"]).astype(np.float64)) * ratio[:, :, None]
    across = _interpolate(factors, config.loss_points, config.horizon_steps)
    shifted = quantiles + (median - quantiles[:, :, config.median])[:, :, None]
    shifted[:, :, config.median] = median
    return calibration.apply(shifted, across, config.median)


def _keep(
    config: AdaptationConfig,
    states: States,
    due: Indexes,
    issued: Bools,
    unit: Floats,
    experts: Floats,
    bases: Floats | None,
    regressors: dict[str, Floats],
    adapted: Floats,
) -> None:
    """Keeps the forecasts of the rows that are due, until their labels are in."""
    if not len(due):
        return
    slot = ((states["steps"][due] - 1) // config.stride) % config.slots
    value, unit = states["values"][due, :, -1], unit[due]
    points = config.loss_points

    def stored(numbers: Floats) -> Floats:
        relative = np.nan_to_num((numbers - value[:, :, None, None]) / unit[:, :, None, None])
        bounded: Floats = np.clip(relative, -STORED_BOUND, STORED_BOUND)
        return bounded

    states["pending_step"][due, slot] = np.where(issued[due], states["steps"][due], 0)
    states["pending_value"][due, slot] = value
    # Before a target's first value there is no unit: such a forecast is not judged.
    states["pending_unit"][due, slot] = np.where(states["observed"][due] > 0, unit, np.nan)
    states["pending_experts"][due, slot] = stored(experts[due][..., points])
    states["pending_quantiles"][due, slot] = stored(adapted[due][..., points])
    if bases is not None:
        states["pending_bases"][due, slot] = stored(bases[due][:, :, 1:][..., config.learn_points])
    for name, x in regressors.items():
        states[f"{name}_pending_x"][due, slot] = x[due]


def _interpolate(numbers: Floats, points: Indexes, horizon: int) -> Floats:
    """(..., h) of numbers (..., points), linearly between the points."""
    if len(points) == horizon:
        return numbers
    ahead = np.arange(horizon)
    right = np.clip(np.searchsorted(points, ahead), 1, len(points) - 1)
    left = right - 1
    share = (ahead - points[left]) / (points[right] - points[left])
    between: Floats = np.take(numbers, left, axis=-1) * (1.0 - share) + np.take(numbers, right, axis=-1) * share
    return between
