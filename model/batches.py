"""How training walks through a data set: lanes of contiguous time, a chunk of steps at a time, a label at every step.

Letters: B lanes, T steps of a chunk, S of them scored, D inputs of a step, K targets, h horizon steps.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from .forecaster import UNKNOWN_SENSOR, Forecaster
from .inputs import SMALLEST_SCALE, PreparedSequences, input_size, past_size
from .sequences import Sequences

# Long enough to hold weeks of carried state, short enough that a few months of one sensor make several lanes.
LANE_STEPS: Final = 1_152
# A label is at most so many scales from the level. Where a sensor's usual season is unknown its scale shrinks while it
# rests, and the first labels of its waking would be of 1e8 scales: a handful of them would be all that training and the
# choice of the best epoch see. No data set of the benchmarks has a larger one than 229.
LARGEST_LABEL: Final = 256.0
# What is validated on is taken in pieces of so many steps where lanes are longer than all that there is time for.
_PIECE_STEPS: Final = 2_048
# Newborn sensors (see ``LanePool``) are this part of all steps walked.
_COLD_START_PART: Final = 0.1


@dataclass(frozen=True)
class Lane:
    """A stretch of one sensor's steps, to be walked with one carried state from zeros."""

    prepared: PreparedSequences
    lo: int
    hi: int
    row: int  # of the sensor's embedding
    loss_from: int  # steps before it only warm the state
    until_us: int  # labels from then on do not exist for this lane


@dataclass(frozen=True)
class Chunk:
    """The next T steps of B lanes; lanes that have ended are padded, with no label valid."""

    x: Tensor  # (B, T, D)
    past: Tensor  # (B, T, K·(R+P))
    rows: Tensor  # (B,)
    scored: slice  # which S of the steps have their labels here
    labels: Tensor  # (B, S, K, h) less the level, in scales; 0 where not valid
    valid: Tensor  # (B, S, K, h) float, 1 where there is a label
    steps: int  # sensor steps that are not padding

    def to(self, device: torch.device) -> "Chunk":
        """The chunk on a device."""
        return Chunk(
            self.x.to(device, non_blocking=True),
            self.past.to(device, non_blocking=True),
            self.rows.to(device, non_blocking=True),
            self.scored,
            self.labels.to(device, non_blocking=True),
            self.valid.to(device, non_blocking=True),
            self.steps,
        )


