"""Training: passes along time with the state carried, as in service, and a loss at every step.

Short windows from a zero state would not show the network the states that it meets in a stream. The stateful preset
walks lanes of contiguous time chunk by chunk, and carries and detaches the state between chunks (truncated
back-propagation through time). Every step forecasts the whole horizon (the forking sequences of Wen et al., 2017), so
one pass supervises every step. The plain preset is for comparison: windows from a zero state, mean squared error, Adam
at a constant rate, an epoch for each pass over all windows. Both keep the epoch with the lowest validation loss.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from . import distributed
from .checkpoint import Checkpoint, fingerprint
from .config import ModelConfig
from .distributed import DeviceError, Ranks
from .forecaster import Forecaster
from .inputs import fit_spread
from .objective import fit_intervals
from .sequences import Sequences, Split
from .training_loop import TrainingLoop
from .training_options import EpochReport, TrainingOptions

logger = logging.getLogger("streamgru.training")

__all__ = [
    "DeviceError",
    "EpochReport",
    "TrainingOptions",
    "TrainingResult",
    "choose_device",
    "follow",
    "train",
    "using_tf32",
]


@dataclass(frozen=True)
class TrainingResult:
    """The model of the best epoch, and a report of the training."""

    forecaster: Forecaster  # on the CPU
    epochs: list[EpochReport]
    device: str
    sensor_steps_per_s: float  # rate of the training, without validation


def choose_device(wanted: str, *, shared: bool = False) -> torch.device:
    """The device to train on; for ``auto`` it is CUDA if available, otherwise the CPU.

    Args:
        shared: whether other processes train on this machine's other GPUs; this process's GPU then becomes current.

    Raises:
        DeviceError: the device is not available.
    """
    cuda = torch.cuda.is_available()
    try:
        device = torch.device(("cuda" if cuda else "cpu") if wanted == "auto" else wanted)
        if shared and device.type == "cuda" and cuda:
            device = distributed.local_device(device)
            torch.cuda.set_device(device)  # before the first tensor, which would take memory of GPU 0
        if wanted != "auto":
            torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(f"device {wanted} cannot be used here ({error}); use cpu or auto") from error
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
    training with a ``checkpoint`` is killed, a call with equal arguments continues after its last epoch; on a CPU it
    ends with the weights of a training that ran through. The caller deletes that file when the result is safe.

    In the leading process of several (``model.distributed``), the followers take their share of each update's lanes.
    Without dropout, the result is that of one process but for rounding.

    Args:
        initial: a model of the same shape whose weights to begin from; by default they are random.
        report: called after each epoch.
        checkpoint: the file that is written after each epoch.

    Raises:
        ValueError: the training or validation part has no labels (its targets are all missing, or constant), or
            ``initial`` has another shape.
        DeviceError: the device cannot be used in one of the processes.
    """
    job = _Job(config, options, sequences, split, initial)
    if options.preset == "plain":  # the clock ends its epochs, and several processes share no clock
        return _train(job, Ranks(), report, checkpoint)
    ranks = distributed.join()
    ranks.agree(job)
    return _train(job, ranks, report, checkpoint)


def follow() -> None:
    """Take part in the leader's trainings until it ends, in a process for which ``distributed.follows`` is true."""
    ranks = distributed.join()
    while (job := ranks.agree(None)) is not None:
        try:
            _train(job, ranks, None, None)
        except ValueError:
            logger.debug("the training was refused; the leader tells its user why", exc_info=True)
    distributed.leave()


@dataclass(frozen=True)
class _Job:
    """The arguments of a training, which the leader sends to its followers."""

    config: ModelConfig
    options: TrainingOptions
    sequences: Sequences
    split: Split
    initial: Forecaster | None


def _train(
    job: _Job, ranks: Ranks, report: Callable[[EpochReport], None] | None, checkpoint: Path | None
) -> TrainingResult:
    """This process's part of a training."""
    options = job.options
    cores = (os.cpu_count() or 1) // distributed.processes_on_this_machine()
    threads = options.threads or max(1, cores // 2)
    device = _device(options, ranks)
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        _using_threads(threads),
        _no_denormals(),
        using_tf32(),
    ):
        loop = ranks.together(lambda: _loop(job, ranks, device))
        file = None
        if checkpoint is not None:
            settings = (
                loop.config.to_json(),
                str(options),
                str(job.split),
                str(device),
                f"{ranks.size} processes",
            )
            file = Checkpoint(checkpoint, fingerprint(job.sequences, job.initial, *settings))
        epochs = loop.train(report, file)
    if options.preset == "plain":
        fit_intervals(loop.best, loop.validation, loop.data)
    rate = loop.sensor_steps / max(loop.seconds, 1e-9)
    return TrainingResult(loop.best.cpu().eval(), epochs, str(device), rate)


def _device(options: TrainingOptions, ranks: Ranks) -> torch.device:
    """The device of this process.

    Raises:
        DeviceError: in one of the processes it is not available, or is of another kind; all processes raise the error.
    """
    try:
        device = ranks.together(lambda: choose_device(options.device, shared=ranks.size > 1))
    except ValueError as error:
        raise DeviceError(str(error)) from error
    kinds = ranks.collect(device.type)
    if len(set(kinds)) > 1:  # sums over the processes would wait for each other forever
        found = ", ".join(f"{kind} in process {kinds.index(kind)}" for kind in dict.fromkeys(kinds))
        raise DeviceError(
            f"the processes of torchrun have different devices ({found}); use cpu, or only machines with a GPU"
        )
    return device


def _loop(job: _Job, ranks: Ranks, device: torch.device) -> TrainingLoop:
    """The loop before its first epoch, with equal weights in all processes.

    Raises:
        ValueError: the data or the initial weights cannot be used.
    """
    options, sequences, split = job.options, job.sequences, job.split
    known = _with_labels(sequences, job.config, split.train_end_us)
    config = replace(job.config, preset=options.preset, hidden_size=options.hidden_size, sensors=known)
    torch.manual_seed(options.seed)
    forecaster = Forecaster(config, dropout=options.dropout if options.preset == "stateful" else 0.0)
    forecaster.fit_outlooks(sequences, split.train_end_us)
    if job.initial is None:
        forecaster.scale_spread.copy_(torch.from_numpy(fit_spread(config, sequences, split.train_end_us)))
    else:
        forecaster.adopt(job.initial)
    if ranks.rank:
        torch.manual_seed(options.seed + ranks.rank * 1_000_003)  # other dropout than in the processes before it
    return TrainingLoop(forecaster.to(device), options, forecaster.prepare(sequences), split, device, ranks)


@contextmanager
def using_tf32() -> Iterator[None]:
    """Let GPUs multiply float32 matrices in TF32: products of 10 bits, added up in float32. CPUs are not affected."""
    if not torch.cuda.is_available():
        yield
        return
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@contextmanager
def _using_threads(threads: int) -> Iterator[None]:
    """Let PyTorch use this many threads for the calling thread's work.

    With 1, no result depends on the number of cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _no_denormals() -> Iterator[None]:
    """Let numbers below 1e-38 count as 0: old gradients decay to them, and they slow arithmetic down."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
