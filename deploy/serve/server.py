"""Runs ``streamgru serve``: the threads that follow the stream, and the HTTP server."""

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Final

import uvicorn
from starlette.applications import Starlette
from starlette.responses import Response

from deploy.serve import answers
from deploy.serve.application import make_application
from deploy.serve.event_hub import EventHub
from deploy.serve.metrics import ServeMetrics
from deploy.serve.registry_report import RegistryReports
from deploy.serve.routes import Backend
from pipeline.errors import StreamgruError
from pipeline.live.follower import Follower
from pipeline.live.lag_watch import LagWatch
from pipeline.live.record_reader import RecordReaders
from pipeline.live.sensor_history import HistoryReader
from pipeline.live.view import FOLLOWER, LAG_WATCH, LiveView
from pipeline.observability.exposition import Exposition
from pipeline.settings import Settings
from pipeline.settings.serve import ServeSettings

logger = logging.getLogger("streamgru.serve")

_GRACE_S: Final = 1  # for answers in progress, once the process is told to end
_SWITCH_S: Final = 0.001  # between threads; at Python's 5 ms an answer waits for whole polls
_UNFINISHED: Final = "without completing response"
_NICE: Final = 10  # forecasters on the same machine come first


class ServeProcess:
    """Everything that ``streamgru serve`` runs."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.view = LiveView(settings, time.time)
        self._hub = EventHub(settings, self.view)
        self._readers = RecordReaders(settings)
        self._registry = RegistryReports(settings)
        self._follower = Follower(settings, self.view, self._hub.publish_from_thread, self._readers.forget)
        self._lag_watch = LagWatch(settings, self.view)
        self._exposition = Exposition("serve", ServeMetrics(settings, self.view, self._hub))
        self._failure = ""  # of a thread, which ends the health

    def run(self, listening: Callable[[str], None]) -> None:
        """Serve until SIGTERM or Ctrl-C.

        Args:
            listening: called with the page's address once the server listens.

        Raises:
            StreamgruError: the address cannot be bound.
        """
        # The server says so for each browser that was too slow; its connection is closed on purpose.
        logging.getLogger("uvicorn.error").addFilter(lambda record: _UNFINISHED not in record.getMessage())
        sys.setswitchinterval(_SWITCH_S)
        os.nice(_NICE)
        serve = self._settings.serve
        config = uvicorn.Config(
            self.application(),
            host=serve.host,
            port=serve.port,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=_GRACE_S,
            limit_concurrency=serve.most_streams + 200,
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            # The server raises the signal once more after it has ended.
            signal.signal(number, lambda *_: None)
        with closing(_bind(serve)) as listener:
            asyncio.run(_Server(config, self._hub, lambda: self._start(listening)).run_on(listener))
        self._stop()

    def application(self) -> Starlette:
        """The ASGI application."""
        histories = HistoryReader(self._settings, self._readers)
        backend = Backend(self._settings, self.view, self._hub, self._readers, histories, self._registry)
        return make_application(backend, self._healthy, self._ready, self._metrics)

    def _start(self, listening: Callable[[str], None]) -> None:
        for name, work in (
            (FOLLOWER, self._follower.run),
            (LAG_WATCH, self._lag_watch.run),
            ("registry", self._registry.run),
        ):
            threading.Thread(target=self._guarded, args=(name, work), name=name, daemon=True).start()
        listening(_address(self._settings))

    def _guarded(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            logger.exception("the thread %s has ended", name)
            self._failure = f"the thread {name} has ended with {type(error).__name__}: {error}. Restart the process"
            self.view.broker_failed(name, self._failure)

    def _stop(self) -> None:
        self._follower.stop()
        self._lag_watch.stop()
        self._registry.stop()

    def _healthy(self) -> tuple[int, answers.Health]:
        return 503 if self._failure else 200, self._health()

    def _ready(self) -> tuple[int, answers.Health]:
        found = self._health()
        return 200 if found.state == "ready" else 503, found

    def _health(self) -> answers.Health:
        view = self.view
        if self._failure:
            return answers.Health("failed", self._failure)
        if view.stale_since_ms is not None:
            return answers.Health("stale", view.trouble or "no broker has answered")
        return answers.Health("catching-up" if view.catch_up is not None else "ready", view.trouble)

    def _metrics(self, accept: str) -> Response:
        page = self._exposition.render(accept)
        return Response(page.body, page.status, {"Content-Type": page.content_type})


class _Server(uvicorn.Server):
    """A server that ends its event streams before it waits for its connections."""

    def __init__(self, config: uvicorn.Config, hub: EventHub, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._hub = hub
        self._listening = started

    async def run_on(self, listener: socket.socket) -> None:
        """Serve on a bound socket until SIGTERM or Ctrl-C."""
        ticking = asyncio.create_task(self._hub.run())
        try:
            await self.serve(sockets=[listener])
        finally:
            ticking.cancel()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then start the threads."""
        await super().startup(sockets)
        self._listening()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams, then the server."""
        self._hub.close()
        await super().shutdown(sockets)


def _bind(serve: ServeSettings) -> socket.socket:
    """A socket that listens.

    Raises:
        StreamgruError: the address is taken, or is not one of this machine.
    """
    try:
        family = socket.getaddrinfo(serve.host, serve.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((serve.host, serve.port), family=family)
    except OSError as error:
        raise StreamgruError(
            f"`streamgru serve` cannot listen on {serve.host}:{serve.port}: {error.strerror or error}. Choose another "
            "port (--port, serve.port or STREAMGRU_SERVE__PORT) or host (--host)"
        ) from error


def _address(settings: Settings) -> str:
    host = settings.serve.host
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{settings.serve.port}/"