def chunk_count(lanes: list[Lane], steps: int) -> int:
    """How many chunks ``chunks`` walks in."""
    return -(-max(lane.hi - lane.lo for lane in lanes) // steps)


def chunks(lanes: list[Lane], steps: int, stride: int = 1, first: int = 0) -> Iterator[Chunk]:
    """Walks B lanes side by side, ``steps`` at a time; the caller carries the state from one chunk to the next.

    Every ``stride``-th step is scored, or the last one of a chunk that is shorter. ``first`` is how many chunks have
    been walked already.
    """
    longest = max(lane.hi - lane.lo for lane in lanes)
    for begin in range(first * steps, longest, steps):
        T = min(steps, longest - begin)
        yield _chunk(lanes, begin, T, slice(min(stride, T) - 1, None, stride))


def _chunk(lanes: list[Lane], begin: int, T: int, scored: slice) -> Chunk:
    B, S = len(lanes), len(range(T)[scored])
    config = lanes[0].prepared.past.config
    x = np.zeros((B, T, input_size(config)), np.float32)
    past = np.zeros((B, T, past_size(config)), np.float32)
    labels = np.full((B, S, config.target_count, config.horizon_steps), np.nan, np.float32)
    within = begin + np.arange(T)
    steps = 0
    for prepared in {id(lane.prepared): lane.prepared for lane in lanes}.values():
        index = np.array([lane.lo if lane.prepared is prepared else -1 for lane in lanes])[:, None] + within
        ends = np.array([lane.hi if lane.prepared is prepared else -1 for lane in lanes])[:, None]
        taken = index < ends
        x[taken] = prepared.x[index[taken]]
        past[taken] = prepared.past_inputs(index[taken])
        steps += int(taken.sum())
    for row, lane in enumerate(lanes):
        steps_scored = lane.lo + begin + np.arange(T)[scored]
        there = np.flatnonzero((steps_scored >= lane.loss_from) & (steps_scored < lane.hi))
        if len(there):
            lo, hi = int(steps_scored[there[0]]), int(steps_scored[there[-1]]) + 1
            labels[row, there] = scaled_labels(lane.prepared, lo, hi, lane.until_us, scored.step)
    valid = ~np.isnan(labels)
    return Chunk(
        torch.from_numpy(x),
        torch.from_numpy(past),
        torch.tensor([lane.row for lane in lanes]),
        scored,
        torch.from_numpy(np.where(valid, labels, np.float32(0.0))),
        torch.from_numpy(valid.astype(np.float32)),
        steps,
    )


def scaled_labels(prepared: PreparedSequences, lo: int, hi: int, until_us: int, stride: int = 1) -> NDArray[np.float64]:
    """(S, K, h) at every ``stride``-th step: what came true, less the level and in scales of that step.

    NaN where nothing did; no further from 0 than ``LARGEST_LABEL``.
    """
    config = prepared.past.config
    sequences = prepared.sequences
    columns = list(config.target_indices)
    h = config.horizon_steps
    if _is_regular(sequences, lo, hi + h, until_us):
        labels = sliding_window_view(sequences.values[lo + 1 : hi + h, columns], h, axis=0)
    else:
        labels = sequences.labels(lo, hi, np.arange(1, h + 1), columns, until_us)
    scale = prepared.scale[lo:hi:stride]
    unit = np.where(scale > SMALLEST_SCALE, scale, np.nan)  # a sensor that has been constant has nothing to learn from
    scaled = (labels[::stride] - prepared.level[lo:hi:stride, :, None]) / unit[:, :, None]
    return np.clip(scaled, -LARGEST_LABEL, LARGEST_LABEL, out=scaled)


def _is_regular(sequences: Sequences, lo: int, hi: int, until_us: int) -> bool:
    """Whether steps ``lo`` to ``hi`` are one sensor's, all readings, each a cadence after the one before."""
    sensor = int(np.searchsorted(sequences.starts, lo, side="right")) - 1
    if hi > sequences.starts[sensor + 1] or sequences.timestamp_us[hi - 1] >= until_us:
        return False
    if not sequences.observed[lo:hi].all():
        return False
    return bool((np.diff(sequences.timestamp_us[lo:hi]) == sequences.cadence_us).all())


class LanePool:
    """Deals out the training part of a data set in lanes, anew and at another offset with every pass.

    A tenth of the lanes are *newborn*: stretches taken as if nothing had come before them, normaliser included, of a
    sensor nobody knows. From them the model learns to serve new sensors and states that were reset.
    """

    def __init__(
        self, forecaster: Forecaster, prepared: PreparedSequences, train_end_us: int, rng: np.random.Generator
    ) -> None:
        self._rng = rng
        self._prepared = prepared
        self._until_us = train_end_us
        self._rows = forecaster.sensor_rows(prepared.sequences.sensors)
        # From one reset to the next, since no state is served across one.
        spans = [prepared.sequences.stretches(sensor, train_end_us) for sensor in range(len(self._rows))]
        self._spans = list(itertools.chain.from_iterable(spans))
        self._span_rows = np.repeat(self._rows, [len(stretches) for stretches in spans])
        self.longest = max((hi - lo for lo, hi in self._spans), default=0)
        self.steps = sum(hi - lo for lo, hi in self._spans)
        self._length = LANE_STEPS
        self._cold_lanes = self._cold_start_lanes(forecaster)

    def _cold_start_lanes(self, forecaster: Forecaster) -> list[Lane]:
        sequences = self._prepared.sequences
        spans = [(lo, hi) for lo, hi in self._spans if hi - lo > 1]
        wanted = max(1, round(_COLD_START_PART * self.steps / self._length)) if spans else 0
        weights = np.array([hi - lo for lo, hi in spans], np.float64)
        index, starts = [np.empty(0, np.int64)], [0]
        for chosen in self._rng.choice(len(spans), size=wanted, p=weights / weights.sum()) if wanted else []:
            lo, hi = spans[chosen]
            first = int(self._rng.integers(lo, max(lo + 1, hi - self._length)))
            index.append(np.arange(first, min(first + self._length, hi)))
            starts.append(starts[-1] + len(index[-1]))
        newborn = _select_steps(sequences, np.concatenate(index), np.array(starts, np.int64))
        prepared = forecaster.prepare(newborn)
        return [Lane(prepared, lo, hi, UNKNOWN_SENSOR, lo, self._until_us) for lo, hi in itertools.pairwise(starts)]

    def passes(self, batch: int, burn_in: int, unknown: float) -> Iterator[list[Lane]]:
        """Groups of at most ``batch`` lanes, for ever, where there are any.

        Each pass over the data is in another order and cut elsewhere.

        ``burn_in`` steps of a lane only warm its state; a part ``unknown`` of the lanes hides which sensor it is.
        """
        while True:
            lanes = list(self._cold_lanes)
            for (lo, hi), row in zip(self._spans, self._span_rows, strict=True):
                cuts = np.arange(lo - int(self._rng.integers(self._length)), hi, self._length)
                warming = _warm_up_steps(lo, hi, burn_in)
                for cut in cuts:
                    first, last = max(lo, int(cut)), min(hi, int(cut) + self._length)
                    if last - first > warming:
                        hidden = self._rng.random() < unknown
                        lanes.append(
                            Lane(
                                self._prepared,
                                first,
                                last,
                                UNKNOWN_SENSOR if hidden else int(row),
                                first + warming,
                                self._until_us,
                            )
                        )
            # Lanes of like length walk together, so that little is padded; which of them come first is chance.
            order = sorted(self._rng.permutation(len(lanes)), key=lambda at: lanes[at].hi - lanes[at].lo < self._length)
            groups = np.array_split(order, -(-len(order) // batch))
            for at in self._rng.permutation(len(groups)):
                yield [lanes[lane] for lane in groups[at]]

    def windows(self, ends: NDArray[np.int64], batch: int, steps: int) -> Iterator[list[Lane]]:
        """Groups of at most ``batch`` windows, for ever, each pass over them in another order.

        A window is the ``steps`` steps up to one of ``ends``, the only one with a label.
        """
        rows = self._rows[np.searchsorted(self._prepared.sequences.starts, ends, side="right") - 1]
        while True:
            order = self._rng.permutation(len(ends))
            for first in range(0, len(ends), batch):
                yield [
                    Lane(self._prepared, end - steps + 1, end + 1, row, end, self._until_us)
                    for end, row in zip(
                        *(each[order[first : first + batch]].tolist() for each in (ends, rows)), strict=True
                    )
                ]

    def labelled(self, after: int) -> Iterator[NDArray[np.int64]]:
        """Some steps at a time: those behind a sensor's first ``after`` that have a label to learn from."""
        for lo, hi in self._spans:
            for first in range(lo + after, hi, self._length):
                labels = scaled_labels(self._prepared, first, min(first + self._length, hi), self._until_us)
                yield first + np.flatnonzero(_has_label(labels))

    def has_labels(self, burn_in: int) -> bool:
        """Whether ``passes`` come upon a label at all."""
        newborn = (scaled_labels(lane.prepared, lane.lo, lane.hi, self._until_us) for lane in self._cold_lanes)
        behind = (
            scaled_labels(self._prepared, first, min(first + self._length, hi), self._until_us)
            for lo, hi in self._spans
            for first in range(lo + _warm_up_steps(lo, hi, burn_in), hi, self._length)
        )
        return any(_has_label(labels).any() for labels in itertools.chain(newborn, behind))


def _warm_up_steps(lo: int, hi: int, burn_in: int) -> int:
    """Steps that only warm the state of a stretch; what is short as a whole warms it with its first half."""
    return min(burn_in, (hi - lo) // 2)


def _has_label(labels: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.asarray(~np.isnan(labels).all(axis=(1, 2)))


def _select_steps(sequences: Sequences, index: NDArray[np.int64], starts: NDArray[np.int64]) -> Sequences:
    """Stretches of steps as sensors of their own, each from a reset."""
    reset = sequences.reset[index]
    elapsed = sequences.elapsed[index]
    firsts = starts[:-1][np.diff(starts) > 0]
    reset[firsts], elapsed[firsts] = True, 0.0
    return replace(
        sequences,
        sensors=tuple(str(number) for number in range(len(starts) - 1)),
        starts=starts,
        timestamp_us=sequences.timestamp_us[index],
        values=sequences.values[index],
        elapsed=elapsed,
        reset=reset,
        observed=sequences.observed[index],
        offset=sequences.offset[index],
    )


def evaluation_lanes(
    forecaster: Forecaster, prepared: PreparedSequences, start_us: int, end_us: int, most_steps: int
) -> list[Lane]:
    """The steps from ``start_us`` up to ``end_us`` of each sensor that has a target there, behind a run-up or reset.

    Where there are more than ``most_steps``: of fewer sensors, and of long ones pieces evenly spaced in time.
    """
    sequences = prepared.sequences
    rows = forecaster.sensor_rows(sequences.sensors)
    columns = list(forecaster.config.target_indices)
    run_up = 2 * forecaster.config.warmup_steps
    by_sensor: list[list[Lane]] = []
    for sensor, row in enumerate(rows):
        lo, hi = sequences.span(sensor, start_us, end_us)
        if np.isnan(sequences.values[lo:hi, columns]).all():
            continue
        begin = max(int(sequences.starts[sensor]), lo - run_up)
        lanes = [
            Lane(prepared, max(first, begin), last, int(row), max(first, lo), end_us)
            for first, last in sequences.stretches(sensor, end_us)
            if last > lo
        ]
        if lanes:
            by_sensor.append(lanes)
    chosen = by_sensor[:: _keep_every(itertools.chain.from_iterable(by_sensor), most_steps)]
    lanes = list(itertools.chain.from_iterable(chosen))
    if _keep_every(lanes, most_steps) == 1:
        return lanes
    pieces = [
        replace(lane, lo=max(lane.lo, first - run_up), hi=min(first + _PIECE_STEPS, lane.hi), loss_from=first)
        for lane in lanes
        for first in range(lane.loss_from, lane.hi, _PIECE_STEPS)
        if not np.isnan(sequences.values[first : min(first + _PIECE_STEPS, lane.hi), columns]).all()
    ]
    return pieces[:: _keep_every(pieces, most_steps)]


def _keep_every(lanes: Iterable[Lane], most_steps: int) -> int:
    """Of how many lanes to take one, for so many steps in all."""
    return max(1, -(-sum(lane.hi - lane.lo for lane in lanes) // most_steps))
