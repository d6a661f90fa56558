"""A running ``streamgru serve`` for tests and benchmarks, and a browser's side of its events."""

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.settings import Settings
from tests.environment import environment
from tests.waiting import wait_until

START_S = 60.0
LOG_LINES = 40  # shown when it does not become ready


class ServeCommand:
    """``streamgru serve`` in a process of its own; leaving the context kills it."""

    def __init__(self, settings: Settings, port: int, folder: Path) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self._not_ready = "not asked"  # why the last answer of /readyz was not 200
        self._log = folder / f"serve-{time.time_ns()}.log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "deploy.cli", "serve", "--port", str(port)],
                env=environment(settings),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def log(self) -> str:
        """Everything that the process has printed."""
        return self._log.read_text()

    def get(self, path: str, timeout_s: float = 10.0) -> bytes:
        """The body of an answer."""
        try:
            with urllib.request.urlopen(self.address + path, timeout=timeout_s) as answer:
                body: bytes = answer.read()
        except urllib.error.HTTPError as error:
            error.add_note(error.read().decode())
            raise
        return body

    def json(self, path: str) -> Any:
        """The JSON of an answer."""
        return json.loads(self.get(path))

    def wait_until_ready(self) -> Self:
        """Wait until the look back is read; a failure shows the last answer and the end of the log."""
        try:
            wait_until(self._is_ready, START_S, "`streamgru serve` is ready")
        except AssertionError as error:
            lines = self.log.splitlines()[-LOG_LINES:]
            error.add_note("\n".join([f"/readyz: {self._not_ready}", "the end of the log:", *lines]))
            raise
        return self

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, f"`streamgru serve` has ended with {self.process.returncode}"
        try:
            self.get("/readyz")
        except urllib.error.HTTPError as error:
            self._not_ready = " ".join([str(error), *error.__notes__])
            return False
        except OSError as error:
            self._not_ready = str(error)
            return False
        return True


@dataclass
class Browser:
    """Reads events in a thread, reconnects with the last id, and remembers everything that it was sent."""

    address: str
    path: str = "/api/events"
    last_id: str = ""
    events: list[tuple[str, Any]] = field(default_factory=list)  # name and data
    arrived_s: list[float] = field(default_factory=list)  # time of day of each event
    connections: int = 0
    _answer: Any = None
    _stopped: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, name="browser", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self.cut()
        self._thread.join(10)

    def cut(self) -> None:
        """Lose the connection."""
        answer = self._answer
        if answer is not None and answer.fp is not None:
            with suppress(OSError):
                answer.fp.raw._sock.shutdown(socket.SHUT_RDWR)

    def named(self, name: str) -> list[Any]:
        """The data of all events of a name."""
        return [data for of, data in self.events if of == name]

    @property
    def rows(self) -> list[tuple[int, int]]:
        """Partition and offset of every forecast, in order of arrival."""
        return [(row["partition"], row["offset"]) for data in self.named("forecasts") for row in data["rows"]]

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                headers = {"Last-Event-ID": self.last_id} if self.last_id else {}
                request = urllib.request.Request(self.address + self.path, headers=headers)
                with urllib.request.urlopen(request, timeout=15) as self._answer:
                    self.connections += 1
                    self._read()
            except (OSError, ValueError, AttributeError, http.client.HTTPException):
                self._stopped.wait(0.2)

    def _read(self) -> None:
        name, id_, data = "", "", ""
        for line in self._answer:
            text = line.decode().rstrip("\n")
            if text.startswith("id: "):
                id_ = text[4:]
            elif text.startswith("event: "):
                name = text[7:]
            elif text.startswith("data: "):
                data = text[6:]
            elif not text:
                # A browser takes over the id when the event is complete.
                self.last_id = id_ or self.last_id
                if data:
                    self.events.append((name, json.loads(data)))
                    self.arrived_s.append(time.time())
                name, id_, data = "", "", ""
