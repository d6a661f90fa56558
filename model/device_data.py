"""The prepared steps of data sets as tensors on the training's device, where chunks are gathered by index.

The host never waits for the device to gather a chunk: shapes and branches depend on the host's arrays alone. A data
set too large for a GPU's memory stays on the host, and its chunks are copied through pinned memory.

Letters: B lanes, T steps of a chunk, S steps of it with labels, N steps of a data set, D inputs of a step, F features,
K targets, R lags, P profile slots, h horizon steps, A inputs known ahead.
"""

import itertools
import warnings
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .ahead_inputs import AheadInputs, OutlookTensors
from .inputs import CALENDAR, PreparedSequences, past_size, slots_around
from .normaliser import profile_slots
from .sequences import Sequences
from .step_kernel import HALF_AGE, LARGEST_INPUT, LONGEST_ELAPSED, SMALLEST_SCALE

# Largest distance of a label from the level, in scales. If a sensor's season is not the configured one, its scale
# shrinks while it is constant, and its next labels could be 1e8 scales away: a few of them would decide the loss and
# the best epoch. The largest label in the benchmarks' data sets is 229.
LARGEST_LABEL: Final = 256.0
# Share of a GPU's free memory that the data sets may take; the rest is for weights, gradients and chunks.
_MEMORY_PART: Final = 0.5

# Numbers (4 bytes each) of past inputs and labels that are computed once for all steps of a data set. In a larger one
# they are computed for each chunk.
_MOST_KEPT_NUMBERS: Final = 50_000_000
_PIECE_STEPS: Final = 4_096
_LONGEST_AXIS_US: Final = 2**62  # of a search; times of readings and of labels beyond them fit in int64
_REGULAR: Final = -1  # the time of regular sensors' steps in a search

Indexes = NDArray[np.int64]


@dataclass(frozen=True)
class LaneBounds:
    """Bounds of B lanes of one data set, as indexes of its steps."""

    lo: Indexes  # (B,) first step
    hi: Indexes  # (B,) end
    loss_from: Indexes  # (B,) first step with labels
    label_end: Indexes  # (B,) end of the steps that may be labels


@dataclass(frozen=True)
class Gathered:
    """T steps of B lanes, on the training's device; padding is 0 and has no valid labels."""

    x: Tensor  # (B, T, D)
    past: Tensor  # (B, T, K·(R+P))
    labels: Tensor  # (B, S, K, h) less the level, in scales; 0 if there is no label
    valid: Tensor  # (B, S, K, h) float: 1 for a label, 0 for none
    ahead: Tensor | None = None  # (B, S, A), not 0 in padding; None if the model knows nothing ahead


