"""The health port of ``streamgru schedule``: probes and metrics.

``GET /healthz`` returns 200 as long as the process lives, because a restart repairs no outage of Prefect. ``GET
/readyz`` returns 200 while Prefect answers.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from flows.run_statistics import ENDS, FLOWS, RunStatistics, RunWatcher, ScheduleState
from pipeline.observability.exposition import Exposition, Page, by_label, one_of
from pipeline.observability.health_server import JSON, Paths, listening, metrics_path
from pipeline.settings import Settings
from pipeline.settings.sections import MonitorSettings
from pipeline.text.json_text import json_text

OPTION: Final = "--health-port or the setting schedules.health_port"


@contextmanager
def answering_probes(settings: Settings, port: int | None) -> Iterator[None]:
    """Listen at ``port``, by default the port in the settings; without a port there is no server."""
    chosen = port or settings.schedules.health_port
    if chosen is None:
        yield
        return
    watcher = RunWatcher(settings.model_name, since=datetime.now(UTC))
    paths = answers(watcher.statistics, settings.monitor)
    with watcher.watching(), listening(settings.schedules.health_host, chosen, paths, OPTION):
        yield


def answers(statistics: RunStatistics, limits: MonitorSettings) -> Paths:
    """The answers of the health port."""
    probes: Paths = {
        "/healthz": lambda accept: _probe(statistics, is_good=True),
        "/readyz": lambda accept: _probe(statistics, is_good=statistics.state is ScheduleState.SERVING),
    }
    return {**probes, **metrics_path(Exposition("schedule", ScheduleCollector(statistics, limits)))}


def _probe(statistics: RunStatistics, *, is_good: bool) -> Page:
    now = time.time()
    content = {
        "state": statistics.state.value,
        "running": statistics.running,
        "since_success_s": {flow: round(now - moment, 1) for flow, moment in statistics.succeeded_at.items()},
    }
    return Page(200 if is_good else 503, JSON, json_text(content, None).encode() + b"\n")


class ScheduleCollector(Collector):
    """Reads the statistics of the scheduled runs at each scrape."""

    def __init__(self, statistics: RunStatistics, limits: MonitorSettings) -> None:
        self._statistics = statistics
        self._limits = limits

    def collect(self) -> Iterator[Metric]:
        """All metrics, with the values of the last check."""
        statistics = self._statistics
        yield one_of(
            "streamgru_scheduler_state",
            "1 for the present state of the scheduler, 0 for the other states.",
            "state",
            [state.value for state in ScheduleState],
            statistics.state.value,
        )
        runs = CounterMetricFamily(
            "streamgru_flow_runs", "Scheduled runs that ended since this process started.", labels=["flow", "state"]
        )
        for flow in FLOWS:
            for state in ENDS:  # each from the start: Prometheus cannot tell how much a new series has grown
                runs.add_metric([flow, state.lower()], statistics.finished[flow, state])
        yield runs
        yield _by_flow("streamgru_flow_runs_in_progress", "Scheduled runs in progress.", statistics.running)
        yield _by_flow(
            "streamgru_flow_last_success_timestamp_seconds",
            "End of the last scheduled run that succeeded, in seconds since 1970.",
            statistics.succeeded_at,
        )
        yield _by_flow(
            "streamgru_flow_last_success_duration_seconds",
            "Duration of the last scheduled run that succeeded, in seconds.",
            statistics.last_run_s,
        )
        yield _by_flow(
            "streamgru_flow_overdue_after_seconds",
            "Longest time since a success before the flow is overdue, from the settings, in seconds.",
            {"retrain": self._limits.retrain_within_s, "ingest": self._limits.append_within_s},
        )


def _by_flow(name: str, documentation: str, values: dict[str, float] | dict[str, int]) -> GaugeMetricFamily:
    return by_label(GaugeMetricFamily(name, documentation, labels=["flow"]), values)
