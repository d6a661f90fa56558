"""Time, CPU time and bytes of one side of the throughput benchmark."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """Times of a side, from its first reading to its last commit."""

    readings: int
    seconds: float
    client_s: float  # CPU seconds of the side's process
    broker_s: float  # CPU seconds of the broker meanwhile; 0 if the meter does not know its process

    @property
    def rate(self) -> float:
        """Readings per second."""
        return self.readings / self.seconds


class Meter:
    """Takes the times of a run. ``begin`` and ``end`` may be called again; the last call of each counts.

    Args:
        broker: process id of the broker.
    """

    def __init__(self, broker: int | None = None) -> None:
        self.broker = broker
        self._began = self._ended = (0.0, 0.0, 0.0)

    def begin(self) -> None:
        self._began = self._now()

    def end(self) -> None:
        self._ended = self._now()

    def run(self, readings: int) -> Run:
        """The run between the last ``begin`` and the last ``end``."""
        return Run(readings, *(after - before for before, after in zip(self._began, self._ended, strict=True)))

    def _now(self) -> tuple[float, float, float]:
        broker_s = 0.0 if self.broker is None else process_cpu_s(self.broker)
        return time.perf_counter(), time.process_time(), broker_s


def process_cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, with its ended threads (Linux, exact; `ps` counts ticks)."""
    return time.clock_gettime((~pid << 3) | 2)  # the clock that clock_getcpuclockid(3) returns for the process


def topic_bytes(data: Path, topics: Sequence[str]) -> int:
    """Bytes of these topics' logs on the broker's disk. A name may end with ``*``."""
    return sum(path.stat().st_size for topic in topics for path in data.glob(f"{topic}-*/*.log"))
