"""What a forecaster tells of itself: its counts, and the health endpoint.

What a forecaster has done since it started: one line in the log every so often, and a JSON file for who wants it.

Answers over HTTP how a forecaster is, for Kubernetes' probes and for people.

``GET /healthz`` answers 200 unless the forecaster is stuck (503: start it again), ``GET /readyz`` answers 200 only
while it serves, and both carry the same JSON.
"""

import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from pipeline.errors import StreamgruError
from pipeline.forecaster.rebuild import RebuildReport
from pipeline.forecaster.stuck_detection import ForecasterState, HealthMonitor, Heartbeat
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.forecaster")

REPORT_INTERVAL_S: Final = 10.0


@dataclass
class Counters:
    """Counts since the start, and ``held``: now. Only what was committed counts, except ``aborted``."""

    readings: int = 0  # records of the readings topic, whatever became of them
    accepted: int = 0
    duplicates: int = 0
    late: int = 0
    held: int = 0  # readings that wait for earlier ones; each counts as accepted once it is stepped
    # Offsets from the first held reading on that retention had deleted at a restore: so many held readings at most, and
    # one at least, got no forecast.
    held_lost: int = 0
    ignored_features: int = 0
    dead_letters: Counter[str] = field(default_factory=Counter)  # by reason
    forecasts: int = 0
    transactions: int = 0
    aborted: int = 0
    swaps: int = 0
    swap_pause_s: float = 0.0  # of the last swap: how long no batch was processed
    restored_sensors: int = 0
    rebuilt_sensors: int = 0
    cold_sensors: int = 0
    quarantined_states: int = 0  # with a number that was not finite, in memory
    restore_s: float = 0.0  # of the last restore
    model_version: int | None = None
    started: float = field(default_factory=time.monotonic)

    def add(self, batch: "Counters") -> None:
        """Take in the counts of a batch that was committed."""
        for name in ("readings", "accepted", "duplicates", "late", "ignored_features", "forecasts", "transactions"):
            setattr(self, name, getattr(self, name) + getattr(batch, name))
        self.dead_letters = self.dead_letters + batch.dead_letters  # another thread may be reading the one before

    def count_restored(self, sensors: int, rebuilt: RebuildReport, held_lost: int, seconds: float) -> None:
        """Take in what restoring partitions came to."""
        self.restored_sensors += sensors
        self.rebuilt_sensors += rebuilt.sensors
        self.cold_sensors += len(rebuilt.cold)
        self.held_lost += held_lost
        self.restore_s = seconds

    def line(self) -> str:
        """All counts, as ``name=value``."""
        content = self.content()
        letters = content.pop("dead_letters")
        content["dead_letters"] = sum(letters.values())
        content |= {f"dead_letters.{reason}": count for reason, count in sorted(letters.items())}
        return " ".join(f"{name}={value}" for name, value in content.items())

    def write(self, path: Path) -> None:
        """Replace the file with the counts as JSON, whole or not at all."""
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(self.content()) + "\n", encoding="utf-8")
        partial.replace(path)

    def content(self) -> dict[str, Any]:
        """All counts by name, ready for JSON; seconds since the start instead of its time."""
        # Not dataclasses.asdict: it rebuilds a Counter from pairs, and JSON has no keys that are tuples.
        content = vars(self) | {"dead_letters": dict(self.dead_letters)}
        content["uptime_s"] = round(time.monotonic() - content.pop("started"), 1)
        for name in ("swap_pause_s", "restore_s"):
            content[name] = round(content[name], 3)
        return content


