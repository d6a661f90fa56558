"""``make gpu`` (``python3 -m tests.benchmarks.gpu``): training on a GPU beside a CPU; writes GPU.md beside this file.

It needs torch, numpy and numba, no network and no data: the series are synthetic. The command

1. compares the loss and the forecasts of equal weights on both devices;
2. trains on both with equal lanes and no dropout, and compares the losses of each epoch;
3. trains with the defaults of a GPU, where lanes and learning rate grow with the fleet, against the defaults of a CPU;
4. ends a training after an epoch, continues it from its checkpoint, and compares it with one that ran through;
5. times the training beside one CPU core.

``--device cpu --small`` does all steps with few sensors on a CPU, so that a test can run them. The exit code is 1 if a
check fails, and 2 without a GPU.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch

from model.batches import evaluation_lanes
from model.config import ModelConfig
from model.device_data import DeviceData
from model.forecaster import Forecaster
from model.objective import forecasts_along, pinball_of
from model.sequences import Sequences, Split, build_sequences
from model.training import EpochReport, TrainingOptions, TrainingResult, train, using_tf32
from tests.benchmarks.markdown import table
from tests.benchmarks.page import Figure

REPORT: Final = Path(__file__).with_name("GPU.md")
HOUR_US: Final = 3_600_000_000
CONFIG: Final = ModelConfig(("load", "heat"), ("load",), HOUR_US, 24, season_steps=24)
# Products in TF32 have 10 bits, which is a relative error of 1e-3 in each.
LOSS_TOLERANCE: Final = 2e-3
FORECAST_TOLERANCE: Final = 2e-2  # in scales; a deviation of 0.02 lies far inside an 80 % interval
EPOCH_TOLERANCE: Final = 1e-2  # rounding grows from update to update
QUALITY_TOLERANCE: Final = 2e-2
AIM: Final = 50.0  # times one core at 1,000 sensors
VALIDATION_STEPS: Final = 60_000


@dataclass(frozen=True)
class Size:
    """The extent of a run."""

    sensors: int
    hours: int
    options: TrainingOptions


FULL: Final = Size(1_000, 2_000, TrainingOptions(epochs=4, threads=1))
SMALL: Final = Size(4, 900, TrainingOptions(epochs=2, updates_per_epoch=4, batch_lanes=8, hidden_size=8, threads=1))


def synthetic(size: Size) -> Sequences:
    """Sensors with daily and weekly cycles of their own, slow noise, and a heat that the load follows hours later."""
    random = np.random.default_rng(0)
    hours = np.arange(size.hours)
    values = np.empty((size.sensors, size.hours, 2))
    for sensor in range(size.sensors):
        heat = np.convolve(random.normal(size=size.hours + 11), np.ones(12) / 12, mode="valid")
        daily = random.uniform(0.5, 2.0) * np.sin(2 * np.pi * (hours / 24 + random.random()))
        weekly = random.uniform(0.0, 0.5) * np.sin(2 * np.pi * (hours / 168 + random.random()))
        load = daily + weekly + 2.0 * np.roll(heat, 3) + 0.2 * random.normal(size=size.hours)
        values[sensor] = np.stack([10.0 ** random.uniform(-1, 3) * (load + 5.0), heat], axis=1)
    values[random.random(values.shape) < 0.01] = np.nan
    return build_sequences(
        [f"sensor-{number}" for number in range(size.sensors)],
        np.arange(size.sensors + 1) * size.hours,
        np.tile(hours * HOUR_US, size.sensors),
        values.reshape(-1, 2),
        np.arange(size.sensors * size.hours),
        features=CONFIG.features,
        cadence_us=HOUR_US,
        max_gap_steps=24,
    )


class Comparison:
    """The steps of the benchmark; each gives rows of the report."""

    def __init__(self, device: torch.device, size: Size) -> None:
        self._device = device
        self._size = size
        self._sequences = synthetic(size)
        self._split = Split(int(0.7 * size.hours) * HOUR_US, int(0.85 * size.hours) * HOUR_US)

    def figures(self) -> Iterator[Figure]:
        """All rows, in order."""
        yield from self._equal_weights()
        yield from self._equal_training()
        on_cpu = self._train("cpu")
        on_device = self._train(str(self._device))
        yield from self._quality(on_cpu, on_device)
        yield from self._resumed()
        yield from self._rates(on_cpu, on_device)

    def _equal_weights(self) -> Iterator[Figure]:
        torch.manual_seed(0)
        hidden_size = self._size.options.hidden_size
        forecaster = Forecaster(replace(CONFIG, sensors=self._sequences.sensors, hidden_size=hidden_size))
        for weights in forecaster.gru.parameters():
            torch.nn.init.normal_(weights, std=0.2)
        prepared = forecaster.prepare(self._sequences)
        lanes = evaluation_lanes(
            forecaster, prepared, self._split.train_end_us, self._split.validation_end_us, VALIDATION_STEPS
        )
        losses, forecasts = [], []
        for device in (torch.device("cpu"), self._device):
            data = DeviceData(device)
            there = forecaster.to(device)
            with using_tf32(), torch.no_grad():
                losses.append(pinball_of(there, lanes, data))
                predicted, _ = next(forecasts_along(there, lanes, data))
            forecasts.append(predicted.cpu())
        forecaster.to("cpu")
        apart = abs(losses[1] / losses[0] - 1.0)
        furthest = float((forecasts[1] - forecasts[0]).abs().max())
        yield _within("loss of equal weights, GPU against CPU: relative difference", apart, LOSS_TOLERANCE)
        yield _within("forecasts of equal weights: largest difference, in scales", furthest, FORECAST_TOLERANCE)

    def _equal_training(self) -> Iterator[Figure]:
        """Four sensors fill less than one update, so both devices take equal lanes."""
        options = replace(self._size.options, dropout=0.0, epochs=2)
        few = self._sequences.select(
            np.arange(self._sequences.starts[4]), self._sequences.starts[:5], self._sequences.sensors[:4]
        )
        found = [train(CONFIG, replace(options, device=name), few, self._split) for name in ("cpu", str(self._device))]
        for cpu, gpu in zip(found[0].epochs, found[1].epochs, strict=True):
            apart = abs(gpu.validation_loss / cpu.validation_loss - 1.0)
            name = f"validation loss after epoch {cpu.epoch} of 4 sensors, no dropout: relative difference"
            yield _within(name, apart, EPOCH_TOLERANCE)

    def _train(self, device: str) -> TrainingResult:
        options = replace(self._size.options, device=device)
        return train(CONFIG, options, self._sequences, self._split, report=partial(_tell, device))

    def _quality(self, on_cpu: TrainingResult, on_device: TrainingResult) -> Iterator[Figure]:
        losses = [min(epoch.validation_loss for epoch in result.epochs) for result in (on_cpu, on_device)]
        yield Figure("validation loss with the defaults of a CPU", f"{losses[0]:.4f}")
        limit = losses[0] * (1.0 + QUALITY_TOLERANCE)
        yield Figure(
            "validation loss with the defaults of a GPU", f"{losses[1]:.4f}", f"≤ {limit:.4f}", losses[1] <= limit
        )

    def _resumed(self) -> Iterator[Figure]:
        options = replace(self._size.options, device=str(self._device), epochs=2)
        through = train(CONFIG, options, self._sequences, self._split)

        def stop(epoch: EpochReport) -> None:
            if epoch.epoch == 2:
                raise _Stopped

        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / "training.pt"
            try:
                train(CONFIG, options, self._sequences, self._split, report=stop, checkpoint=checkpoint)
            except _Stopped:
                print("stopped after the first epoch", flush=True)
            epochs: list[int] = []
            rest = train(
                CONFIG,
                options,
                self._sequences,
                self._split,
                report=lambda epoch: epochs.append(epoch.epoch),
                checkpoint=checkpoint,
            )
        continued = epochs == [2]
        yield Figure("epochs trained after the restart", ", ".join(map(str, epochs)), "2", continued)
        apart = abs(rest.epochs[-1].validation_loss / through.epochs[-1].validation_loss - 1.0)
        yield _within("validation loss after a restart: relative difference", apart, EPOCH_TOLERANCE)

    def _rates(self, on_cpu: TrainingResult, on_device: TrainingResult) -> Iterator[Figure]:
        core, gpu = on_cpu.sensor_steps_per_s, on_device.sensor_steps_per_s
        # The first epoch includes the start of CUDA and cuDNN.
        began, ended = on_device.epochs[0].seconds, on_device.epochs[-1].seconds
        later = (ended - began) / max(1, len(on_device.epochs) - 1)
        yield Figure("training steps of sensors per second, one CPU core", f"{core:,.0f}")
        yield Figure("training steps of sensors per second, GPU", f"{gpu:,.0f}")
        aimed = self._size is FULL
        yield Figure(
            f"GPU against one core, {self._size.sensors:,} sensors",
            f"{gpu / core:.1f} times",
            f"≥ {AIM:.0f} times" if aimed else "for the record",
            gpu / core >= AIM or not aimed,
        )
        yield Figure("first epoch on the GPU, with its validation", f"{began:.2f} s")
        yield Figure("a later epoch on the GPU, with its validation", f"{later:.2f} s")
        on_core = on_cpu.epochs[-1].seconds / len(on_cpu.epochs)
        yield Figure("an epoch on one CPU core, with its validation", f"{on_core:.2f} s")
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device) / 2**20
            yield Figure("largest memory of tensors on the GPU", f"{peak:,.0f} MiB")


class _Stopped(Exception):
    """Ends a training as a kill of its process would."""


def _tell(device: str, epoch: EpochReport) -> None:
    loss, seconds = epoch.validation_loss, epoch.seconds
    print(f"{device}: epoch {epoch.epoch}, validation loss {loss:.4f} after {seconds:.1f} s", flush=True)


def _within(name: str, value: float, most: float) -> Figure:
    return Figure(name, f"{value:.1e}", f"≤ {most:.0e}", value <= most)


def machine(device: torch.device) -> str:
    """The processors and versions, in a sentence."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
    return (
        f"Machine: {name}; {platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.system()}. "
        f"PyTorch {torch.__version__}, CUDA {torch.version.cuda or 'none'}, Python {platform.python_version()}."
    )


