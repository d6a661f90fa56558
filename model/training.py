"""Training: passes along time with the state carried, as in service, and a loss at every step.

Short windows from a zero state would not show the network the states that it meets in a stream. The stateful preset
walks lanes of contiguous time chunk by chunk, and carries and detaches the state between chunks (truncated
back-propagation through time). Every step forecasts the whole horizon (the forking sequences of Wen et al., 2017), so
one pass supervises every step. The plain preset is for comparison: windows from a zero state, mean squared error, Adam
at a constant rate, an epoch for each pass over all windows. Both keep the epoch with the lowest validation loss.
"""

import copy
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .batches import Chunk, LanePool, chunk_count, chunks, evaluation_lanes
from .checkpoint import Checkpoint, fingerprint
from .config import ModelConfig, Preset
from .forecaster import Forecaster
from .inputs import PreparedSequences, fit_spread
from .objective import fit_intervals, pinball, pinball_of, squared_error
from .sequences import Sequences, Split
from .tiled_gru import using_threads

LARGEST_GRADIENT: Final = 1.0  # norm that gradients are clipped to; those of a recurrent network may explode
PLAIN_LEARNING_RATE: Final = 1e-3
MOST_VALIDATION_STEPS: Final = 60_000  # per epoch: enough to choose the best one, and few compared with its training


@dataclass(frozen=True)
class TrainingOptions:
    """The options of a training; the defaults came out best in the ablations.

    The plain preset uses the hidden size, epochs, budget, seed, device, threads, ``batch_lanes`` (as windows of a
    batch) and ``window_steps``; it ignores the other options.
    """

    preset: Preset = "stateful"
    hidden_size: int = 64
    epochs: int = 20
    # Seconds of training, without preparing the data. An epoch that would end later does not begin, except the first.
    # An epoch of the plain preset, which may be long, ends in the middle when the budget is used up.
    budget_s: float = 900.0
    seed: int = 0
    device: str = "auto"  # see `choose_device`
    learning_rate: float = 5e-3
    weight_decay: float = 1e-2
    dropout: float = 0.3
    batch_lanes: int = 64
    chunk_steps: int = 48  # steps that a gradient reaches back
    # Neighbouring steps share all but one of their labels. One in `horizon_steps // labels_per_step` steps has a loss;
    # every step has one if the horizon is shorter than twice this number.
    labels_per_step: int = 96
    updates_per_epoch: int = 64  # an epoch is a number of updates, regardless of the amount of data
    patience_epochs: int = 8
    averaging: float = 0.98  # decay per update of the averaged weights, which are validated and kept
    unknown_part: float = 0.1  # share of the lanes stepped as if their sensor were unknown, to train for new sensors
    threads: int | None = None  # CPU threads; by default half the cores, because a busy core slows all threads
    window_steps: int = 96  # length of the plain preset's windows


@dataclass(frozen=True)
class EpochReport:
    """The mean pinball losses of an epoch, in scales; the plain preset's ``train_loss`` is squared error."""

    epoch: int
    train_loss: float
    validation_loss: float
    seconds: float  # time since training began, including time before a restart from a checkpoint
    learning_rate: float


@dataclass(frozen=True)
class TrainingResult:
    """The model of the best epoch, and a report of the training."""

    forecaster: Forecaster  # on the CPU
    epochs: list[EpochReport]
    device: str
    sensor_steps_per_s: float  # rate of the training, without validation


