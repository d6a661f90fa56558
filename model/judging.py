"""What happens when a pending forecast's last step has been seen: it is judged, learned from and calibrated on.

Letters: m rows whose forecast is due, K targets, Q quantiles, h horizon steps, E experts, R corrections, D regressors,
P learning points, M loss points.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from . import calibration, least_squares, mixture, signals
from .experts import STORED_BOUND, AdaptationConfig, Group, Indexes, States, groups
from .signals import Floats

ERROR_RATE: Final = 0.01  # of a running mean |error|
ERROR_BOUND: Final = 3.0  # mean errors; beyond it an error teaches no more (Huber), which draws means towards medians
FORGETTING: Final = 0.9995  # per step: a memory of some 2,000 steps
WEIGHT_BOUND: Final = 1e4  # scales; a larger one was learned while a series was all but constant, and is unlearned
UNPRACTISED: Final = 20  # labels before a mean |error| is taken as the measure of an outlier


@dataclass(frozen=True)
class _Due:
    """The pending forecasts whose labels are in: access to their rows, targets flattened into them (m·K rows)."""

    states: States
    rows: Indexes  # (m,)
    slot: Indexes  # (m,)
    shrunk: Floats  # (m, K)
    count: Indexes  # (m·K,) forecasts learned from before

    def carried(self, name: str) -> Floats:
        return self._flat(self.states[name][self.rows].astype(np.float64))

    def pending(self, name: str) -> Floats:
        numbers = self._flat(self.states[name][self.rows, self.slot].astype(np.float64))
        return numbers * self.shrunk.reshape(-1, *[1] * (numbers.ndim - 1))

    def put(self, name: str, numbers: Floats) -> None:
        self.states[name][self.rows] = numbers.reshape(*self.shrunk.shape, *numbers.shape[1:])

    def _flat(self, numbers: Floats) -> Floats:
        return numbers.reshape(self.shrunk.size, *numbers.shape[2:])


def release(config: AdaptationConfig, states: States, steps: Indexes) -> None:
    """Judges and learns in place from the forecasts whose last step is the newest one of ``states``.

    Args:
        states: (B,) whose signals hold the newest step; steps: (B,) taken before it.
    """
    issue = steps - config.horizon_steps  # counted from 0, as ``steps`` is
    rows = np.flatnonzero((issue >= 0) & (issue % config.stride == 0))
    slot = (issue[rows] // config.stride) % config.slots
    kept = states["pending_step"][rows, slot] == issue[rows] + 1
    rows, slot = rows[kept], slot[kept]
    if not len(rows):
        return
    value, unit = states["pending_value"][rows, slot], states["pending_unit"][rows, slot]
    known = (signals.labels(states, config.signals, rows) - value[..., None]) / unit[..., None]  # (m, K, h)
    known = np.clip(known, -STORED_BOUND, STORED_BOUND)
    # Where the sensor's changes have grown since, everything is counted in the larger unit: the first values of a
    # series, or a series that was constant, would else leave losses that dwarf all that come later.
    shrunk = unit / np.maximum(unit, signals.unit_of(states)[rows])
    known *= shrunk[..., None]
    due = _Due(states, rows, slot, shrunk, states["labels"][rows].reshape(-1).astype(np.int64))
    _judge(config, due, known[..., config.loss_points].reshape(shrunk.size, -1))
    for group in groups(config):
        _learn(config, group, due, known[..., config.learn_points].reshape(shrunk.size, 1, -1))
    there = np.isfinite(known).any(axis=2)
    states["labels"][rows] = np.minimum(states["labels"][rows] + there, signals.COUNT_BOUND)


def _judge(config: AdaptationConfig, due: _Due, labels: Floats) -> None:
    """The experts' losses, the size of errors, and the calibration; labels (m·K, M)."""
    experts, quantiles = due.pending("pending_experts"), due.pending("pending_quantiles")
    losses = mixture.loss(labels[:, None] - experts)
    due.put("losses", mixture.observe(due.carried("losses"), losses, due.count, config.stride))
    gru = experts[:, config.experts.index("gru")]
    errors = np.abs(np.stack([labels - quantiles[:, config.median], labels - gru], axis=1))
    due.put("spreads", _running_mean(due.carried("spreads"), errors, due.count))
    if config.calibrated:
        step = calibration.step_size(due.count, config.stride)
        due.put("factors", calibration.observe(due.carried("factors"), labels, quantiles, config.levels, step))


def _learn(config: AdaptationConfig, group: Group, due: _Due, labels: Floats) -> None:
    """One step of recursive least squares of a group of corrections; labels (m·K, 1, P)."""
    root, weights, mean = (due.carried(f"{group.name}_{part}") for part in ("root", "weights", "errors"))
    root[due.count == 0] = least_squares.blank_root(group.regressors)
    x = due.pending(f"{group.name}_pending_x")
    bases = np.concatenate([np.zeros_like(labels), due.pending("pending_bases")], axis=1)[:, list(group.bases)]
    errors = labels - bases - least_squares.predict(weights.astype(np.float32), x)
    size = np.abs(errors)
    early = (due.count < UNPRACTISED)[:, None, None]
    bound = np.where(early, signals.REGRESSOR_BOUND, np.minimum(ERROR_BOUND * mean, STORED_BOUND))
    tamed = np.clip(np.where(np.isnan(errors), 0.0, errors), -bound, bound)
    size = np.where(early, size, np.minimum(size, 10.0 * mean))
    due.put(f"{group.name}_errors", _running_mean(mean, size, due.count))
    new_root, new_weights = least_squares.update(root, weights, x, tamed, FORGETTING**config.stride)
    labelled = np.asarray(np.isfinite(labels).any(axis=(1, 2)))
    new_root = np.where(labelled[:, None, None], new_root, root)
    new_weights = np.where(labelled[:, None, None, None], new_weights, weights)
    # A learner that has left all bounds begins anew rather than carry that for ever.
    unsound = ~(np.isfinite(new_root).all(axis=(1, 2)) & (np.abs(new_weights) < WEIGHT_BOUND).all(axis=(1, 2, 3)))
    new_root[unsound] = least_squares.blank_root(group.regressors)
    new_weights[unsound] = 0.0
    due.put(f"{group.name}_root", new_root)
    due.put(f"{group.name}_weights", new_weights)


def _running_mean(mean: Floats, new: Floats, count: Indexes) -> Floats:
    rate = np.maximum(ERROR_RATE, 1.0 / (count + 1.0))[:, None, None]
    return np.where(np.isnan(new), mean, mean + rate * (new - mean))
