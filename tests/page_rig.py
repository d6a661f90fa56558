"""A running page for tests and benchmarks: `streamgru serve` in a process, and the state that its page shows."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

import httpx

from pipeline.settings import Settings
from tests.browser import Tab
from tests.environment import environment
from tests.waiting import PATIENCE, wait_until

START_S = 20.0
# Notes each forecast event of the page as "partition:offset", in the order of arrival.
RECORD = """
window.heard = [];
document.addEventListener("streamgru:forecasts", (event) => {
  for (const row of event.detail.rows) window.heard.push(`${row.partition}:${row.offset}`);
});
"""


class ServeCommand:
    """A running ``streamgru serve``; ``kill`` and ``start`` may take turns, on the same port."""

    def __init__(self, settings: Settings, port: int, *options: str) -> None:
        self.address = f"http://127.0.0.1:{port}/"
        self._settings = settings
        self._command = [sys.executable, "-m", "deploy.cli", "serve", "--port", str(port), *options]
        self._log = settings.home / f"serve-{port}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process, and return once it has caught up with the topics."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, env=environment(self._settings), stdout=log, stderr=log)
        wait_until(self._is_ready, START_S, f"the page's server is ready, see {self._log}")

    def _is_ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"the page's server ended with {self._process.returncode}:\n{self.said}")
        try:
            return httpx.get(f"{self.address}readyz", timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def said(self) -> str:
        """The log of the process so far."""
        return self._log.read_text(errors="replace")

    def kill(self) -> None:
        """End the process by SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def serving(settings: Settings, port: int, *options: str) -> Iterator[ServeCommand]:
    """A page's server that has caught up; the context kills it."""
    command = ServeCommand(settings, port, *options)
    try:
        command.start()
        yield command
    finally:
        command.kill()


def sensor_address(base: str, sensor: str, **choices: str) -> str:
    """The address of a sensor's view."""
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in choices.items())
    return f"{base}#/sensor/{quote(sensor, safe='')}" + (f"?{query}" if query else "")


def wait_for_chart(tab: Tab, issued_at_ms: int, timeout_s: float = 10.0) -> None:
    """Wait until the chart's last reading has this time."""
    tab.wait_for(f"Number(document.querySelector('[data-shown]')?.dataset.shown) >= {issued_at_ms}", timeout_s)


def wait_for_state(tab: Tab, state: str, timeout_s: float, *, patience: float = PATIENCE) -> None:
    """Wait until the page says that it is ``live`` or ``stale``."""
    tab.wait_for(f"document.getElementById('pulse').dataset.state === '{state}'", timeout_s, patience=patience)
