"""The forecasters under test: they are started, killed, stopped for a while, and restarted under the same name."""

import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Final

from pipeline.settings import Settings
from tests.chaos.forecaster_main import BROKE, GAVE_UP, Orders, run
from tests.chaos.gauge import POINTS, Gauge
from tests.chaos.transitions import walk

RESTART_S: Final = 0.2  # seconds from a death to the restart, as short as a supervisor's


@dataclass(frozen=True)
class Kill:
    """A SIGKILL of a forecaster."""

    at: float  # seconds since the epoch
    point: str  # a fault point, or "random"
    in_transaction: bool
    partitions: tuple[int, ...]  # partitions whose latest commit was the victim's


ENDED_AS_ASKED: Final = (0, -signal.SIGTERM)  # exit codes after SIGTERM; -SIGTERM before its handler is set


@dataclass
class Member:
    """One forecaster, through all its restarts."""

    name: str
    folder: Path
    gauge: Gauge
    process: ForkServerProcess | None = None
    wanted: bool = False
    dead_since: float | None = None
    resume_at: float | None = None  # seconds since the epoch; None unless the process is stopped
    away_until: float = 0.0  # seconds since the epoch; no restart before
    is_ending: bool = False  # whether SIGTERM was sent since the last start

    @property
    def is_running(self) -> bool:
        """Whether the process is alive and not stopped."""
        return self.process is not None and self.process.is_alive() and self.resume_at is None


