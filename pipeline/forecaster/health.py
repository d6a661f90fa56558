"""The health port of a forecaster: probes, counts and metrics, answered by threads beside the loop.

``GET /healthz`` returns 200 unless the forecaster is stuck; restart it on 503. ``GET /readyz`` returns 200 only while
it serves. Both return the state and the counts as JSON.
"""

import json
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from pipeline.forecaster.counters import Counters
from pipeline.forecaster.metrics import ForecasterCollector, Timings
from pipeline.forecaster.stuck_detection import ForecasterState, HealthMonitor, Heartbeat, state_of
from pipeline.observability.exposition import Exposition, Page
from pipeline.observability.health_server import JSON, Paths, listening, metrics_path
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.forecaster")


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


def health_report(heartbeat: Heartbeat, monitor: HealthMonitor | None, counters: Counters) -> dict[str, Any]:
    """The keys that /healthz and /readyz return in addition to the state."""
    now = time.monotonic()
    return {
        "trouble": "" if monitor is None else monitor.trouble,
        "since_poll_s": None if heartbeat.polled is None else round(now - heartbeat.polled, 3),
        "since_commit_s": None if heartbeat.committed is None else round(now - heartbeat.committed, 3),
        "lag": {} if monitor is None else {str(partition): lag for partition, lag in monitor.lag.items()},
        "sensors": heartbeat.sensors,
        "model_version": counters.model_version,
        "counters": counters.content(),
    }


def probe_paths(state: Callable[[], ForecasterState], details: Callable[[], dict[str, Any]]) -> Paths:
    """The answers to probes. Their status code depends on ``state`` alone.

    Args:
        state: the forecaster's state.
        details: further keys of the answer, ready for JSON. An error is logged and returned as ``trouble``.
    """

    def answer(is_good: Callable[[ForecasterState], bool]) -> Page:
        now = state()
        return Page(200 if is_good(now) else 503, JSON, _answer(now, details))

    return {
        "/healthz": lambda accept: answer(lambda now: now is not ForecasterState.STUCK),
        "/readyz": lambda accept: answer(lambda now: now is ForecasterState.SERVING),
    }


def _answer(state: ForecasterState, details: Callable[[], dict[str, Any]]) -> bytes:
    try:
        return json.dumps({"state": state.value} | details()).encode() + b"\n"
    except Exception as error:
        message = f"cannot report the details: {type(error).__name__}: {error}"
        logger.warning("%s; the answer to the probe contains only the state", message, exc_info=error)
        return json.dumps({"state": state.value, "trouble": message}).encode() + b"\n"