def choose_device(wanted: str) -> torch.device:
    """The device to train on; for ``auto`` it is CUDA if available, otherwise the CPU.

    Raises:
        ValueError: the device is not available.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {wanted} cannot be used here ({error}); use cpu or auto") from error
    return device


def _with_labels(sequences: Sequences, config: ModelConfig, until_us: int) -> tuple[str, ...]:
    """The sensors with labels; any other is served as unknown, because its embedding stays untrained."""
    columns = list(config.target_indices)
    spans = (sequences.span(sensor, None, until_us) for sensor in range(len(sequences.sensors)))
    return tuple(
        sensor
        for sensor, (lo, hi) in zip(sequences.sensors, spans, strict=True)
        if np.isfinite(sequences.values[lo + 2 : hi, columns]).any()
    )


def train(
    config: ModelConfig,
    options: TrainingOptions,
    sequences: Sequences,
    split: Split,
    *,
    initial: Forecaster | None = None,
    report: Callable[[EpochReport], None] | None = None,
    checkpoint: Path | None = None,
) -> TrainingResult:
    """A forecaster trained on the training part of ``split``, at its best epoch on the validation part.

    On a CPU, trainings with equal arguments and number of threads give equal bits, unless the budget ends them. If a
    training with a ``checkpoint`` is killed, a call with equal arguments continues after its last epoch, to the same
    weights. The caller deletes that file when the result is safe.

    Args:
        initial: a model of the same shape whose weights to begin from; by default they are random.
        report: called after each epoch.
        checkpoint: the file that is written after each epoch.

    Raises:
        ValueError: the training or validation part has no labels (its targets are all missing, or constant), or
            ``initial`` has another shape.
    """
    known = _with_labels(sequences, config, split.train_end_us)
    config = replace(config, preset=options.preset, hidden_size=options.hidden_size, sensors=known)
    device = choose_device(options.device)
    threads = options.threads or max(1, (os.cpu_count() or 1) // 2)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), using_threads(threads), _no_denormals():
        torch.manual_seed(options.seed)
        forecaster = Forecaster(config, dropout=options.dropout if options.preset == "stateful" else 0.0)
        if initial is None:
            spread = fit_spread(config, sequences, split.train_end_us)
            forecaster.scale_spread.copy_(torch.from_numpy(spread))
        else:
            forecaster.adopt(initial)
        run = _Run(forecaster.to(device), options, forecaster.prepare(sequences), split, device)
        if checkpoint is None:
            epochs = run.train(report)
        else:
            key = fingerprint(sequences, initial, config.to_json(), str(options), str(split), str(device))
            epochs = run.train(report, Checkpoint(checkpoint, key))
    if options.preset == "plain":
        fit_intervals(run.best, run.validation)
    return TrainingResult(run.best.cpu().eval(), epochs, str(device), run.sensor_steps / max(run.seconds, 1e-9))


@contextmanager
def _no_denormals() -> Iterator[None]:
    """Let numbers below 1e-38 count as 0: old gradients decay to them, and they slow arithmetic down."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


