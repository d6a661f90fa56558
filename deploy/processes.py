"""Processes that outlive the command that started them; later commands find them through a record on disk."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from pipeline.errors import StackError

TERMINATE_TIMEOUT_S = 20.0
KILL_TIMEOUT_S = 5.0
_LAST_LINES = 12  # of a log, in an error message
EXIT_CODE_TIMEOUT_S = 2.0  # a process may end shortly after its main thread


@dataclass(frozen=True)
class ProcessRecord:
    """The record of a started process on disk; it tells the process from a later one with the same id."""

    pid: int
    started: float
    port: int


class DetachedProcess:
    """One named process in a session of its own, with its record in ``HOME/run`` and its output in ``HOME/logs``.

    Each start begins a new log and keeps the previous one next to it.
    """

    def __init__(self, name: str, home: Path) -> None:
        self.name = name
        self.log_path = home / "logs" / f"{name}.log"
        self.record_path = home / "run" / f"{name}.json"
        self._child: subprocess.Popen[bytes] | None = None

    def start(self, command: Sequence[str], environment: Mapping[str, str], port: int) -> None:
        """Start ``command``, detached from this terminal, with its output in a new log.

        Raises:
            StackError: the program cannot be run, or its log or record cannot be written.
        """
        try:
            self.log_path.parent.mkdir(parents=True, exist_ok=True)
            self.record_path.parent.mkdir(parents=True, exist_ok=True)
            if self.log_path.exists():
                self.log_path.replace(self.log_path.with_suffix(".previous.log"))
            with self.log_path.open("wb") as log:
                self._child = subprocess.Popen(
                    command,
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # Ctrl-C in this terminal must not reach it, and `stop` finds its workers by their session.
                    start_new_session=True,
                )
            record = ProcessRecord(self._child.pid, _started(psutil.Process(self._child.pid)), port)
            partial = self.record_path.with_suffix(".partial")
            partial.write_text(json.dumps(asdict(record)), encoding="utf-8")
            partial.replace(self.record_path)
        except OSError as error:
            if self._child is not None:
                self._child.kill()
            where = error.filename or self.log_path.parent.parent
            raise StackError(f"{self.name} cannot be started: {where}: {error.strerror or error}") from error

    def record(self) -> ProcessRecord | None:
        """The record of the last start, unless it was stopped; the process may have ended."""
        try:
            return ProcessRecord(**json.loads(self.record_path.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, TypeError) as error:
            raise StackError(
                f"{self.record_path} is not a valid record of the process of {self.name} ({error}). "
                f"If {self.name} still runs, stop it by hand; then delete the file."
            ) from error

    def running(self) -> ProcessRecord | None:
        """The record if its process is alive; another process that reuses the id does not count."""
        record = self.record()
        return record if record is not None and _leader(record) is not None else None

    def exit_code(self) -> int | None:
        """The exit code of the process; None if it runs or another process started it."""
        if self._child is not None:
            with suppress(subprocess.TimeoutExpired):
                return self._child.wait(EXIT_CODE_TIMEOUT_S)
        return None

    def stop(self) -> bool:
        """End the process and its workers by SIGTERM, then by SIGKILL. Returns whether any of them was alive.

        Raises:
            StackError: a process survived SIGKILL.
        """
        record = self.record()
        if record is None:
            return False
        alive = members = _members(record)
        for name, timeout_s in ((signal.SIGTERM, TERMINATE_TIMEOUT_S), (signal.SIGKILL, KILL_TIMEOUT_S)):
            for process in alive:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(name)
            psutil.wait_procs(alive, timeout=timeout_s)
            # Look again: new workers may have started in the meantime.
            alive = _members(record)
            if not alive:
                break
        else:
            pids = ", ".join(str(process.pid) for process in alive)
            raise StackError(f"{self.name} does not end, not even by SIGKILL (process {pids}).")
        self.exit_code()  # waits for a child of this process, which would otherwise stay a zombie
        self.record_path.unlink(missing_ok=True)
        return bool(members)

    def last_lines(self) -> str:
        """The end of the log for an error message, indented and without the frames of stack traces."""
        try:
            lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        telling = [line for line in lines if line.strip() and not line[0].isspace()]
        return "\n".join(f"    {line}" for line in telling[-_LAST_LINES:])


def _started(process: psutil.Process) -> float:
    """The start time of the process, which together with its id identifies it.

    On Linux in clock ticks since boot: psutil converts these to a time of day, which moves when the clock is adjusted.
    """
    stat = Path(f"/proc/{process.pid}/stat")
    if not stat.exists():
        return process.create_time()
    try:
        # Field 22. The program's name, in parentheses, may contain spaces, so count from the end of the name.
        return float(stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError) as error:
        raise psutil.NoSuchProcess(process.pid) from error


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _leader(record: ProcessRecord) -> psutil.Process | None:
    """The process of the record; None if it has ended, even if another process has its id."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(record.pid)
        if _started(process) == record.started and _is_alive(process):
            return process
    return None


def _members(record: ProcessRecord) -> list[psutil.Process]:
    """The live processes among the process, its descendants and the members of its session."""
    found: set[psutil.Process] = set()
    with suppress(psutil.NoSuchProcess):
        leader = psutil.Process(record.pid)
        if _started(leader) != record.started:
            return []  # the system reuses an id only after all processes of the session with that id have ended
        found = {leader, *leader.children(recursive=True)}
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == record.pid:
                found.add(process)
    return [process for process in found if _is_alive(process)]


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Raise KeyboardInterrupt also for SIGTERM and a closed terminal, so that a command cleans up as for Ctrl-C."""
    numbers = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, signal.default_int_handler) for number in numbers}  # nohup ignores SIGHUP
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
