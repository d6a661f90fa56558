"""The metrics of a forecaster: its counts since the start, and the health endpoint that publishes them.

``Reporter`` logs the counts in regular intervals and writes them to a JSON file if one is configured (--stats).
``HealthServer`` answers probes over HTTP. ``GET /healthz`` returns 200 unless the forecaster is stuck; restart it on
503. ``GET /readyz`` returns 200 only while it serves. Both return the state and the counts as JSON.
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
    """Counts of committed work since the start, except ``aborted``, and ``held``, which is the present number."""

    readings: int = 0  # records of the readings topic: accepted, duplicate, late or rejected
    accepted: int = 0
    duplicates: int = 0
    late: int = 0
    held: int = 0  # readings in the reorder buffers now; a reading counts as accepted once it is stepped
    # Offsets from the first buffered reading on that retention had deleted at a restore. Of the buffered readings, at
    # least one and at most this number got no forecast.
    held_lost: int = 0
    ignored_features: int = 0  # features in readings that the settings do not name
    dead_letters: Counter[str] = field(default_factory=Counter)  # reason -> dead letters
    implausible_times: dict[str, int] = field(default_factory=dict)  # sensor -> dead letters; the sensors with most
    forecasts: int = 0
    transactions: int = 0
    aborted: int = 0
    swaps: int = 0
    swap_pause_s: float = 0.0  # seconds without a forecast at the last model swap
    restored_sensors: int = 0
    rebuilt_sensors: int = 0
    cold_sensors: int = 0
    quarantined_states: int = 0  # non-finite states; they were discarded
    restore_s: float = 0.0  # seconds of the last restore
    model_version: int | None = None
    started: float = field(default_factory=time.monotonic)  # monotonic seconds

    def add(self, batch: "Counters") -> None:
        """Add the counts of a committed batch."""
        for name in ("readings", "accepted", "duplicates", "late", "ignored_features", "forecasts", "transactions"):
            setattr(self, name, getattr(self, name) + getattr(batch, name))
        self.dead_letters = self.dead_letters + batch.dead_letters  # replaced, since the health server may iterate it

    def count_restored(self, sensors: int, rebuilt: RebuildReport, held_lost: int, seconds: float) -> None:
        """Add the counts of a finished restore."""
        self.restored_sensors += sensors
        self.rebuilt_sensors += rebuilt.sensors
        self.cold_sensors += len(rebuilt.cold)
        self.held_lost += held_lost
        self.restore_s = seconds

    def line(self) -> str:
        """All counts, as ``name=value``."""
        content = self.content()
        letters = content.pop("dead_letters")
        content.pop("implausible_times")  # ``TimeAlarms`` logs the sensors
        content["dead_letters"] = self.dead_letters.total()
        content |= {f"dead_letters.{reason}": count for reason, count in sorted(letters.items())}
        return " ".join(f"{name}={value}" for name, value in content.items())

    def write(self, path: Path) -> None:
        """Replace the file with the counts as JSON; after a crash it has the old or the new content, complete."""
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(self.content()) + "\n", encoding="utf-8")
        partial.replace(path)

    def content(self) -> dict[str, Any]:
        """All counts by name, ready for JSON, with the uptime in place of the start."""
        # dataclasses.asdict would rebuild the Counter from pairs, with tuples as keys, which JSON does not have.
        content = vars(self) | {"dead_letters": dict(self.dead_letters)}
        content["uptime_s"] = round(time.monotonic() - content.pop("started"), 1)
        for name in ("swap_pause_s", "restore_s"):
            content[name] = round(content[name], 3)
        return content


class Reporter:
    """Logs the counters and writes them to a file, if one is given. An error is logged, never raised.

    Args:
        path: the file, replaced by each report.
    """

    def __init__(self, counters: Counters, path: Path | None) -> None:
        self._counters = counters
        self._path = path
        self._due_at = time.monotonic() + REPORT_INTERVAL_S
        self._has_failed = False  # whether the last report failed; only the first failure of a series is logged

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
            logger.debug("cannot report the counts", exc_info=error)
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


class HealthServer:
    """Answers probes over HTTP until ``close``.

    The status code depends on ``state`` alone. An error in ``details`` is logged and returned as ``trouble``.

    Args:
        state: the forecaster's state.
        details: further keys of the answer, ready for JSON.

    Raises:
        StreamgruError: the address cannot be bound.
    """

    def __init__(
        self, host: str, port: int, state: Callable[[], ForecasterState], details: Callable[[], dict[str, Any]]
    ) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = 5  # seconds; a client that connects and sends nothing would block a thread for ever

            def do_GET(self) -> None:
                if self.path not in ("/healthz", "/readyz"):
                    self.send_error(404, "the paths are /healthz and /readyz")
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
                """Log no requests: probes arrive every few seconds."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise StreamgruError(
                f"the health endpoint cannot listen on {host}:{port}: {error.strerror or error}. Choose another port "
                "(--health-port or the setting forecaster.health_port)"
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
    """Run a ``HealthServer`` at ``port``, by default the port in the settings; without a port there is no server."""
    host, port = settings.forecaster.health_host, port or settings.forecaster.health_port
    if port is None:
        yield
        return
    with closing(HealthServer(host, port, state, details)):
        logger.info("the health endpoint listens at http://%s:%d/healthz and /readyz", host, port)
        yield


def _answer(state: ForecasterState, details: Callable[[], dict[str, Any]]) -> bytes:
    try:
        return json.dumps({"state": state.value} | details()).encode() + b"\n"
    except Exception as error:
        message = f"cannot report the details: {type(error).__name__}: {error}"
        logger.warning("%s; the answer to the probe contains only the state", message, exc_info=error)
        return json.dumps({"state": state.value, "trouble": message}).encode() + b"\n"
