"""The HTTP server on a health port: probes and metrics of a process, answered by threads beside its work."""

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from pipeline.errors import StreamgruError
from pipeline.observability.exposition import Exposition, Page

logger = logging.getLogger("streamgru.health")

JSON: Final = "application/json"

Paths = Mapping[str, Callable[[str], Page]]  # path -> its answer to the header Accept


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log the error instead of printing a traceback: a warning, unless the client closed its connection."""
        error = sys.exception()
        level = logging.DEBUG if isinstance(error, OSError) else logging.WARNING
        logger.log(level, "a request from %s failed: %s: %s", client_address[0], type(error).__name__, error)


class HealthServer:
    """Answers ``GET`` on the given paths until ``close``.

    Args:
        paths: the answers; each is called in the thread of its request, and does not raise.
        setting: the setting and option of the port, for the message.

    Raises:
        StreamgruError: the address cannot be bound.
    """

    def __init__(self, host: str, port: int, paths: Paths, setting: str) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = 5  # seconds; a client that connects and sends nothing would block a thread for ever

            def do_GET(self) -> None:
                answer = paths.get(self.path.partition("?")[0])
                if answer is None:
                    self.send_error(404, f"the paths are {', '.join(paths)}")
                    return
                page = answer(self.headers.get("Accept", ""))
                self.send_response(page.status)
                self.send_header("Content-Type", page.content_type)
                self.send_header("Content-Length", str(len(page.body)))
                self.end_headers()
                self.wfile.write(page.body)

            def log_message(self, format: str, *args: object) -> None:
                """Log no requests: probes arrive every few seconds."""

        try:
            self._server = _Server((host, port), Handler)
        except OSError as error:
            raise StreamgruError(
                f"the health endpoint cannot listen on {host}:{port}: {error.strerror or error}. Choose another port "
                f"({setting})"
            ) from error
        threading.Thread(target=self._server.serve_forever, name="health", daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def listening(host: str, port: int | None, paths: Paths, setting: str) -> Iterator[None]:
    """Run a ``HealthServer``; without a port there is no server."""
    if port is None:
        yield
        return
    with closing(HealthServer(host, port, paths, setting)):
        logger.info("the health endpoint listens at http://%s:%d, paths %s", host, port, ", ".join(paths))
        yield


def metrics_path(exposition: Exposition) -> Paths:
    """``GET /metrics``."""
    return {"/metrics": exposition.render}