@dataclass
class Fleet:
    """All forecasters. Call ``tend`` continually: it restarts and resumes them, and records their ends."""

    settings: Settings
    models: Path
    folder: Path
    names: Sequence[str]
    without: tuple[str, ...] = ()
    kills: list[Kill] = field(default_factory=list)
    stalls: int = 0
    restarts: int = 0
    given_up: Counter[str] = field(default_factory=Counter)  # error class -> number of ends with this error
    broken: list[str] = field(default_factory=list)  # last log lines of each forecaster that ended by a bug

    def __post_init__(self) -> None:
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.compiled_core", "tests.chaos.forecaster_main"])
        self.members = []
        for name in self.names:
            folder = self.folder / name
            folder.mkdir(parents=True)
            gauge = Gauge(folder / "gauge", self.settings.kafka.partitions)
            self.members.append(Member(name, folder, gauge))

    def want(self, count: int) -> None:
        """Keep the first ``count`` forecasters running, and send SIGTERM to the rest."""
        for index, member in enumerate(self.members):
            member.wanted = index < count
            if not member.wanted:
                self.ask_to_end(member)

    def running(self) -> list[Member]:
        """The forecasters that are alive and not stopped."""
        return [member for member in self.members if member.is_running]

    def tend(self) -> None:
        """Restart dead forecasters that should run, and resume stopped ones whose time is over."""
        now = time.time()
        for member in self.members:
            if member.resume_at is not None and now >= member.resume_at:
                self.resume(member)
            if member.process is not None and not member.process.is_alive():
                self._bury(member)
            if self._is_due(member, now):
                self._start(member)

    def kill(self, member: Member) -> None:
        """Send SIGKILL from outside, wherever the forecaster's loop is."""
        member.gauge.disarm()
        self._signal(member, signal.SIGKILL)
        if member.process is not None:
            member.process.join(10)
        self.tend()

    def stop_for(self, member: Member, seconds: float) -> None:
        """Send SIGSTOP now, and SIGCONT after ``seconds``. The member may have stopped itself already."""
        self._signal(member, signal.SIGSTOP)
        member.resume_at = time.time() + seconds
        self.stalls += 1

    def resume(self, member: Member) -> None:
        """Send SIGCONT."""
        member.resume_at = None
        self._signal(member, signal.SIGCONT)

    def ask_to_end(self, member: Member, away_s: float = 0.0) -> None:
        """Send SIGTERM; if the member should run, ``tend`` restarts it after ``away_s`` seconds."""
        member.away_until = time.time() + away_s
        member.is_ending = True
        if member.resume_at is not None:
            self.resume(member)
        self._signal(member, signal.SIGTERM)

    def passings(self) -> Counter[str]:
        """How often the forecasters passed each fault point, in total."""
        total: Counter[str] = Counter()
        for member in self.members:
            total.update(member.gauge.passings())
        return total

    def transitions(self) -> tuple[Counter[str], list[str]]:
        """Counts of the transitions that all forecasters logged, and the logged ones that are not allowed."""
        counts: Counter[str] = Counter()
        wrong: list[str] = []
        for member in self.members:
            log = member.folder / "log"
            found, not_allowed = walk(log.read_text(errors="replace") if log.exists() else "")
            counts += found
            wrong += [f"{member.name}: {transition}" for transition in not_allowed]
        return counts, wrong

    def killed_at(self) -> dict[str, int]:
        """Fault point, or "random" -> number of kills there."""
        counts = Counter(kill.point for kill in self.kills)
        return {point: counts[point] for point in ("random", *POINTS)}

    def end(self, timeout_s: float) -> bool:
        """Send SIGTERM to all; return whether each process ended in time with a code in ``ENDED_AS_ASKED``."""
        processes = [member.process for member in self.members if member.process is not None]
        self.want(0)
        deadline = time.monotonic() + timeout_s
        for process in processes:
            process.join(max(0.1, deadline - time.monotonic()))
        in_time = not any(process.is_alive() for process in processes)
        for process in processes:
            if process.is_alive():
                process.kill()
        return in_time and all(process.exitcode in ENDED_AS_ASKED for process in processes)

    def _is_due(self, member: Member, now: float) -> bool:
        is_gone = member.process is None and now - (member.dead_since or 0.0) > RESTART_S
        return is_gone and member.wanted and now >= member.away_until

    def _start(self, member: Member) -> None:
        orders = Orders(self.settings, member.name, self.models, member.folder, self.without)
        process = self._context.Process(target=run, args=(orders,), name=member.name, daemon=True)
        process.start()
        member.process = process
        member.dead_since = None
        member.is_ending = False
        self.restarts += 1

    def _bury(self, member: Member) -> None:
        assert member.process is not None
        code = member.process.exitcode
        member.process.join()
        member.process = None
        member.dead_since = time.time()
        member.resume_at = None
        if code == -signal.SIGKILL:
            # An armed point stays armed if the process dies elsewhere, so only ``fired_at`` says where it died.
            point = member.gauge.fired_at or "random"
            self.kills.append(Kill(time.time(), point, member.gauge.in_transaction, self._partitions_of(member)))
        elif code == GAVE_UP:
            self.given_up[_last_error(member).partition(":")[0]] += 1
        elif not (code == 0 or (member.is_ending and code in ENDED_AS_ASKED)):
            watchdog = code != BROKE and _last_error(member)
            if watchdog:
                self.given_up["watchdog"] += 1
            else:
                self.broken.append(f"{member.name} ended with exit code {code}: {_tail(member)}")

    def _partitions_of(self, member: Member) -> tuple[int, ...]:
        """The partitions whose latest commit was this member's."""
        mine = member.gauge.commits()
        others = [other.gauge.commits() for other in self.members if other is not member]
        return tuple(
            partition for partition, at in enumerate(mine) if at and all(at > commits[partition] for commits in others)
        )

    def _signal(self, member: Member, number: signal.Signals) -> None:
        process = member.process
        if process is not None and process.pid is not None and process.is_alive():
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)


def _tail(member: Member) -> str:
    return "\n".join((member.folder / "log").read_text(errors="replace").splitlines()[-12:])


def _last_error(member: Member) -> str:
    """The kind of error in the log's last error line: ``Fenced: …``."""
    lines = (member.folder / "log").read_text(errors="replace").splitlines()
    return next((line.removeprefix("error: ") for line in reversed(lines[-40:]) if line.startswith("error: ")), "")