class DeviceData:
    """The data sets of one training, each copied to the device once; on a CPU they share the arrays' memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._sets: dict[int, DataSet] = {}

    def __getitem__(self, prepared: PreparedSequences) -> "DataSet":
        """The tensors of a data set."""
        found = self._sets.get(id(prepared))
        if found is None:
            found = DataSet(prepared, self.device if self._fits(prepared) else torch.device("cpu"), self.device)
            self._sets[id(prepared)] = found
        return found

    def _fits(self, prepared: PreparedSequences) -> bool:
        if self.device.type != "cuda":
            return self.device.type == "cpu"  # other devices may have no float64
        return _bytes(prepared) < _MEMORY_PART * torch.cuda.mem_get_info(self.device)[0]

    def move(self, values: Any) -> Tensor:
        """A small tensor on the device, from a sequence of numbers."""
        return torch.as_tensor(values).to(self.device, non_blocking=True)


class DataSet:
    """One data set's steps as tensors on ``home``; ``gather`` gives its results on ``target``."""

    def __init__(self, prepared: PreparedSequences, home: torch.device, target: torch.device) -> None:
        sequences, past = prepared.sequences, prepared.past
        self._prepared = prepared  # keeps the arrays alive whose memory the tensors share
        self._home, self._target = home, target
        self._config = past.config
        self._scaled_inputs, self._age = _tensor(prepared.scaled, home), _tensor(prepared.age, home)
        self._elapsed = _tensor(sequences.elapsed, home)
        self._time = _tensor(sequences.timestamp_us, home)
        self._calendar = [(_tensor(table.values, home), table) for table in CALENDAR]
        self._level, self._scale = _tensor(prepared.level, home), _tensor(prepared.scale, home)
        self._last, self._shape = _tensor(past.last, home), _tensor(past.shape, home)
        self._begin, self._steps = _tensor(past.begin, home), _tensor(past.steps, home)
        columns = list(past.config.target_indices)
        every = columns == list(range(len(sequences.features)))
        self._values = _tensor(sequences.values if every else sequences.values[:, columns], home)
        self.regular = _regular_sensors(sequences)
        self._search = (
            None if self.regular.all() else _ReadingSearch(sequences, self.regular, past.config.horizon_steps, home)
        )
        slots, season = profile_slots(past.config), past.config.season_steps
        self._around = [_tensor(table, home) for table in slots_around(season, slots)] if slots else []
        config = past.config
        self._known_ahead = AheadInputs(config, prepared.standard, home) if config.knows_ahead else None
        self._outlooks = OutlookTensors.of(sequences.outlooks, home) if sequences.outlooks is not None else None
        self._outlook = _tensor(sequences.outlook, home) if sequences.outlook is not None else None
        self._kept_past, self._kept_labels = self._computed_once()
        self._value_count = _ValueCount(sequences.values, columns)

    def values_between(self, first: Indexes, end: Indexes) -> Indexes:
        """(...,) number of steps in [first, end) that have a value of a target; 0 for an empty range."""
        return self._value_count.before(np.maximum(first, end)) - self._value_count.before(first)

    def place(self, bounds: LaneBounds) -> list[Tensor]:
        """The bounds on the device that holds the data set, for ``gather``."""
        arrays = (bounds.lo, bounds.hi, bounds.loss_from, bounds.label_end)
        return [torch.from_numpy(array).to(self._home, non_blocking=True) for array in arrays]

    def gather(self, placed: list[Tensor], begin: int, T: int, scored: slice, *, regular: bool) -> Gathered:
        """The steps ``begin`` to ``begin + T`` of the lanes ``placed``, and the labels of the ``scored`` ones.

        Args:
            regular: whether all lanes are of ``regular`` sensors.
        """
        lo, hi, loss_from, label_end = (bound[:, None] for bound in placed)
        index = lo + (begin + torch.arange(T, device=self._home))
        there = index < hi
        step = torch.where(there, index, lo)
        x = self._inputs(step).masked_fill_(~there[..., None], 0.0)
        past = self._past(step) if self._kept_past is None else self._kept_past[step]
        past.masked_fill_(~there[..., None], 0.0)
        with_loss = (there & (index >= loss_from))[:, scored]
        labels, valid = self._labels(step[:, scored], with_loss, label_end[..., None], regular)
        found = Gathered(*map(self._moved, (x, past, labels, valid)))
        if self._known_ahead is None:
            return found
        return replace(found, ahead=self._moved(self._ahead(self._known_ahead, step[:, scored])))

    def _moved(self, tensor: Tensor) -> Tensor:
        """The tensor on the training's device; copies to a GPU overlap with its work."""
        if self._target.type == "cuda" and self._home.type == "cpu":
            tensor = tensor.pin_memory()
        return tensor.to(self._target, non_blocking=True)

    def _inputs(self, step: Tensor) -> Tensor:
        """(..., D) the inputs of the steps."""
        time = self._time[step]
        age = self._age[step].double()[..., None]
        of_values = torch.cat([self._scaled_inputs[step], (age == 0).float(), (age / (age + HALF_AGE)).float()], dim=-1)
        parts = [of_values.flatten(-2), self._elapsed[step].clamp_(max=LONGEST_ELAPSED)[..., None]]
        for values, table in self._calendar:
            within = (time - table.first_us) % table.period_us * len(values)
            parts.append(values[torch.div(within, table.period_us, rounding_mode="floor")])
        return torch.cat(parts, dim=-1)

    def _ahead(self, known_ahead: AheadInputs, step: Tensor) -> Tensor:
        """(..., A) the inputs known ahead of the steps."""
        row = self._outlook[step] if self._outlook is not None else None
        return known_ahead(self._time[step], self._outlooks, row)

    def _computed_once(self) -> tuple[Tensor | None, Tensor | None]:
        """(N, K·(R+P)) of ``_past`` and (N, K, h) of ``_scaled`` for all steps; None if they take much memory."""
        config, steps = self._config, len(self._steps)
        size = past_size(config) + config.target_count * config.horizon_steps
        if steps == 0 or steps * size > _MOST_KEPT_NUMBERS:
            return None, None
        # In pieces, because intermediate results are in float64.
        past = torch.cat([self._past(step) for step in self._pieces()])
        if self._search is not None:
            return past, None
        ahead = torch.arange(1, config.horizon_steps + 1, device=self._home)
        found = [self._scaled(step, (step[..., None] + ahead).clamp_(max=steps - 1)) for step in self._pieces()]
        return past, torch.cat(found)

    def _pieces(self) -> list[Tensor]:
        steps = torch.arange(len(self._steps), device=self._home)
        return [steps[first : first + _PIECE_STEPS] for first in range(0, len(steps), _PIECE_STEPS)]

    def _past(self, step: Tensor) -> Tensor:
        """(..., K·(R+P)) lags and profile in units of each step's scale, with the bits of ``Past.inputs``."""
        R, K = self._config.lag_steps, self._config.target_count
        unit = _reciprocal(self._scale[step])[..., None]  # (..., K, 1)
        back = step[..., None, None] - torch.arange(R, device=self._home)
        at = torch.maximum(back, self._begin[step].long()[..., None])  # (..., K, R)
        lags = self._last.flatten()[at * K + torch.arange(K, device=self._home)[:, None]]
        parts = [(lags - self._level[step][..., None]) * unit]
        if self._around:
            parts.append(self._profiles(step) * unit)
        return torch.cat(parts, dim=-1).float().clamp_(-LARGEST_INPUT, LARGEST_INPUT).flatten(-2)

    def _profiles(self, step: Tensor) -> Tensor:
        """(..., K, P): the profile once around, from the slot after each step's own; 0 for an unvisited slot."""
        season = self._config.season_steps
        _, last_phase = self._around
        run = self._steps[step].long()
        phase = (run - 1) % season
        own = torch.div(phase * len(last_phase), season, rounding_mode="floor")
        since = phase[..., None] - last_phase[own]  # steps since the slot was last visited
        since += season * (since < 0)
        since[..., -1] = 0  # the last is the step's own slot, visited now
        here = since < run[..., None]
        held = self._shape[torch.where(here, step[..., None] - since, 0)].masked_fill_(~here[..., None], 0.0)
        return held.transpose(-1, -2)

    def _labels(self, step: Tensor, with_loss: Tensor, label_end: Tensor, regular: bool) -> tuple[Tensor, Tensor]:
        """(B, S, K, h) labels and whether each is valid, of steps (B, S)."""
        ahead = torch.arange(1, self._config.horizon_steps + 1, device=self._home)
        if regular or self._search is None:
            label, near = step[..., None] + ahead, with_loss[..., None]
        else:
            label, near = self._search.nearest(step[..., None], ahead)
            near = near & with_loss[..., None]
        near = near & (label < label_end)
        scaled = (
            self._scaled(step, torch.where(near, label, 0)) if self._kept_labels is None else self._kept_labels[step]
        )
        valid = near[..., None, :] & ~scaled.isnan()
        return scaled.masked_fill_(~valid, 0.0), valid.float()

    def _scaled(self, step: Tensor, label: Tensor) -> Tensor:
        """(..., K, h): the values of the steps ``label`` (..., h) less the level of ``step``, in its scales; or NaN."""
        value = self._values[label].transpose(-1, -2)
        scale = self._scale[step]
        unit = torch.where(scale > SMALLEST_SCALE, scale, torch.nan)  # a sensor that has been constant has no labels
        scaled = (value - self._level[step][..., None]).div_(unit[..., None])
        return scaled.clamp_(-LARGEST_LABEL, LARGEST_LABEL).float()


