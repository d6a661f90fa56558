"""Processes that outlive the command that started them, found again through a record on disk."""

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from pipeline.errors import StackError

TERMINATE_TIMEOUT_S = 20.0
KILL_TIMEOUT_S = 5.0
# A process whose main thread has ended may take a moment to hand over its exit code.
EXIT_CODE_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class ProcessRecord:
    """What is kept on disk of a started process: enough to tell it from another one on the same id."""

    pid: int
    started: float
    port: int


class DetachedProcess:
    """One named process in a session of its own, with its record in ``HOME/run`` and its output in ``HOME/logs``.

    The log is that of the last start; the one before it is kept beside it.
    """

    def __init__(self, name: str, home: Path) -> None:
        self.name = name
        self.log_path = home / "logs" / f"{name}.log"
        self.record_path = home / "run" / f"{name}.json"
        self._child: subprocess.Popen[bytes] | None = None

    def start(self, command: Sequence[str], environment: Mapping[str, str], port: int) -> None:
        """Start ``command``, detached from this terminal, its output in a fresh log.

        Raises:
            StackError: the program does not run at all, or its log or record cannot be written.
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
                    # Ctrl-C in this terminal must not reach it; and its workers, in its session, are found by that.
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
        """What was last started and not yet stopped, running or not."""
        try:
            return ProcessRecord(**json.loads(self.record_path.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, TypeError) as error:
            raise StackError(
                f"{self.record_path} does not say which process {self.name} is ({error}). "
                f"If {self.name} still runs, stop it by hand; then delete the file."
            ) from error

    def running(self) -> ProcessRecord | None:
        """The record, if the process it names is alive; a stranger on a reused process id is not."""
        record = self.record()
        return record if record is not None and _leader(record) is not None else None

    def exit_code(self) -> int | None:
        """How the process ended, where this very process started it and it has ended."""
        if self._child is not None:
            with suppress(subprocess.TimeoutExpired):
                return self._child.wait(EXIT_CODE_TIMEOUT_S)
        return None

    def stop(self) -> bool:
        """End the process and all its workers, politely, then by force. Returns whether anything was alive.

        Raises:
            StackError: something survived SIGKILL.
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
            # Anew, for what was started meanwhile.
            alive = _members(record)
            if not alive:
                break
        else:
            pids = ", ".join(str(process.pid) for process in alive)
            raise StackError(f"{self.name} does not end, not even by SIGKILL (process {pids}).")
        self.exit_code()  # collects a child of this process, which would else stay a zombie
        self.record_path.unlink(missing_ok=True)
        return bool(members)

    def last_lines(self, count: int = 12) -> str:
        """The end of its log, indented, for an error message; the frames of stack traces stay in the log."""
        try:
            lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        telling = [line for line in lines if line.strip() and not line[0].isspace()]
        return "\n".join(f"    {line}" for line in telling[-count:])


def _started(process: psutil.Process) -> float:
    """When the process started: together with its id, what tells it from any other.

    On Linux in clock ticks since boot: psutil makes a time of day of these, which moves when the clock is adjusted.
    """
    stat = Path(f"/proc/{process.pid}/stat")
    if not stat.exists():
        return process.create_time()
    try:
        # The program's name, in parentheses, may hold anything; field 22 is counted from behind it.
        return float(stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError) as error:
        raise psutil.NoSuchProcess(process.pid) from error


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _leader(record: ProcessRecord) -> psutil.Process | None:
    """The process that the record names, unless it has ended or its id belongs to another by now."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(record.pid)
        if _started(process) == record.started and _is_alive(process):
            return process
    return None


def _members(record: ProcessRecord) -> list[psutil.Process]:
    """The process, its descendants, and what is left of its session where it has itself ended."""
    found: set[psutil.Process] = set()
    with suppress(psutil.NoSuchProcess):
        leader = psutil.Process(record.pid)
        if _started(leader) != record.started:
            return []  # an id is given out again only when nothing is left of the session that had its name
        found = {leader, *leader.children(recursive=True)}
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == record.pid:
                found.add(process)
    return [process for process in found if _is_alive(process)]
