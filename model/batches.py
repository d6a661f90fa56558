"""Batches for training: lanes of contiguous time, walked in chunks, with labels at every step.

Letters: B lanes, V attributes, T steps of a chunk, S steps of it with labels, D inputs of a step, K targets, R lags,
P profile slots, h horizon steps, A inputs known ahead.
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

from .attributes import UNKNOWN_SENSOR
from .device_data import LARGEST_LABEL, DataSet, DeviceData, Gathered, LaneBounds
from .forecaster import Forecaster
from .inputs import PreparedSequences
from .sequences import Sequences
from .step_kernel import SMALLEST_SCALE

# Steps of a lane: enough to carry a state for weeks, and few enough that some months of a sensor give several lanes.
LANE_STEPS: Final = 1_152
# Steps of the pieces that validation cuts lanes into, and their number if the lanes are long enough.
_SHORTEST_PIECE: Final = 256
_LONGEST_PIECE: Final = 2_048
_PIECES: Final = 64
# Share of the steps in cold-start lanes (see ``LanePool``).
_COLD_START_PART: Final = 0.1
# An attribute says something about the first days of a sensor alone, and the network learns it from many of them. So
# with attributes, cold-start lanes last two seasons, and have as many steps as the other lanes, up to a number that
# takes little memory.
_FIRST_SEASONS: Final = 2
_MOST_FIRST_STEPS: Final = 1_000_000


@dataclass(frozen=True)
class Lane:
    """A stretch of one sensor's steps, walked with one carried state that begins at zero."""

    prepared: PreparedSequences
    lo: int
    hi: int
    rows: tuple[int, ...]  # of ``Forecaster.sensor_rows``
    loss_from: int  # the first step with labels; steps before it only warm the state
    until_us: int  # labels at this time or later are not used


@dataclass(frozen=True)
class Chunk:
    """The next T steps of B lanes; a lane that has ended is padded, without valid labels."""

    x: Tensor  # (B, T, D)
    past: Tensor  # (B, T, K·(R+P))
    rows: Tensor  # (B, 1+V)
    scored: slice  # the S steps with labels
    labels: Tensor  # (B, S, K, h) less the level, in scales; 0 if there is no label
    valid: Tensor  # (B, S, K, h) float: 1 for a label, 0 for none
    steps: int  # number of steps in all lanes, without padding
    labelled: bool  # False only if no label is valid; known without waiting for the device
    ahead: Tensor | None = None  # (B, S, A) inputs known ahead; None if the model has none