def report(figures: list[Figure], size: Size, device: torch.device, seconds: float) -> str:
    """GPU.md."""
    rows = [(row.name, row.found, row.asked, "yes" if row.is_met else "**no**") for row in figures]
    options = size.options
    return f"""# Training on a GPU

`make gpu` writes this page. A machine with torch, numpy and numba alone runs `python3 -m tests.benchmarks.gpu`, which
does the same.

{machine(device)}

{size.sensors:,} synthetic sensors with {size.hours:,} hourly readings each, 24 steps ahead, hidden size
{options.hidden_size}, {options.updates_per_epoch} updates per epoch. The run took {seconds:.0f} s.

{table(("measure", "value", "aim", "met"), rows)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m tests.benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help="the device to compare with a CPU; default: cuda")
    parser.add_argument("--small", action="store_true", help="few sensors: a test of this command, not a measurement")
    parser.add_argument("--out", type=Path, default=REPORT, help=f"the page to write; default: {REPORT.name}")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(
            "no GPU: PyTorch finds no CUDA device here. Run this command on a machine with an NVIDIA GPU, its driver "
            "and a CUDA build of PyTorch; --device cpu --small tries its steps on a CPU",
            file=sys.stderr,
        )
        sys.exit(2)
    began = time.monotonic()
    size = SMALL if options.small else FULL
    found = []
    for figure in Comparison(device, size).figures():
        found.append(figure)
        print(f"{figure.name}: {figure.found} ({figure.asked}){'' if figure.is_met else ' NOT MET'}", flush=True)
    options.out.write_text(report(found, size, device, time.monotonic() - began), encoding="utf-8")
    print(f"written to {options.out}")
    sys.exit(0 if all(figure.is_met for figure in found) else 1)


if __name__ == "__main__":
    main()
