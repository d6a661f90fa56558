"""The options of a training, and the report of an epoch."""

from dataclasses import dataclass

from .config import Preset


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
    batch_lanes: int = 64  # on a CPU; on GPUs more for more sensors, see `training_loop.lanes_on_gpus`
    chunk_steps: int = 48  # steps that a gradient reaches back
    # Neighbouring steps share all but one of their labels. One in `horizon_steps // labels_per_step` steps has a loss;
    # every step has one if the horizon is shorter than twice this number.
    labels_per_step: int = 96
    updates_per_epoch: int = 64  # an epoch is a number of updates, regardless of the amount of data
    patience_epochs: int = 6
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
