"""The health port of a forecaster: probes, counts and metrics, answered by threads beside the loop."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from pipeline.exposition import Exposition
from pipeline.forecaster.metric_families import ForecasterCollector, Timings
from pipeline.forecaster.metrics import Counters, health_report, probe_paths, state_of
from pipeline.forecaster.stuck_detection import HealthMonitor, Heartbeat
from pipeline.health_server import Paths, listening, metrics_path
from pipeline.settings import Settings


@dataclass(frozen=True)
class Statistics:
    """The statistics that the loop's thread keeps and the health port shows."""

    counters: Counters = field(default_factory=Counters)
    timings: Timings = field(default_factory=Timings)
    heartbeat: Heartbeat = field(default_factory=Heartbeat)


def answering_probes(
    settings: Settings, port: int | None, statistics: Statistics, monitor: Callable[[], HealthMonitor | None]
) -> AbstractContextManager[None]:
    """Listen at ``port``, by default the port in the settings; without a port there is no server.

    Args:
        monitor: returns the health monitor; None until the forecaster has connected.
    """
    chosen = port or settings.forecaster.health_port
    paths = answers(settings.model_name, statistics, monitor)
    option = "--health-port or the setting forecaster.health_port"
    return listening(settings.forecaster.health_host, chosen, paths, option)


def answers(model_name: str, statistics: Statistics, monitor: Callable[[], HealthMonitor | None]) -> Paths:
    """The answers of the health port."""
    counters, heartbeat = statistics.counters, statistics.heartbeat
    collector = ForecasterCollector(model_name, counters, statistics.timings, heartbeat, monitor)
    probes = probe_paths(lambda: state_of(monitor()), lambda: health_report(heartbeat, monitor(), counters))
    return {**probes, **metrics_path(Exposition("forecast", collector))}