class Reporter:
    """Logs the counters, and writes them to a file if there is one. Never raises: the stream does not depend on it.

    Args:
        path: of the file, replaced at each report.
    """

    def __init__(self, counters: Counters, path: Path | None) -> None:
        self._counters = counters
        self._path = path
        self._due_at = time.monotonic() + REPORT_INTERVAL_S
        self._has_failed = False  # the last report did: only the first failure of a series is logged

    def report_if_due(self) -> None:
        """``report``, every ``REPORT_INTERVAL_S``."""
        if time.monotonic() >= self._due_at:
            self.report()
            self._due_at = time.monotonic() + REPORT_INTERVAL_S

    def report(self) -> None:
        """Log and write the present counts."""
        try:
            logger.info("counts: %s", self._counters.line())
            if self._path is not None:
                self._counters.write(self._path)
            self._has_failed = False
        except OSError as error:
            self._fail(f"cannot write the counts to {self._path}: {error.strerror}")
        except Exception as error:
            logger.debug("the report failed", exc_info=error)
            self._fail(f"cannot report the counts: {type(error).__name__}: {error}")

    def _fail(self, message: str) -> None:
        if not self._has_failed:
            logger.warning("%s; forecasting continues", message)
        self._has_failed = True


# --- the health endpoint ----------------------------------------------------------------------------------------------


def state_of(monitor: HealthMonitor | None) -> ForecasterState:
    """The forecaster's state; ``monitor`` is None until the forecaster has connected."""
    return ForecasterState.STARTING if monitor is None else monitor.state


def health_report(heartbeat: Heartbeat, monitor: HealthMonitor | None, counters: Counters) -> dict[str, Any]:
    """The details that both paths add to the state."""
    now = time.monotonic()
    return {
        "trouble": "" if monitor is None else monitor.trouble,
        "since_poll_s": None if heartbeat.polled is None else round(now - heartbeat.polled, 3),
        "since_commit_s": None if heartbeat.committed is None else round(now - heartbeat.committed, 3),
        "lag": {} if monitor is None else {str(number): lag for number, lag in monitor.lag.items()},
        "sensors": heartbeat.sensors,
        "model_version": counters.model_version,
        "counters": counters.content(),
    }


class HealthServer:
    """Answers probes until ``close``.

    The status code depends on ``state`` alone: an error in ``details`` is logged and named in the answer, and a healthy
    forecaster stays healthy.

    Args:
        state: the forecaster's state.
        details: further keys of the answer, ready for JSON.

    Raises:
        StreamgruError: the port cannot be had.
    """

    def __init__(
        self, host: str, port: int, state: Callable[[], ForecasterState], details: Callable[[], dict[str, Any]]
    ) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = 5  # seconds: whoever connects and says nothing holds a thread no longer

            def do_GET(self) -> None:
                if self.path not in ("/healthz", "/readyz"):
                    self.send_error(404, "there are /healthz and /readyz")
                    return
                now = state()
                good = now is ForecasterState.SERVING if self.path == "/readyz" else now is not ForecasterState.STUCK
                body = _answer(now, details)
                self.send_response(200 if good else 503)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """A probe every few seconds would bury the log."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise StreamgruError(
                f"the health endpoint cannot listen on {host}:{port}: {error.strerror or error}; choose another port "
                "(--health-port, forecaster.health_port)"
            ) from error
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="health", daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def answering_probes(
    settings: Settings, port: int | None, state: Callable[[], ForecasterState], details: Callable[[], dict[str, Any]]
) -> Iterator[None]:
    """A ``HealthServer`` at the port given here or in the settings; no server if neither names one."""
    host, port = settings.forecaster.health_host, port or settings.forecaster.health_port
    if port is None:
        yield
        return
    with closing(HealthServer(host, port, state, details)):
        logger.info("http://%s:%d/healthz and /readyz say how this forecaster is", host, port)
        yield


def _answer(state: ForecasterState, details: Callable[[], dict[str, Any]]) -> bytes:
    try:
        return json.dumps({"state": state.value} | details()).encode() + b"\n"
    except Exception as error:
        message = f"cannot report the details: {type(error).__name__}: {error}"
        logger.warning("%s; the probe is answered by the state alone", message, exc_info=error)
        return json.dumps({"state": state.value, "trouble": message}).encode() + b"\n"
