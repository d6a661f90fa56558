"""Compiles all numba kernels, once: ``python -m deploy.compile_kernels``, which ``make setup`` runs.

numba keeps the machine code on disk. Without this command, the first process that needs a kernel would compile it, and
a forecaster's partitions would wait. The command prints the seconds that each kernel took, and compiles nothing twice.
"""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Final

import numpy as np

from deploy.terminal_text import say
from model import acceptance_kernel, least_squares
from model.adaptation import AdaptedSteps, Adapter
from model.config import NO_ADAPTATION, Adaptation, ModelConfig
from model.engine import Engine
from model.experts import AdaptationConfig
from model.forecaster import Forecaster
from model.normaliser import NormaliserState
from model.state import record_bytes, state_dtype
from model.unit_change import follow_from_blank
from pipeline import forecast_kernel
from pipeline.kafka import framing_kernel, record_kernel
from pipeline.readings_format import reading_columns

# numba compiles with one core, and a process takes up to 0.9 GB meanwhile.
PROCESSES: Final = 2
# One compilation serves models of all sizes.
_CONFIG: Final = ModelConfig(features=("value",), targets=("value",), cadence_us=1, horizon_steps=1, hidden_size=1)
_ADAPTATION: Final = Adaptation("light", calibrated=True)


def compile_step() -> None:
    """Compile the kernels of ``model.engine``, or read them from disk."""
    compile_network()
    Engine(Forecaster(_CONFIG).eval(), _ADAPTATION)


def compile_network() -> None:
    """Compile the step of the network and of its normaliser."""
    forecaster = Forecaster(_CONFIG).eval()
    none = np.empty(0, bool)
    forecaster.normaliser().step(NormaliserState.blank(_CONFIG, 0), np.empty((0, 1)), [], none)
    Engine(forecaster, NO_ADAPTATION)


def compile_adaptation() -> None:
    """Compile the changes of unit and the adaptation, for no sensors."""
    states = np.empty(0, state_dtype(_CONFIG, _ADAPTATION))
    none, numbers, values = np.empty(0, bool), np.empty(0, np.int64), np.empty((0, 1))
    starts = np.zeros(1, np.int64)
    follow_from_blank(starts, none, values)
    hidden, quantiles = np.empty((0, 1), np.float32), np.empty((0, 1, 1, 1))
    steps = AdaptedSteps(numbers, starts, none, numbers, values, hidden, numbers, quantiles)
    Adapter(AdaptationConfig.of(_CONFIG, _ADAPTATION), columns=[0]).adapt(record_bytes(states), steps)


# Those that take longest come first.
KERNELS: Final[dict[str, Callable[[], None]]] = {
    "step of the network": compile_network,
    "changes of unit, adaptation": compile_adaptation,
    "decoder of readings": reading_columns.prepare,
    "least squares of the baseline": least_squares.prepare,
    "writer of forecasts": forecast_kernel.prepare,
    "acceptance of readings": acceptance_kernel.prepare,
    "writer of record batches": framing_kernel.prepare,
    "reader of record batches": record_kernel.prepare,
}


def _timed(name: str) -> float:
    """Compile a kernel; return the seconds that it took."""
    began = time.perf_counter()
    KERNELS[name]()
    return time.perf_counter() - began


def main() -> None:
    """Compile the kernels and print the time of each.

    Without memory for two processes, or on a machine without the semaphores that a pool of processes needs, this
    process compiles the remaining kernels alone.
    """
    remaining = dict(KERNELS)
    try:
        with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
            names = {pool.submit(_timed, name): name for name in KERNELS}
            for done in as_completed(names):
                say(f"{names[done]}: {done.result():.1f} s")
                del remaining[names[done]]
    except (BrokenProcessPool, ImportError, NotImplementedError, OSError) as error:
        say(f"{PROCESSES} processes cannot compile the kernels ({error}); one process continues")
        for name in remaining:
            say(f"{name}: {_timed(name):.1f} s")


if __name__ == "__main__":
    main()
