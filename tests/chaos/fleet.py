"""The forecasters under test: started, killed, stopped for a while, and started again by the same name."""

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

RESTART_S: Final = 0.2  # as a supervisor would take, at its quickest


@dataclass(frozen=True)
class Kill:
    """A SIGKILL of a forecaster."""

    at: float  # seconds since the epoch
    point: str  # a fault point, or "random"
    in_transaction: bool
    partitions: tuple[int, ...]  # that it committed last of all


ENDED_AS_ASKED: Final = (0, -signal.SIGTERM)  # the latter before it had begun to listen


@dataclass
class Member:
    """One forecaster, through all its restarts."""

    name: str
    folder: Path
    gauge: Gauge
    process: ForkServerProcess | None = None
    wanted: bool = False
    dead_since: float | None = None
    resume_at: float | None = None  # while it is stopped
    away_until: float = 0.0  # it is not started again before
    is_ending: bool = False  # it was asked to end since it was started

    @property
    def is_running(self) -> bool:
        """Whether it is alive and not stopped."""
        return self.process is not None and self.process.is_alive() and self.resume_at is None


@dataclass
class Fleet:
    """All forecasters. ``tend`` must be called again and again: it restarts, resumes and keeps the record."""

    settings: Settings
    models: Path
    folder: Path
    names: Sequence[str]
    without: tuple[str, ...] = ()
    kills: list[Kill] = field(default_factory=list)
    stalls: int = 0
    restarts: int = 0
    given_up: Counter[str] = field(default_factory=Counter)  # ends by an error message, by its kind
    broken: list[str] = field(default_factory=list)  # ends by a bug

    def __post_init__(self) -> None:
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.chaos.forecaster_main", "tests.compiled_core"])
        self.members = []
        for name in self.names:
            folder = self.folder / name
            folder.mkdir(parents=True)
            gauge = Gauge(folder / "gauge", self.settings.kafka.partitions)
            self.members.append(Member(name, folder, gauge))

    def want(self, count: int) -> None:
        """Have so many forecasters run from now on; others are asked to end."""
        for index, member in enumerate(self.members):
            member.wanted = index < count
            if not member.wanted:
                self.ask_to_end(member)

    def running(self) -> list[Member]:
        """Those alive and not stopped."""
        return [member for member in self.members if member.is_running]

    def tend(self) -> None:
        """Restart the dead ones that are wanted, and resume what was stopped long enough."""
        now = time.time()
        for member in self.members:
            if member.resume_at is not None and now >= member.resume_at:
                self.resume(member)
            if member.process is not None and not member.process.is_alive():
                self._bury(member)
            if self._is_due(member, now):
                self._start(member)

    def kill(self, member: Member) -> None:
        """SIGKILL from outside, at whatever moment this is."""
        member.gauge.disarm()
        self._signal(member, signal.SIGKILL)
        if member.process is not None:
            member.process.join(10)
        self.tend()

    def stop_for(self, member: Member, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after so long; the member may have stopped itself already."""
        self._signal(member, signal.SIGSTOP)
        member.resume_at = time.time() + seconds
        self.stalls += 1

    def resume(self, member: Member) -> None:
        """SIGCONT now."""
        member.resume_at = None
        self._signal(member, signal.SIGCONT)

    def ask_to_end(self, member: Member, away_s: float = 0.0) -> None:
        """SIGTERM; where it is wanted it is started again, after so long."""
        member.away_until = time.time() + away_s
        member.is_ending = True
        if member.resume_at is not None:
            self.resume(member)
        self._signal(member, signal.SIGTERM)

    def passings(self) -> Counter[str]:
        """How often each fault point was passed, by all."""
        total: Counter[str] = Counter()
        for member in self.members:
            total.update(member.gauge.passings())
        return total

    def transitions(self) -> tuple[Counter[str], list[str]]:
        """The transitions that all forecasters logged, by kind; and those that are not allowed."""
        counts: Counter[str] = Counter()
        wrong: list[str] = []
        for member in self.members:
            log = member.folder / "log"
            found, not_allowed = walk(log.read_text(errors="replace") if log.exists() else "")
            counts += found
            wrong += [f"{member.name}: {transition}" for transition in not_allowed]
        return counts, wrong

    def killed_at(self) -> dict[str, int]:
        """Kills by fault point."""
        counts = Counter(kill.point for kill in self.kills)
        return {point: counts[point] for point in ("random", *POINTS)}

    def end(self, timeout_s: float) -> bool:
        """Ask all to end; whether they did in time, and as asked."""
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
            # The gauge's word: an order outlives a process that ends before it has come by.
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
        """The partitions that nobody committed after this member did."""
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