class _ValueCount:
    """The number of steps before any step that have a value of a target, in about one byte for each step.

    A step has its count within its block, and a block has the count before it ("rank": Jacobson, 1989).
    """

    def __init__(self, values: NDArray[np.float64], columns: list[int]) -> None:
        N = len(values)
        has_value = np.zeros((N // 256 + 1, 256), bool)  # with a place for the end of the last step
        for column in columns:
            has_value.reshape(-1)[:N] |= np.isfinite(values[:, column])
        of_block = has_value.sum(axis=1)
        self._before_block = np.cumsum(of_block) - of_block
        within = np.cumsum(has_value, axis=1, dtype=np.uint8)  # 256 becomes 0, and 255 again in the next line
        self._within_block = np.subtract(within, has_value, out=within, dtype=np.uint8).reshape(-1)

    def before(self, step: Indexes) -> Indexes:
        """(...,) for steps 0 to N."""
        return np.asarray(self._before_block[step // 256] + self._within_block[step], np.int64)


class _ReadingSearch:
    """The reading nearest in time to a step's labels, for sensors whose steps are not all a cadence apart.

    The times of these sensors lie on one axis, far enough apart that no search leaves its sensor. If an axis is full,
    the next sensors lie on another one. Steps of regular sensors have no place on an axis: their labels are the next
    steps.
    """

    def __init__(
        self, sequences: Sequences, regular: NDArray[np.bool_], horizon_steps: int, home: torch.device
    ) -> None:
        time = np.full(len(sequences), _REGULAR, np.int64)
        gap = 2 * (horizon_steps + 1) * sequences.cadence_us
        end = 0
        first_steps = [0]  # of the axes
        for sensor in np.flatnonzero(~regular).tolist():
            first, last = sequences.starts[sensor : sensor + 2].tolist()
            since = sequences.timestamp_us[first:last] - sequences.timestamp_us[first]
            taken = int(since[-1]) + gap
            if end and end + taken > _LONGEST_AXIS_US:
                first_steps.append(first)
                end = 0
            time[first:last] = end + since
            end += taken
        readings = np.flatnonzero(sequences.observed & (time != _REGULAR))
        bounds = [*np.searchsorted(readings, first_steps).tolist(), len(readings)]
        self._axes = list(zip(first_steps, itertools.pairwise(bounds), strict=True))
        self._cadence_us = sequences.cadence_us
        self._readings = _tensor(readings, home)
        self._reading_time = _tensor(time[readings], home)
        self._time = _tensor(time, home)

    def nearest(self, step: Tensor, ahead: Tensor) -> tuple[Tensor, Tensor]:
        """The step of the reading nearest to ``step`` plus ``ahead`` cadences, and whether it is near enough.

        It is the rule of ``Sequences.nearest_step``: at most half a cadence away; of two, the earlier one.
        """
        time = self._time[step]
        wanted = time + ahead * self._cadence_us
        left, right = self._around(step, wanted)
        distance_left = (wanted - self._reading_time[left]).abs_()
        distance_right = (self._reading_time[right] - wanted).abs_()
        nearest = self._readings[torch.where(distance_left <= distance_right, left, right)]
        # Both sides are doubled, because half of an odd cadence would be rounded.
        near = 2 * torch.minimum(distance_left, distance_right) <= self._cadence_us
        regular = time == _REGULAR
        return torch.where(regular, step + ahead, nearest), near | regular

    def _around(self, step: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """The readings before and after the times ``wanted`` on the axis of each step, as places in ``_readings``."""
        left = right = torch.zeros_like(wanted)
        for first_step, (first, end) in self._axes:
            rank = torch.searchsorted(self._reading_time[first:end], wanted)
            here = step >= first_step
            left = torch.where(here, first + (rank - 1).clamp_(min=0), left)
            right = torch.where(here, first + rank.clamp(max=end - first - 1), right)
        return left, right


def _regular_sensors(sequences: Sequences) -> NDArray[np.bool_]:
    """(sensors,) whether all steps of the sensor are a cadence apart."""
    spans = zip(sequences.starts[:-1].tolist(), sequences.starts[1:].tolist(), strict=True)
    times, cadence_us = sequences.timestamp_us, sequences.cadence_us
    return np.array([bool((np.diff(times[first:last]) == cadence_us).all()) for first, last in spans], bool)


def _reciprocal(scale: Tensor) -> Tensor:
    """1 / scale, and 0 for a sensor that has been constant, whose scaled inputs are then 0."""
    varies = scale > SMALLEST_SCALE
    return torch.where(varies, scale, 1.0).reciprocal_().masked_fill_(~varies, 0.0)


def _bytes(prepared: PreparedSequences) -> int:
    past, sequences = prepared.past, prepared.sequences
    of_inputs = (prepared.scaled, prepared.age, sequences.elapsed, past.last, past.shape, past.steps, past.begin)
    arrays = (*of_inputs, prepared.level, prepared.scale)
    outlooks = sequences.outlooks.values.nbytes if sequences.outlooks is not None else 0
    # Values, and times of a search.
    return sum(array.nbytes for array in arrays) + 3 * sequences.values.nbytes + outlooks


def _tensor(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array as a tensor; on a CPU it shares the memory, and nothing here writes to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns that a read-only array could be written to
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)
