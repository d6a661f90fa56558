"""Answers over HTTP how a forecaster is, for Kubernetes' probes and for people.

``GET /healthz`` answers 200 unless the forecaster is stuck (503: start it again), ``GET /readyz`` answers 200 only
while it serves, and both carry the same JSON.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pipeline.errors import StreamgruError
from pipeline.forecaster.counters import Counters
from pipeline.forecaster.lookout import Lookout, Pulse, State
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.health")


def state_of(lookout: Lookout | None) -> State:
    """The forecaster's state; ``lookout`` is None until the forecaster has connected."""
    return State.STARTING if lookout is None else lookout.state


def describe(pulse: Pulse, lookout: Lookout | None, counters: Counters) -> dict[str, Any]:
    """The details that both paths add to the state."""
    now = time.monotonic()
    return {
        "trouble": "" if lookout is None else lookout.trouble,
        "since_poll_s": None if pulse.polled is None else round(now - pulse.polled, 3),
        "since_commit_s": None if pulse.committed is None else round(now - pulse.committed, 3),
        "lag": {} if lookout is None else {str(number): lag for number, lag in lookout.lag.items()},
        "sensors": pulse.sensors,
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

    def __init__(self, host: str, port: int, state: Callable[[], State], details: Callable[[], dict[str, Any]]) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = 5  # seconds: whoever connects and says nothing holds a thread no longer

            def do_GET(self) -> None:
                if self.path not in ("/healthz", "/readyz"):
                    self.send_error(404, "there are /healthz and /readyz")
                    return
                now = state()
                good = now is State.SERVING if self.path == "/readyz" else now is not State.STUCK
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
    settings: Settings, port: int | None, state: Callable[[], State], details: Callable[[], dict[str, Any]]
) -> Iterator[None]:
    """A ``HealthServer`` at the port given here or in the settings; no server if neither names one."""
    host, port = settings.forecaster.health_host, port or settings.forecaster.health_port
    if port is None:
        yield
        return
    with closing(HealthServer(host, port, state, details)):
        logger.info("http://%s:%d/healthz and /readyz say how this forecaster is", host, port)
        yield


def _answer(state: State, details: Callable[[], dict[str, Any]]) -> bytes:
    try:
        return json.dumps({"state": state.value} | details()).encode() + b"\n"
    except Exception as error:
        message = f"cannot report the details: {type(error).__name__}: {error}"
        logger.warning("%s; the probe is answered by the state alone", message, exc_info=error)
        return json.dumps({"state": state.value, "trouble": message}).encode() + b"\n"