def chunk_count(lanes: list[Lane], steps: int) -> int:
    """The number of chunks that ``chunks`` yields."""
    return -(-max(lane.hi - lane.lo for lane in lanes) // steps)


def chunks(
    lanes: list[Lane],
    steps: int,
    stride: int = 1,
    first: int = 0,
    data: DeviceData | None = None,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Chunk]:
    """The steps of B lanes, ``steps`` at a time; the caller carries the state from one chunk to the next.

    Lanes of one data set lie side by side in a chunk, otherwise in the order given.

    Args:
        lanes: B lanes.
        steps: T of all chunks but the last.
        stride: every ``stride``-th step has labels, or the last step of a shorter chunk.
        first: number of chunks to skip.
        data: where the chunks are gathered; by default on the CPU.
        share: rank and number of the processes that share the lanes; a process without a lane gets an empty one. The
            fields ``steps`` and ``labelled`` of a chunk count the lanes of all processes.
    """
    rank, size = share
    data = data or DeviceData(torch.device("cpu"))
    everyone = [_Group(data[found[0].prepared], found) for found in _by_data_set(lanes)]
    groups = everyone
    if size > 1:
        own = lanes[rank::size] or [replace(lanes[0], hi=lanes[0].lo, loss_from=lanes[0].lo)]
        groups = [_Group(data[found[0].prepared], found) for found in _by_data_set(own)]
    rows = data.move([lane.rows for group in groups for lane in group.lanes])
    longest = max(lane.hi - lane.lo for lane in lanes)
    for begin in range(first * steps, longest, steps):
        T = min(steps, longest - begin)
        scored = slice(min(stride, T) - 1, None, stride)
        parts = [group.gather(begin, T, scored) for group in groups]
        whole = parts[0] if len(parts) == 1 else _joined(parts)
        yield Chunk(
            whole.x,
            whole.past,
            rows,
            scored,
            whole.labels,
            whole.valid,
            sum(group.steps(begin, T) for group in everyone),
            any(group.labelled(begin, T) for group in everyone),
            whole.ahead,
        )


def _by_data_set(lanes: list[Lane]) -> list[list[Lane]]:
    found: dict[int, list[Lane]] = {}
    for lane in lanes:
        found.setdefault(id(lane.prepared), []).append(lane)
    return list(found.values())


def _joined(parts: list[Gathered]) -> Gathered:
    fields = ("x", "past", "labels", "valid")
    x, past, labels, valid = (torch.cat([getattr(part, name) for part in parts]) for name in fields)
    ahead = [part.ahead for part in parts if part.ahead is not None]
    return Gathered(x, past, labels, valid, torch.cat(ahead) if ahead else None)


class _Group:
    """Lanes of one data set, with their bounds on the device."""

    def __init__(self, data_set: DataSet, lanes: list[Lane]) -> None:
        sequences = lanes[0].prepared.sequences
        lo = np.array([lane.lo for lane in lanes])
        sensors = np.searchsorted(sequences.starts, lo, side="right") - 1
        until = {lane.until_us for lane in lanes}
        label_end = {
            (sensor, until_us): sequences.span(sensor, None, until_us)[1]
            for until_us in until
            for sensor in np.unique(sensors).tolist()
        }
        self.lanes = lanes
        self._regular = data_set.regular[sensors]
        self._data_set = data_set
        self._horizon_steps = lanes[0].prepared.past.config.horizon_steps
        self._bounds = LaneBounds(
            lo,
            np.array([lane.hi for lane in lanes]),
            np.array([lane.loss_from for lane in lanes]),
            np.array([label_end[s, lane.until_us] for s, lane in zip(sensors.tolist(), lanes, strict=True)]),
        )
        self._placed = data_set.place(self._bounds)

    def gather(self, begin: int, T: int, scored: slice) -> Gathered:
        return self._data_set.gather(self._placed, begin, T, scored, regular=bool(self._regular.all()))

    def steps(self, begin: int, T: int) -> int:
        """The number of steps in the chunk, without padding."""
        return int((self._bounds.hi - self._bounds.lo - begin).clip(0, T).sum())

    def labelled(self, begin: int, T: int) -> bool:
        """Whether the chunk may have labels: a step with a loss, and later a value of a target within its horizon."""
        bounds = self._bounds
        first = np.maximum(bounds.lo + begin, bounds.loss_from)
        end = np.minimum(bounds.lo + begin + T, bounds.hi)
        furthest = np.where(self._regular, np.minimum(end + self._horizon_steps, bounds.label_end), bounds.label_end)
        with_loss = first < end
        return bool(self._data_set.values_between(first[with_loss] + 1, furthest[with_loss]).any())


def scaled_labels(prepared: PreparedSequences, lo: int, hi: int, until_us: int) -> NDArray[np.float64]:
    """(S, K, h) labels of the steps in [lo, hi), less the step's level, in its scales.

    NaN where there is no label. Clipped to ``LARGEST_LABEL``.
    """
    config = prepared.past.config
    sequences = prepared.sequences
    columns = list(config.target_indices)
    h = config.horizon_steps
    if _is_regular(sequences, lo, hi + h, until_us):
        labels = sliding_window_view(sequences.values[lo + 1 : hi + h, columns], h, axis=0)
    else:
        labels = sequences.labels(lo, hi, np.arange(1, h + 1), columns, until_us)
    scale = prepared.scale[lo:hi]
    unit = np.where(scale > SMALLEST_SCALE, scale, np.nan)  # a sensor that has been constant gives no labels
    scaled = (labels - prepared.level[lo:hi, :, None]) / unit[:, :, None]
    return np.clip(scaled, -LARGEST_LABEL, LARGEST_LABEL, out=scaled)


def _is_regular(sequences: Sequences, lo: int, hi: int, until_us: int) -> bool:
    """Whether the steps [lo, hi) are one sensor's readings before ``until_us``, a cadence apart."""
    sensor = int(np.searchsorted(sequences.starts, lo, side="right")) - 1
    if hi > sequences.starts[sensor + 1] or sequences.timestamp_us[hi - 1] >= until_us:
        return False
    if not sequences.observed[lo:hi].all():
        return False
    return bool((np.diff(sequences.timestamp_us[lo:hi]) == sequences.cadence_us).all())


class LanePool:
    """The training part of a data set in lanes, cut at other offsets in every pass.

    A tenth of the steps are in *cold-start* lanes: stretches of an unknown sensor, with a blank state and normaliser.
    From them the model learns to serve new sensors and reset states. If sensors have attributes, half of the steps are
    in such lanes, which are shorter. Half of their sensors have their attributes, and half have none.
    """

    def __init__(
        self, forecaster: Forecaster, prepared: PreparedSequences, train_end_us: int, rng: np.random.Generator
    ) -> None:
        self._rng = rng
        self._prepared = prepared
        self._until_us = train_end_us
        self._rows = forecaster.sensor_rows(prepared.sequences.sensors)
        self._unknown = forecaster.unknown_rows
        # Lanes end at resets, because no state is carried across one.
        spans = [prepared.sequences.stretches(sensor, train_end_us) for sensor in range(len(self._rows))]
        self._spans = list(itertools.chain.from_iterable(spans))
        self._span_rows = np.repeat(self._rows, [len(stretches) for stretches in spans], axis=0)
        self.longest = max((hi - lo for lo, hi in self._spans), default=0)
        self.steps = sum(hi - lo for lo, hi in self._spans)
        self._length = self._cold_length = LANE_STEPS
        self._cold_steps = _COLD_START_PART * self.steps  # only the number of lanes is rounded
        if forecaster.config.attributes:
            self._cold_length = min(_FIRST_SEASONS * max(forecaster.config.season_steps, 24), LANE_STEPS)
            self._cold_steps = min(self.steps, _MOST_FIRST_STEPS)
        self._cold_lanes = self._cold_start_lanes(forecaster)

    def _cold_start_lanes(self, forecaster: Forecaster) -> list[Lane]:
        sequences = self._prepared.sequences
        spans = [(lo, hi) for lo, hi in self._spans if hi - lo > 1]
        wanted = max(1, round(self._cold_steps / self._cold_length)) if spans else 0
        weights = np.array([hi - lo for lo, hi in spans], np.float64)
        index, starts, rows = [np.empty(0, np.int64)], [0], []
        for chosen in self._rng.choice(len(spans), size=wanted, p=weights / weights.sum()) if wanted else []:
            lo, hi = spans[chosen]
            first = int(self._rng.integers(lo, max(lo + 1, hi - self._cold_length)))
            index.append(np.arange(first, min(first + self._cold_length, hi)))
            starts.append(starts[-1] + len(index[-1]))
            rows.append(self._as_unknown(self._rows[np.searchsorted(sequences.starts, lo, side="right") - 1]))
        names = tuple(str(number) for number in range(len(starts) - 1))
        cold = sequences.select(np.concatenate(index), np.array(starts, np.int64), names)
        by_roots = bool(forecaster.config.targets_by_roots)  # otherwise roots would be taken of roots
        prepared = forecaster.prepare(cold, on_model_scale=by_roots)
        return [
            Lane(prepared, lo, hi, row, lo, self._until_us)
            for (lo, hi), row in zip(itertools.pairwise(starts), rows, strict=True)
        ]

    def _as_unknown(self, rows: NDArray[np.int64]) -> tuple[int, ...]:
        """The rows of a sensor as if training did not see it, half of the time without its attributes."""
        if len(rows) > 1 and self._rng.random() < 0.5:
            return self._unknown
        return UNKNOWN_SENSOR, *rows[1:].tolist()

    @property
    def lanes(self) -> int:
        """About the number of lanes in a pass; too low if many stretches are shorter than a lane."""
        return len(self._cold_lanes) * self._cold_length // self._length + self.steps // self._length

    def passes(self, batch: int, burn_in: int, unknown: float) -> Iterator[list[Lane]]:
        """An endless stream of groups of at most ``batch`` lanes; each pass has other cuts and another order.

        Args:
            batch: lanes of a group.
            burn_in: first steps of each lane, which only warm its state.
            unknown: share of the lanes that are stepped as if the sensor were unknown.
        """
        while True:
            lanes = list(self._cold_lanes)
            for (lo, hi), own in zip(self._spans, self._span_rows, strict=True):
                cuts = np.arange(lo - int(self._rng.integers(self._length)), hi, self._length)
                warming = _warm_up_steps(lo, hi, burn_in)
                for cut in cuts:
                    first, last = max(lo, int(cut)), min(hi, int(cut) + self._length)
                    if last - first > warming:
                        rows = self._as_unknown(own) if self._rng.random() < unknown else tuple(own.tolist())
                        lanes.append(Lane(self._prepared, first, last, rows, first + warming, self._until_us))
            # Lanes of a group are about equally long, so that few steps are padding. Groups come at random.
            order = sorted(self._rng.permutation(len(lanes)), key=lambda at: self._group_of(lanes[at]))
            groups = np.array_split(order, -(-len(order) // batch))
            for at in self._rng.permutation(len(groups)):
                yield [lanes[lane] for lane in groups[at]]

    def _group_of(self, lane: Lane) -> tuple[bool, bool]:
        """Lanes come together with lanes of their kind: first days, full lanes, or shorter ones."""
        first_days = self._cold_length < self._length and lane.prepared is not self._prepared
        return first_days, lane.hi - lane.lo < self._length

    def windows(self, ends: NDArray[np.int64], batch: int, steps: int) -> Iterator[list[Lane]]:
        """An endless stream of groups of at most ``batch`` windows; each pass has another order.

        A window is the ``steps`` steps up to and including one of ``ends``, and only that step has labels.
        """
        rows = self._rows[np.searchsorted(self._prepared.sequences.starts, ends, side="right") - 1]
        while True:
            order = self._rng.permutation(len(ends))
            for first in range(0, len(ends), batch):
                chosen = order[first : first + batch]
                yield [
                    Lane(self._prepared, end - steps + 1, end + 1, tuple(row), end, self._until_us)
                    for end, row in zip(ends[chosen].tolist(), rows[chosen].tolist(), strict=True)
                ]

    def labelled(self, after: int) -> Iterator[NDArray[np.int64]]:
        """The steps with a label, without the first ``after`` of each stretch between resets.

        Yields an array for each piece of a stretch.
        """
        for lo, hi in self._spans:
            for first in range(lo + after, hi, self._length):
                labels = scaled_labels(self._prepared, first, min(first + self._length, hi), self._until_us)
                yield first + np.flatnonzero(_has_label(labels))

    def has_labels(self, burn_in: int) -> bool:
        """Whether the lanes of ``passes`` hold any label."""
        cold = (scaled_labels(lane.prepared, lane.lo, lane.hi, self._until_us) for lane in self._cold_lanes)
        warm = (
            scaled_labels(self._prepared, first, min(first + self._length, hi), self._until_us)
            for lo, hi in self._spans
            for first in range(lo + _warm_up_steps(lo, hi, burn_in), hi, self._length)
        )
        return any(_has_label(labels).any() for labels in itertools.chain(cold, warm))


def _warm_up_steps(lo: int, hi: int, burn_in: int) -> int:
    """First steps of a stretch that only warm its state: at most the first half."""
    return min(burn_in, (hi - lo) // 2)


def _has_label(labels: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.asarray(~np.isnan(labels).all(axis=(1, 2)))


def evaluation_lanes(
    forecaster: Forecaster, prepared: PreparedSequences, start_us: int, end_us: int, most_steps: int
) -> list[Lane]:
    """Lanes over the steps from ``start_us`` up to ``end_us``, each warmed up before its first label.

    A sensor without a target value in that time has no lane. If the lanes hold more than ``most_steps`` steps, some
    sensors are left out. The lanes are cut into pieces, each with its own warm-up. If the lanes fit in ``most_steps``,
    the pieces are long enough to fit too, so every step of the time has labels. Otherwise pieces evenly spaced in time
    remain, the newest among them.
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
            Lane(prepared, max(first, begin), last, tuple(row.tolist()), max(first, lo), end_us)
            for first, last in sequences.stretches(sensor, end_us)
            if last > lo
        ]
        if lanes:
            by_sensor.append(lanes)
    chosen = by_sensor[:: _keep_every(itertools.chain.from_iterable(by_sensor), most_steps)]
    lanes = list(itertools.chain.from_iterable(chosen))
    # Pieces side by side take less time than one long lane after the other, in spite of their warm-ups.
    total = sum(lane.hi - lane.loss_from for lane in lanes)
    piece_steps = min(_LONGEST_PIECE, max(2 * run_up, _SHORTEST_PIECE, total // _PIECES))
    pieces = _cut(lanes, piece_steps, run_up)
    while _keep_every(lanes, most_steps) == 1 < _keep_every(pieces, most_steps):
        piece_steps *= 2  # fewer warm-ups; uncut lanes fit
        pieces = _cut(lanes, piece_steps, run_up)
    every = _keep_every(pieces, most_steps)
    if every == 1:
        return pieces
    # In order of time: every n-th piece in the order of sensors could be the oldest piece of each sensor.
    by_time = sorted(pieces, key=lambda piece: int(sequences.timestamp_us[piece.loss_from]))
    return by_time[::-every]


def _cut(lanes: list[Lane], piece_steps: int, run_up: int) -> list[Lane]:
    """The lanes in pieces of ``piece_steps`` and a warm-up; pieces without a target value are left out."""
    return [
        replace(lane, lo=max(lane.lo, first - run_up), hi=last, loss_from=first)
        for lane in lanes
        for first in range(lane.loss_from, lane.hi, piece_steps)
        for last in [min(first + piece_steps, lane.hi)]
        if not np.isnan(
            lane.prepared.sequences.values[first:last, list(lane.prepared.past.config.target_indices)]
        ).all()
    ]


def _keep_every(lanes: Iterable[Lane], most_steps: int) -> int:
    """The smallest n for which every n-th lane gives about ``most_steps`` steps in all, or fewer."""
    return max(1, -(-sum(lane.hi - lane.lo for lane in lanes) // most_steps))
