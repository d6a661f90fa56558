"""A chaos run: inject the planned faults into a fleet with a broker of its own, then audit the topics."""

import os
import random
import signal
import time
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from deploy.stack import Stack
from pipeline.audit.verify import AuditResult, verify
from pipeline.errors import StreamgruError
from pipeline.kafka.group_positions import committed_offsets
from pipeline.kafka.topic_reader import read_topic, topic_ends
from pipeline.kafka.topics import ensure_topics
from pipeline.settings import Settings
from tests.chaos.fleet import Fleet, Kill, Member
from tests.chaos.gauge import KILL, STOP
from tests.chaos.observer import LiveForecast, Observer
from tests.chaos.plan import Fault, Size, draw
from tests.chaos.publisher import Publisher
from tests.integration.stream_rig import FolderChampion, small_forecaster
from tests.ports import free_port, is_free

TEND_S: Final = 0.02  # seconds between two calls of Fleet.tend
TRIES: Final = 3  # attempts to kill a forecaster at a point
FAULT_S: Final = 60.0  # seconds to wait for a fault point; then the forecaster is killed wherever it is
SETTLE_S: Final = 120.0  # seconds to catch up after faults with the readings published so far
AWAY_S: Final = 6.0  # seconds that a leaving forecaster stays away, so that the other members take over its partitions
END_S: Final = 20.0  # seconds for all forecasters to end after SIGTERM


@dataclass
class Record:
    """The faults of a run and its measurements."""

    seed: int
    size: Size
    without: tuple[str, ...] = ()  # guards removed
    seconds: float = 0.0
    verify_s: float = 0.0
    published: int = 0
    broker_kills: int = 0
    broker_stalls: int = 0
    promotions: int = 0
    settled: int = 0
    unsettled: int = 0
    ended_well: bool = False
    seen_all: bool = False  # the live reader saw exactly the records that the topic holds at the end
    outages: list[tuple[float, float]] = field(default_factory=list)  # broker: begin, end (seconds since the epoch)
    kills: list[Kill] = field(default_factory=list)
    killed_at: dict[str, int] = field(default_factory=dict)
    passings: Counter[str] = field(default_factory=Counter)
    transitions: Counter[str] = field(default_factory=Counter)  # "BEFORE -> AFTER" -> count in all logs
    wrong_transitions: list[str] = field(default_factory=list)  # logged, but not allowed by the lifecycle
    stalls: int = 0
    restarts: int = 0
    given_up: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    live_forecasts: list[LiveForecast] = field(default_factory=list)
    verdict: AuditResult | None = None


def names_of_sensors(size: Size) -> list[str]:
    """The ids of the sensors of a run."""
    return [f"sensor-{number}" for number in range(size.sensors)]


def chaos_settings(home: Path, size: Size, kafka_port: int) -> Settings:
    """Settings with small timeouts, in the order that the product demands: a stall of seconds outlasts them."""
    return Settings(
        home=home,
        features=("a", "b"),
        targets=("a",),
        horizon_steps=3,
        max_gap_steps=4,
        outlooks={"covariates": ["c"], "groups": {"every-second": names_of_sensors(size)[::2]}},
        stack={"kafka_port": kafka_port},
        kafka={"partitions": size.partitions},
        forecaster={
            "poll_alias_s": 0.3,
            "rewarm_steps": 100,
            "max_batch_readings": 500,
            "request_timeout_s": 2.0,
            "delivery_timeout_s": 3.0,
            "session_timeout_s": 6.0,
            "transaction_timeout_s": 6.5,
            "poll_interval_s": 7.0,
            "commit_timeout_s": 15.0,
        },
    )


