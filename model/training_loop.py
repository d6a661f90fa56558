"""The loop of a training: updates, epochs, validation, and the choice of the best epoch.

In several processes (``model.distributed``) each takes every n-th lane of an update. Gradients and losses are added up
over the processes and divided by the number of valid labels of all of them. Rank 0 alone validates, reports, and
writes the checkpoint.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .batches import Chunk, LanePool, chunk_count, chunks, evaluation_lanes
from .checkpoint import Checkpoint
from .device_data import DeviceData
from .distributed import Ranks
from .forecaster import Forecaster
from .inputs import PreparedSequences
from .objective import pinball, pinball_of, squared_error
from .optimisers import Adam, AdamW
from .sequences import Split
from .training_options import EpochReport, TrainingOptions

LARGEST_GRADIENT: Final = 1.0  # norm that gradients are clipped to; those of a recurrent network may explode
PLAIN_LEARNING_RATE: Final = 1e-3
# Neighbouring steps share all but one of their labels, so every fourth step tells the loss of a horizon of 96.
VALIDATION_LABELS_PER_STEP: Final = 24
MOST_LANES_PER_GPU: Final = 1_024  # of an update: enough to occupy a GPU, whose time per update hardly grows until then
# With n times the lanes the learning rate is √n times as high: the square-root scaling rule for Adam (Malladi et al.,
# 2022, "On the SDEs and scaling rules for adaptive gradient algorithms"). The rule holds for moderate n.
LARGEST_RATE_FACTOR: Final = 4.0
MOST_VALIDATION_STEPS: Final = 60_000  # per epoch: enough to choose the best one, and few compared with its training


def lanes_on_gpus(batch_lanes: int, lanes: int, gpus: int) -> int:
    """Lanes of an update on GPUs: about those of a pass, up to a number that hardly slows an update down.

    Args:
        batch_lanes: lanes of an update on a CPU, the fewest on GPUs too; the result is a multiple of it.
        lanes: ``LanePool.lanes``, which grows with the fleet and its history; too low for many short histories.
    """
    most = max(batch_lanes, MOST_LANES_PER_GPU * gpus)
    return max(1, min(lanes, most) // batch_lanes) * batch_lanes


class TrainingLoop:
    """One training, from the first to the last epoch, in one process or several."""

    def __init__(
        self,
        forecaster: Forecaster,
        options: TrainingOptions,
        prepared: PreparedSequences,
        split: Split,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        self.config = forecaster.config
        self.device = device
        self.best = copy.deepcopy(forecaster)
        self.sensor_steps = 0
        self.seconds = 0.0
        self._forecaster = forecaster
        self._averaged = copy.deepcopy(forecaster).requires_grad_(False).eval()
        self._averaged.gru.gru.flatten_parameters()  # cuDNN would gather the weights of a copy in every call
        self._options = options
        self._ranks = ranks
        self.data = DeviceData(device)
        self.validation = evaluation_lanes(
            forecaster, prepared, split.train_end_us, split.validation_end_us, MOST_VALIDATION_STEPS
        )
        if not self.validation:
            raise ValueError("the validation part holds no value of a target; use more data or another split")
        self._pool = LanePool(forecaster, prepared, split.train_end_us, np.random.default_rng(options.seed))
        self._plain = options.preset == "plain"
        self._lanes = options.batch_lanes
        if device.type == "cuda" and not self._plain:
            self._lanes = lanes_on_gpus(options.batch_lanes, self._pool.lanes, ranks.size)
        self._learning_rate = options.learning_rate * min(
            math.sqrt(self._lanes / options.batch_lanes), LARGEST_RATE_FACTOR
        )
        self._optimiser: torch.optim.Optimizer
        if self._plain:
            self._optimiser = Adam(forecaster.parameters(), lr=PLAIN_LEARNING_RATE)
            self._ends = self._window_ends()
            self._epoch_updates = -(-len(self._ends) // self._lanes)
        else:
            if not self._pool.has_labels(options.chunk_steps):
                raise self._no_labels_error()
            self._optimiser = AdamW(
                forecaster.parameters(), lr=self._learning_rate, weight_decay=options.weight_decay, fused=True
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
        """The reports of all epochs, until epochs, budget or patience are used up.

        The plain preset has unlimited patience. ``best`` is then the model of the best epoch.
        """
        options = self._options
        began = time.monotonic()
        patience = math.inf if self._plain else options.patience_epochs
        reports: list[EpochReport] = []
        planned = options.epochs
        kept = self._ranks.agree(checkpoint.read() if checkpoint else None)
        if kept is not None:
            reports = [EpochReport(**epoch) for epoch in kept["epochs"]]
            planned = kept["planned"]
            began -= reports[-1].seconds  # the budget includes the time before the restart
            self._restore(kept)
        saves = self._ranks.agree(checkpoint is not None)
        deadline = began + options.budget_s if self._plain else math.inf
        while len(reports) < planned and _epochs_since_best(reports) < patience:
            started = time.monotonic()
            train_loss = self._epoch(planned * self._epoch_updates, deadline)
            self.seconds += time.monotonic() - started
            if self._ranks.rank == 0:
                epoch = self._validated(len(reports) + 1, train_loss, began)
                if epoch.validation_loss < min(_losses(reports), default=math.inf):
                    self.best.load_state_dict(self._averaged.state_dict())
                reports.append(epoch)
                if report is not None:
                    report(epoch)
                # Plan as many epochs as the budget has time for, so that the learning rate falls to its end in time.
                now = time.monotonic()
                left = (began + options.budget_s - now) / (now - started)
                planned = min(planned, max(len(reports) + int(min(left, planned)), len(reports)))
            reports, planned = self._ranks.agree((reports, planned))
            content = self._content() if saves else {}
            if checkpoint:
                epochs = [asdict(each) for each in reports]
                checkpoint.write({"epochs": epochs, "planned": planned, **content})
        if not any(each.validation_loss < math.inf for each in reports):
            raise ValueError("no epoch had a finite loss on the validation part; check that its targets have values")
        return reports

    def _validated(self, number: int, train_loss: float, began: float) -> EpochReport:
        stride = max(1, self.config.horizon_steps // VALIDATION_LABELS_PER_STEP)
        loss = pinball_of(self._averaged, self.validation, self.data, stride)
        rate = self._optimiser.param_groups[0]["lr"]
        return EpochReport(number, train_loss, loss, time.monotonic() - began, rate)

    def _content(self) -> dict[str, Any]:
        """Everything that the next epoch depends on, for a checkpoint; all processes take part."""
        cuda = self.device.type == "cuda"
        own = {
            "hidden": self._hidden.cpu(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if cuda else None,
        }
        return {
            "forecaster": self._forecaster.stored_weights(),
            "averaged": self._averaged.stored_weights(),
            "best": self.best.stored_weights(),
            "optimiser": self._optimiser.state_dict(),
            "ranks": self._ranks.collect(own),
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
        own = kept["ranks"][self._ranks.rank]
        self._hidden = own["hidden"].to(self.device)
        torch.set_rng_state(own["random"])
        if own["random_cuda"] is not None:
            torch.cuda.set_rng_state(own["random_cuda"], self.device)
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
            groups = self._pool.windows(self._ends, self._lanes, steps)
        else:
            steps, stride = options.chunk_steps, self._stride
            groups = self._pool.passes(self._lanes, steps, options.unknown_part)
        share = (self._ranks.rank, self._ranks.size)
        for lanes in groups:
            first = min(taken, chunk_count(lanes, steps))
            taken -= first
            for number, chunk in enumerate(chunks(lanes, steps, stride, first, self.data, share), start=first):
                yield chunk, number == 0

    def _epoch(self, planned_updates: int, deadline: float) -> float:
        """The mean loss of an epoch's updates; there is at least one, even past the deadline.

        The host waits for the device at the end only, because the device adds up the losses.
        """
        self._forecaster.train()
        total, counted = torch.zeros(2, device=self.device)
        updates = 0
        while updates < self._epoch_updates and (updates == 0 or time.monotonic() < deadline):
            chunk, fresh = next(self._chunks)
            self._chunks_done += 1
            if fresh:
                self._hidden = self._forecaster.gru.zeros(len(chunk.rows))
            self.sensor_steps += chunk.steps
            if not chunk.labelled:
                with torch.no_grad():
                    self._hidden = self._forecaster.advance(chunk.x, chunk.rows, self._hidden)
                continue
            loss, labels = self._update(chunk, self._updates / planned_updates)
            total += loss
            counted += labels > 0
            updates += 1
            self._updates += 1
        return float(total / counted.clamp(min=1.0))

    def _update(self, chunk: Chunk, progress: float) -> tuple[Tensor, Tensor]:
        """Update the weights by a chunk's loss; return the loss and the number of labels, on the device."""
        forecaster = self._forecaster
        raw, hidden = forecaster.unroll_raw(chunk.x, chunk.past, chunk.rows, self._hidden, chunk.scored, chunk.ahead)
        self._hidden = hidden.detach()
        labels = chunk.valid.sum()
        self._ranks.add_up([labels])
        loss = (squared_error if self._plain else pinball)(raw, chunk, forecaster.config) / labels.clamp(min=1.0)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        loss = loss.detach()
        self._ranks.add_up([loss, *(weight.grad for weight in forecaster.parameters() if weight.grad is not None)])
        if not self._plain:
            nn.utils.clip_grad_norm_(forecaster.parameters(), LARGEST_GRADIENT)
            rate = self._learning_rate * max(0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0))), 1e-2)
            for group in self._optimiser.param_groups:
                group["lr"] = rate
        self._optimiser.step()
        self._average()
        return loss, labels

    @torch.no_grad()
    def _average(self) -> None:
        # The mean begins over few updates, so that the initial weights are soon forgotten.
        n = self._updates
        keep = 0.0 if self._plain else min(self._options.averaging, n / (n + 10.0))
        means: list[Tensor] = list(self._averaged.parameters())
        weights: list[Tensor] = list(self._forecaster.parameters())
        torch._foreach_lerp_(means, weights, 1.0 - keep)


def _losses(reports: list[EpochReport]) -> list[float]:
    """The validation losses; infinite instead of NaN, because no loss is lower than NaN."""
    return [math.inf if math.isnan(report.validation_loss) else report.validation_loss for report in reports]


def _epochs_since_best(reports: list[EpochReport]) -> int:
    if not reports:
        return 0
    losses = _losses(reports)
    return len(losses) - 1 - losses.index(min(losses))
