"""The demo's processes, each a `streamgru` command as a user would type it, and the home folder that they share."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.errors import StackError, StreamgruError
from pipeline.file_lock import hold_lock

TERMINATE_TIMEOUT_S: Final = 15.0  # time from SIGTERM to SIGKILL; a forecaster ends within 5 s
_POLL_S: Final = 0.2
_LAST_LINES: Final = 15
_MARK: Final = "demo"  # folder that marks a demo's home


@dataclass(frozen=True)
class Child:
    """A `streamgru` command that runs, or ran, in a process of its own."""

    arguments: tuple[str, ...]
    process: "subprocess.Popen[bytes]"
    output: Path  # standard output of the command
    log: Path  # standard error of the command

    @property
    def command(self) -> str:
        """The command as a user would type it."""
        return " ".join(("streamgru", *self.arguments))

    def is_running(self) -> bool:
        """Whether the command still runs."""
        return self.process.poll() is None

    def doing(self) -> str:
        """The newest line of the command's log."""
        return _last_line(self.log)

    def result(self) -> str:
        """The last line that the command printed."""
        return _last_line(self.output)

    def require_success(self, limit_s: float | None = None) -> None:
        """Wait until the command has ended.

        Raises:
            StreamgruError: the exit code is not 0, or the command did not end within ``limit_s``; names the log.
        """
        try:
            code = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise StreamgruError(f"`{self.command}` did not end within {limit_s:g} s; its log is {self.log}") from None
        if code:
            end = "\n".join(f"    {line}" for line in _lines(self.log)[-_LAST_LINES:])
            raise StreamgruError(
                f"`{self.command}` ended with exit code {code}. The end of its log, {self.log}:\n{end}"
            )


class Children:
    """Starts commands; ``stop`` ends them, and so does the death of this process."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._started: list[Child] = []
        self._is_stopping = False

    def start(self, name: str, *arguments: str) -> Child:
        """Start a command; its output and log go to files with this ``name``."""
        self._logs.mkdir(parents=True, exist_ok=True)
        output, log = self._logs / f"{name}.out", self._logs / f"{name}.log"
        with output.open("wb") as to_output, log.open("wb") as to_log:
            process = subprocess.Popen(
                [sys.executable, "-m", "deploy.cli", "--ends-with-parent", *arguments],
                stdin=subprocess.PIPE,  # only this process holds the other end: when it dies, the child ends
                stdout=to_output,
                stderr=to_log,
                start_new_session=True,  # Ctrl-C reaches only the demo, which then stops its children
            )
        child = Child(arguments, process, output, log)
        self._started.append(child)
        if self._is_stopping:  # by another thread, which does not know this child
            process.kill()
            raise StreamgruError(f"`{child.command}` was not run: the demo is being stopped")
        return child

    def run(self, name: str, *arguments: str, tell: Callable[[str], None]) -> Child:
        """Run a command to its end, and pass the newest line of its log to ``tell`` meanwhile.

        Raises:
            StreamgruError: the command failed.
        """
        child = self.start(name, *arguments)
        while child.is_running():
            tell(child.doing())
            time.sleep(_POLL_S)
        child.require_success()
        return child

    def require_running(self, children: Sequence[Child]) -> None:
        """Check that these commands still run.

        Raises:
            StreamgruError: a command has ended; names its log.
        """
        for child in children:
            if not child.is_running():
                child.require_success()
                raise StreamgruError(f"`{child.command}` ended too early; its log is {child.log}")

    def stop(self) -> None:
        """End all commands by SIGTERM, then by SIGKILL; return when all have ended."""
        self._is_stopping = True
        running = [child for child in self._started if child.is_running()]
        for child in running:
            child.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + TERMINATE_TIMEOUT_S
        for child in running:
            try:
                child.process.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()


def _lines(path: Path) -> list[str]:
    # progress bars end their updates with carriage returns
    text = path.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    return [line for line in text.splitlines() if line.strip()]


def _last_line(path: Path) -> str:
    return next(reversed(_lines(path)), "")


@contextmanager
def hold_home(home: Path) -> Iterator[None]:
    """Lock the demo's home against another demo.

    Raises:
        Busy: another demo runs there.
        SettingsError: the lock file next to the folder cannot be written.
        StackError: the folder holds files that are not from a demo.
    """
    with hold_lock(home.with_name(f"{home.name}.lock"), f"another demo runs in {home}"):
        if home.exists() and any(home.iterdir()) and not (home / _MARK).is_dir():
            raise StackError(f"{home} holds files that are not from a demo: choose another folder with STREAMGRU_HOME")
        (home / _MARK).mkdir(parents=True, exist_ok=True)
        yield


def cleared_folder(home: Path) -> Path:
    """Delete the files of an earlier demo, and return the folder for the demo's own files."""
    shutil.rmtree(home)
    mark = home / _MARK
    mark.mkdir(parents=True)
    return mark