class Harness:
    """One run. ``say`` prints its progress."""

    def __init__(
        self, home: Path, size: Size, seed: int, *, without: tuple[str, ...] = (), say: Callable[[str], None] = print
    ) -> None:
        self.settings = chaos_settings(home, size, free_port())
        self.record = Record(seed, size, without)
        self._say = say
        self._random = random.Random(seed + 1)
        self._stack = Stack(self.settings)
        self._champion = FolderChampion(home / "models", self.settings)
        self._fleet = Fleet(
            self.settings, home / "models", home / "forecasters", ("chaos-0", "chaos-1", "chaos-2"), without
        )
        self._pool = ThreadPoolExecutor(1)

    def run(self) -> Record:
        """Run all faults and the audit. The stack is stopped at the end, even after an error."""
        size, record = self.record.size, self.record
        try:
            self._stack.up(("kafka",))
            ensure_topics(self.settings)
            for version in range(1, size.promotions + 2):
                self._champion.promote(version, small_forecaster(self.settings, seed=version, hidden_size=16))
            self._champion.promote(1)
            publisher = Publisher(
                self.settings, names_of_sensors(size), record.seed, least=size.readings, rate=size.rate
            )
            observer = Observer(self.settings)
            began = time.monotonic()
            self._fleet.want(1)
            self._fleet.tend()
            publisher.start()
            observer.start()
            self._break_things()
            self._say(f"{publisher.sent} readings published so far; publishing the rest")
            self._wait_for(self._pool.submit(publisher.finish))
            record.published = publisher.sent
            self._settle()
            record.ended_well = self._fleet.end(END_S)
            record.seconds = time.monotonic() - began
            self._gather(observer)
        finally:
            self._fleet.end(1.0)
            self._pool.shutdown(wait=False)
            self._stack.down(("kafka",))
        return record

    def _break_things(self) -> None:
        size = self.record.size
        self._settle()  # wait until the first forecaster serves
        plan = draw(size, self.record.seed)
        for number, fault in enumerate(plan, 1):
            self._wait_until(lambda: False, fault.pause_s)
            self._do(fault)
            if number % size.settle_every == 0:
                self._settle()
                self._say(f"{number} of {len(plan)} faults, {len(self._fleet.kills)} kills")

    def _do(self, fault: Fault) -> None:
        match fault.kind:
            case "forecasters":
                self._fleet.want(fault.count)
                self._settle()
            case "kill":
                self._kill_until_done(fault.point)
            case "stall":
                self._stall(fault.point)
            case "promotion":
                self._promote()
            case "broker kill":
                self._kill_broker()
            case "broker stall":
                self._stall_broker()

    # --- forecasters --------------------------------------------------------------------------------------------------

    def _victim(self) -> Member:
        self._wait_until(lambda: bool(self._fleet.running()), FAULT_S)
        return self._random.choice(self._fleet.running())

    def _kill_until_done(self, point: str | None) -> None:
        """Kill a forecaster at a point. If no forecaster passes the point in time, catch up and try again."""
        for _ in range(TRIES):
            if self._kill(point):
                return
            self._settle()

    def _kill(self, point: str | None) -> bool:
        """Kill a forecaster at a point, or wherever it is if None; return whether it died as planned."""
        victim = self._victim()
        if point is None:
            self._fleet.kill(victim)
            return True
        if point == "restoring":
            self._fleet.kill(victim)
            return self._kill_at(victim, point, 1)
        if point == "revoked":
            return self._kill_at_revocation(leaver=victim)
        return self._kill_at(victim, point, self._random.randint(1, 8))

    def _kill_at(self, victim: Member, point: str, countdown: int) -> bool:
        """Make the victim kill itself at a point, or kill it after a timeout; return whether it was at the point."""
        before = len(self._fleet.kills)
        victim.gauge.arm(point, KILL, countdown)
        came_by = self._wait_until(lambda: victim.gauge.has_fired and len(self._fleet.kills) > before, FAULT_S)
        if not came_by:
            self._say(f"{victim.name} did not pass the point {point!r} in {FAULT_S:g} s; killing it from outside")
            self._fleet.kill(victim)
        return came_by

    def _kill_at_revocation(self, leaver: Member) -> bool:
        """Make a forecaster leave and rejoin, so that a member that gives up a partition to it kills itself."""
        before = len(self._fleet.kills)
        others = [member for member in self._fleet.running() if member is not leaver]
        for member in others:
            member.gauge.arm("revoked", KILL)
        self._fleet.ask_to_end(leaver, away_s=AWAY_S)
        came_by = self._wait_until(lambda: len(self._fleet.kills) > before, AWAY_S + FAULT_S)
        if not came_by:
            self._say(f"no forecaster gave up a partition; killing {leaver.name} from outside")
            self._fleet.kill(leaver)
        for member in others:
            if not member.gauge.has_fired:  # disarming clears the point, which Fleet.tend reads after a death
                member.gauge.disarm()
        return came_by

    def _stall(self, point: str | None) -> None:
        victim = self._victim()
        forecaster = self.settings.forecaster
        seconds = max(forecaster.poll_interval_s, forecaster.session_timeout_s) + self._random.uniform(0.5, 3.0)
        if point is not None:
            victim.gauge.arm(point, STOP)
            if not self._wait_until(lambda: victim.gauge.has_fired, FAULT_S):
                victim.gauge.disarm()
        self._fleet.stop_for(victim, seconds)

    def _promote(self) -> None:
        """Promote the next version, and kill a forecaster in the middle of the model swap."""
        self.record.promotions += 1
        victim = self._victim()
        self._champion.promote(1 + self.record.promotions)
        self._kill_at(victim, "swapping", 1)

    # --- the broker ---------------------------------------------------------------------------------------------------

    def _broker_pid(self) -> int:
        pid = self._stack.status()[0].pid
        assert pid is not None, "the broker is not running"
        return pid

    def _kill_broker(self) -> None:
        began = time.time()
        os.kill(self._broker_pid(), signal.SIGKILL)
        self._wait_until(lambda: is_free(self.settings.stack.kafka_port), FAULT_S)
        self._wait_until(lambda: False, self._random.uniform(0.0, 3.0))
        self._wait_for(self._pool.submit(self._stack.up, ("kafka",)))
        self.record.broker_kills += 1
        self.record.outages.append((began, time.time()))

    def _stall_broker(self) -> None:
        """Stop the broker for longer than the delivery timeout, and for less than the transaction timeout.

        Forecasters stop after a poll and resume when the broker is stopped, so their batches expire.
        """
        pid = self._broker_pid()
        forecaster = self.settings.forecaster
        held = self._fleet.running()
        for member in held:
            member.gauge.arm("polled", STOP)
        self._wait_until(lambda: all(member.gauge.has_fired for member in held), FAULT_S)
        began = time.time()
        os.kill(pid, signal.SIGSTOP)
        try:
            for member in held:
                member.gauge.disarm()
                self._fleet.resume(member)
            self._wait_until(lambda: False, (forecaster.delivery_timeout_s + forecaster.transaction_timeout_s) / 2)
        finally:
            os.kill(pid, signal.SIGCONT)
        self.record.broker_stalls += 1
        self.record.outages.append((began, time.time()))

    # --- waiting ------------------------------------------------------------------------------------------------------

    def _wait_until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Tend the fleet until the condition holds; return whether it did in time."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._fleet.tend()
            if condition():
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(TEND_S)

    def _wait_for(self, future: Future[None]) -> None:
        self._wait_until(future.done, 600)
        future.result()

    def _settle(self) -> None:
        """Wait until every reading that is on the topic now has been processed."""
        ends: dict[int, int] = {}
        looked = 0.0

        def is_caught_up() -> bool:
            nonlocal looked
            if time.monotonic() - looked < 0.5:
                return False
            looked = time.monotonic()
            try:
                if not ends:
                    ends.update(topic_ends(self.settings, self.settings.kafka.topics.readings))
                committed = committed_offsets(self.settings)
            except StreamgruError:
                return False
            return all(committed.get(partition, 0) >= end for partition, end in ends.items())

        if self._wait_until(is_caught_up, SETTLE_S):
            self.record.settled += 1
        else:
            self.record.unsettled += 1
            self._say(f"the forecasters did not catch up within {SETTLE_S:g} s")

    # --- the evidence -------------------------------------------------------------------------------------------------

    def _gather(self, observer: Observer) -> None:
        fleet, record = self._fleet, self.record
        topic = self.settings.kafka.topics.forecasts
        caught_up = observer.finish(topic_ends(self.settings, topic), SETTLE_S)
        record.live_forecasts = observer.live_forecasts
        record.seen_all = caught_up and _equals_topic(self.settings, topic, observer.live_forecasts)
        record.kills, record.killed_at, record.passings = fleet.kills, fleet.killed_at(), fleet.passings()
        record.transitions, record.wrong_transitions = fleet.transitions()
        record.stalls, record.restarts = fleet.stalls, fleet.restarts
        record.given_up, record.broken = fleet.given_up, fleet.broken
        self._say("verifying")
        began = time.monotonic()
        record.verdict = verify(self.settings, self._champion.load)
        record.verify_s = time.monotonic() - began


def _equals_topic(settings: Settings, topic: str, live_forecasts: list[LiveForecast]) -> bool:
    """Whether the live reader saw the same records as the topic holds, in the same order by partition."""
    seen: dict[int, list[tuple[int, int]]] = {}
    for live_forecast in live_forecasts:
        seen.setdefault(live_forecast.partition, []).append((live_forecast.offset, live_forecast.checksum))
    stored: dict[int, list[tuple[int, int]]] = {}
    for record in read_topic(settings, topic, {}, None):
        stored.setdefault(record.partition, []).append((record.offset, zlib.crc32(record.value)))
    return seen == stored
