"""Compiles all numba kernels, once: ``python -m deploy.compile_kernels``, which ``make setup`` runs.

numba keeps the machine code on disk. Without this command, the first process that needs a kernel would compile it, and
a forecaster's partitions would wait. The command prints the seconds that each kernel took, and compiles nothing twice.
"""

import time
from collections.abc import Callable

import numpy as np

from deploy.terminal_text import say
from model import acceptance_kernel, least_squares
from model.config import Adaptation, ModelConfig
from model.engine import Engine
from model.forecaster import Forecaster
from model.normaliser import NormaliserState
from pipeline import forecast_kernel
from pipeline.kafka import framing_kernel, record_kernel
from pipeline.readings_format import reading_columns


def compile_step() -> None:
    """Compile the kernels of ``model.engine``; one compilation serves models of all sizes."""
    config = ModelConfig(features=("value",), targets=("value",), cadence_us=1, horizon_steps=1, hidden_size=1)
    forecaster = Forecaster(config).eval()
    none = np.empty(0, bool)
    forecaster.normaliser().step(NormaliserState.blank(config, 0), np.empty((0, 1)), [], none)
    Engine(forecaster, Adaptation("light", calibrated=True))


KERNELS: tuple[tuple[str, Callable[[], None]], ...] = (
    ("step of the network, changes of unit, adaptation", compile_step),
    ("acceptance of readings", acceptance_kernel.prepare),
    ("least squares of the baseline", least_squares.prepare),
    ("reader of record batches", record_kernel.prepare),
    ("decoder of readings", reading_columns.prepare),
    ("writer of forecasts", forecast_kernel.prepare),
    ("writer of record batches", framing_kernel.prepare),
)


def main() -> None:
    """Compile the kernels and print the time of each."""
    for name, prepare in KERNELS:
        began = time.perf_counter()
        prepare()
        say(f"{name}: {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
