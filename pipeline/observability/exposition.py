"""Metrics in Prometheus' form: the answer of each process to ``GET /metrics``.

A process keeps its statistics in plain objects. A collector turns them into metrics when Prometheus asks, so the code
that counts calls no Prometheus client and waits for no lock. Every name begins with ``streamgru_`` and ends in its base
unit, or in ``_total`` if it counts. No label grows with the number of sensors.
"""

import logging
import threading
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from pipeline.text.visible_text import visible

logger = logging.getLogger("streamgru.metrics")

# Upper bounds of buckets, in seconds. A batch takes milliseconds, and at most some seconds in a backlog.
WORK_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# A reading waits for milliseconds in the usual course, and for as long as a backlog after an outage.
DELAY_BOUNDS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3_600.0)

MOST_LETTERS: Final = 500  # of an error's message, which may contain whole metrics


class Distribution:
    """A histogram that one thread fills and other threads read, without a lock.

    Args:
        bounds: upper bounds of the buckets, ascending; a last bucket for larger values is added.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._edges = np.array(bounds, np.float64)
        # Values per bucket, and the sum of all values. The pair is replaced as a whole, so a reader gets both of one
        # moment.
        self._found: tuple[NDArray[np.int64], float] = (np.zeros(len(bounds) + 1, np.int64), 0.0)

    @property
    def count(self) -> int:
        """The number of values."""
        return int(self._found[0].sum())

    def add(self, value: float) -> None:
        """Count one value."""
        before, total = self._found
        counts = before.copy()
        counts[bisect_left(self._bounds, value)] += 1
        self._found = (counts, total + value)

    def add_all(self, values: NDArray[np.float64]) -> None:
        """Count values, in any order."""
        if not len(values):
            return
        before, total = self._found
        places = np.searchsorted(self._edges, values, side="left")
        counts = before + np.bincount(places, minlength=len(before))
        self._found = (counts, total + float(values.sum()))

    def family(self, name: str, documentation: str) -> HistogramMetricFamily:
        """The histogram as a metric."""
        counts, total = self._found
        bounds = [*map(repr, self._bounds), "+Inf"]
        buckets = list(zip(bounds, np.cumsum(counts).tolist(), strict=True))
        return HistogramMetricFamily(name, documentation, buckets=buckets, sum_value=total)


def one_of(name: str, documentation: str, label: str, states: Sequence[str], present: str) -> GaugeMetricFamily:
    """A gauge with a series for each state: 1 for the present one, 0 for the other ones."""
    family = GaugeMetricFamily(name, documentation, labels=[label])
    for state in states:
        family.add_metric([state], float(state == present))
    return family


Family = TypeVar("Family", CounterMetricFamily, GaugeMetricFamily)


def by_label(family: Family, values: Mapping[Any, float]) -> Family:
    """The family with a series for each value; the keys are the values of its only label."""
    for label, value in values.items():
        family.add_metric([visible(label)], value)
    return family


@dataclass(frozen=True)
class Page:
    """An answer to ``GET /metrics``."""

    status: int
    content_type: str
    body: bytes


class Exposition:
    """The metrics of one process: those of its collectors, its build, and its use of the machine.

    Args:
        process: name of the command, such as "forecast".
        collectors: called at each scrape, possibly from several threads at once.
    """

    def __init__(self, process: str, *collectors: Collector) -> None:
        self._registry = CollectorRegistry(auto_describe=False)  # describing would collect once at the start
        for collector in (_Build(process), ProcessCollector(registry=None), *collectors):
            self._registry.register(collector)
        self._lock = threading.Lock()
        self._has_failed = False  # whether the last scrape failed; only the first failure of a series is logged

    def render(self, accept: str = "") -> Page:
        """The present metrics, in the form that the header ``Accept`` asks for; status 500 if a collector fails.

        A header that cannot be parsed gets the text form.
        """
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # prometheus_client raises TypeError for "version=abc"
            encode, content_type = choose_encoder("")
        try:
            page = Page(200, content_type, encode(self._registry))
        except Exception as error:
            message = f"cannot collect the metrics: {type(error).__name__}: {visible(error, MOST_LETTERS)}"
            if self._has_changed(failed=True):
                logger.debug("the error in full", exc_info=error)
                logger.warning("%s; GET /metrics answers 500, and everything else continues", message)
            return Page(500, "text/plain; charset=utf-8", message.encode() + b"\n")
        if self._has_changed(failed=False):
            logger.warning("the metrics can be collected again")
        return page

    def _has_changed(self, *, failed: bool) -> bool:
        with self._lock:
            changed, self._has_failed = failed != self._has_failed, failed
        return changed


class _Build(Collector):
    def __init__(self, process: str) -> None:
        try:
            build = version("streamgru")
        except PackageNotFoundError:
            build = "unknown"
        self._info = {"version": build, "process": process}

    def collect(self) -> list[InfoMetricFamily]:
        return [InfoMetricFamily("streamgru_build", "Version and command of this process.", value=self._info)]