class _Run:
    """One training, from the first to the last epoch."""

    def __init__(
        self,
        forecaster: Forecaster,
        options: TrainingOptions,
        prepared: PreparedSequences,
        split: Split,
        device: torch.device,
    ) -> None:
        self.best = copy.deepcopy(forecaster)
        self.sensor_steps = 0
        self.seconds = 0.0
        self._forecaster = forecaster
        self._averaged = copy.deepcopy(forecaster).requires_grad_(False).eval()
        self._options = options
        self._device = device
        self.validation = evaluation_lanes(
            forecaster, prepared, split.train_end_us, split.validation_end_us, MOST_VALIDATION_STEPS
        )
        if not self.validation:
            raise ValueError("the validation part holds no value of a target; use more data or another split")
        self._pool = LanePool(forecaster, prepared, split.train_end_us, np.random.default_rng(options.seed))
        self._plain = options.preset == "plain"
        self._optimiser: torch.optim.Optimizer
        if self._plain:
            self._optimiser = torch.optim.Adam(forecaster.parameters(), lr=PLAIN_LEARNING_RATE)
            self._ends = self._window_ends()
            self._epoch_updates = -(-len(self._ends) // options.batch_lanes)
        else:
            if not self._pool.has_labels(options.chunk_steps):
                raise self._no_labels_error()
            self._optimiser = torch.optim.AdamW(
                forecaster.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
            )
            self._epoch_updates = options.updates_per_epoch
        self._chunks = self._chunk_stream(0)
        self._hidden = forecaster.gru.zeros(1)
        self._chunks_done = 0
        self._updates = 0

    @property
    def _stride(self) -> int:
        """Steps between two steps with a loss."""
        return max(1, self._forecaster.config.horizon_steps // self._options.labels_per_step)

    def train(
        self, report: Callable[[EpochReport], None] | None, checkpoint: Checkpoint | None = None
    ) -> list[EpochReport]:
        """The reports of all epochs, until epochs, budget or patience (of which plain has no end) are used up.

        ``best`` is then the model of the best epoch.
        """
        options = self._options
        began = time.monotonic()
        patience = math.inf if self._plain else options.patience_epochs
        reports: list[EpochReport] = []
        planned = options.epochs
        kept = checkpoint.read() if checkpoint else None
        if kept is not None:
            reports = [EpochReport(**epoch) for epoch in kept["epochs"]]
            planned = kept["planned"]
            began -= reports[-1].seconds  # the budget includes the time before the restart
            self._restore(kept)
        best_loss = min((epoch.validation_loss for epoch in reports), default=math.inf)
        deadline = began + options.budget_s if self._plain else math.inf
        while len(reports) < planned and _epochs_since_best(reports) < patience:
            started = time.monotonic()
            train_loss = self._epoch(planned * self._epoch_updates, deadline)
            self.seconds += time.monotonic() - started
            validation_loss = pinball_of(self._averaged, self.validation, self._device)
            if validation_loss < best_loss:
                best_loss = validation_loss
                self.best.load_state_dict(self._averaged.state_dict())
            now = time.monotonic()
            rate = self._optimiser.param_groups[0]["lr"]
            reports.append(EpochReport(len(reports) + 1, train_loss, validation_loss, now - began, rate))
            if report is not None:
                report(reports[-1])
            # Plan as many epochs as the budget has time for, so that the learning rate falls to its end in time.
            left = (began + options.budget_s - now) / (now - started)
            affordable = len(reports) + int(min(left, planned))
            planned = min(planned, max(affordable, len(reports)))
            if checkpoint:
                epochs = [asdict(epoch) for epoch in reports]
                checkpoint.write({"epochs": epochs, "planned": planned, **self._content()})
        if best_loss == float("inf"):
            raise ValueError("no epoch had a finite loss on the validation part; check that its targets have values")
        return reports

    def _content(self) -> dict[str, Any]:
        """Everything that the next epoch depends on, for a checkpoint."""
        cuda = self._device.type == "cuda"
        return {
            "forecaster": self._forecaster.stored_weights(),
            "averaged": self._averaged.stored_weights(),
            "best": self.best.stored_weights(),
            "optimiser": self._optimiser.state_dict(),
            "hidden": self._hidden,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self._device) if cuda else None,
            "taken": self._chunks_done,
            "updates": self._updates,
            "sensor_steps": self.sensor_steps,
            "seconds": self.seconds,
        }

    def _restore(self, kept: dict[str, Any]) -> None:
        """Continue from the ``_content`` of a training with equal arguments."""
        self._forecaster.load_stored_weights(kept["forecaster"])
        self._averaged.load_stored_weights(kept["averaged"])
        self.best.load_stored_weights(kept["best"])
        self._optimiser.load_state_dict(kept["optimiser"])
        self._hidden = kept["hidden"].to(self._device)
        torch.set_rng_state(kept["random"])
        if kept["random_cuda"] is not None:
            torch.cuda.set_rng_state(kept["random_cuda"], self._device)
        self._chunks_done, self._updates = kept["taken"], kept["updates"]
        self.sensor_steps, self.seconds = kept["sensor_steps"], kept["seconds"]
        self._chunks = self._chunk_stream(self._chunks_done)

    def _window_ends(self) -> NDArray[np.int64]:
        """The last steps of all windows of the training part that have a label."""
        steps = self._options.window_steps
        if self._pool.longest <= steps:
            raise ValueError(
                f"no sensor has more than {steps} steps in a row before the validation part; lower window_steps"
            )
        ends = np.concatenate(list(self._pool.labelled(steps - 1)))
        if not len(ends):
            raise self._no_labels_error()
        return ends

    def _no_labels_error(self) -> ValueError:
        targets = ", ".join(self._forecaster.config.targets)
        return ValueError(
            f"training has no labels: the targets ({targets}) are all missing or constant in the training part"
        )

    def _chunk_stream(self, taken: int) -> Iterator[tuple[Chunk, bool]]:
        """An endless stream of chunks after the first ``taken``, and whether each begins from a zero state.

        The pool gives the same lanes in every run, so lanes that were walked before a restart are skipped.
        """
        options = self._options
        if self._plain:
            steps, stride = options.window_steps, 1  # a window is one chunk
            groups = self._pool.windows(self._ends, options.batch_lanes, steps)
        else:
            steps, stride = options.chunk_steps, self._stride
            groups = self._pool.passes(options.batch_lanes, steps, options.unknown_part)
        for lanes in groups:
            first = min(taken, chunk_count(lanes, steps))
            taken -= first
            for number, chunk in enumerate(chunks(lanes, steps, stride, first), start=first):
                yield chunk, number == 0

    def _epoch(self, planned_updates: int, deadline: float) -> float:
        """The mean loss of an epoch's updates; there is at least one, even past the deadline."""
        self._forecaster.train()
        total = 0.0
        updates = 0
        while updates < self._epoch_updates and (updates == 0 or time.monotonic() < deadline):
            chunk, fresh = next(self._chunks)
            self._chunks_done += 1
            loss = self._update(chunk.to(self._device), fresh, self._updates / planned_updates)
            self.sensor_steps += chunk.steps
            if loss is not None:
                total += loss
                updates += 1
                self._updates += 1
        return total / updates

    def _update(self, chunk: Chunk, fresh: bool, progress: float) -> float | None:
        """Update the weights by a chunk's loss, and return the loss; without labels, step the state and return None."""
        forecaster, options = self._forecaster, self._options
        if fresh:
            self._hidden = forecaster.gru.zeros(len(chunk.rows))
        if not chunk.valid.any():
            with torch.no_grad():
                _, self._hidden = forecaster.unroll(chunk.x, chunk.past, chunk.rows, self._hidden)
            return None
        predicted, hidden = forecaster.unroll(chunk.x, chunk.past, chunk.rows, self._hidden, chunk.scored)
        self._hidden = hidden.detach()
        if self._plain:
            loss = squared_error(predicted[..., forecaster.config.median_index, :], chunk)
        else:
            loss = pinball(predicted, chunk, forecaster.config)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if not self._plain:
            nn.utils.clip_grad_norm_(forecaster.parameters(), LARGEST_GRADIENT)
            rate = options.learning_rate * max(0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0))), 1e-2)
            for group in self._optimiser.param_groups:
                group["lr"] = rate
        self._optimiser.step()
        self._average()
        return loss.item()

    @torch.no_grad()
    def _average(self) -> None:
        # The mean begins over few updates, so that the initial weights are soon forgotten.
        n = self._updates
        keep = 0.0 if self._plain else min(self._options.averaging, n / (n + 10.0))
        for mean, current in zip(self._averaged.parameters(), self._forecaster.parameters(), strict=True):
            mean.lerp_(current, 1.0 - keep)


def _epochs_since_best(reports: list[EpochReport]) -> int:
    if not reports:
        return 0
    losses = [report.validation_loss for report in reports]
    return len(losses) - 1 - losses.index(min(losses))
