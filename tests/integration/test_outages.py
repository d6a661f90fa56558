"""Brokers that are unreachable or have a full disk: forecasters wait, continue, and lose nothing."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from deploy.stack import Stack
from pipeline.audit.verify import verify
from pipeline.errors import StreamgruError
from pipeline.kafka.group_positions import committed_offsets
from pipeline.kafka.topic_reader import topic_ends
from pipeline.kafka.topics import ensure_topics
from pipeline.settings import Settings
from tests.chaos.fleet import Fleet
from tests.chaos.gauge import STOP
from tests.integration.stream_rig import FolderChampion, publish, rounds, small_forecaster
from tests.ports import free_ports, is_free
from tests.stacks import end_stack
from tests.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(480)]

SENSORS = [f"sensor-{number}" for number in range(8)]
GO_ON_S = 90.0  # limit on the time to catch up after an outage
# On a busy machine, a restarted broker takes long to end the transactions that were open.
COMMIT_TIMEOUT_S = 60.0


@dataclass
class Stream:
    """A broker and its forecasters, whose processes are never restarted."""

    settings: Settings
    champion: FolderChampion
    fleet: Fleet
    published: int = 0
    last_seen: str = ""  # offsets, or the error of the last look at them

    @classmethod
    def begin(cls, home: Path, port: int, forecasters: int) -> "Stream":
        settings = Settings(
            home=home,
            features=("a",),
            targets=("a",),
            horizon_steps=2,
            stack={"kafka_port": port},
            kafka={"partitions": 2},
            forecaster={"max_batch_readings": 50, "commit_timeout_s": COMMIT_TIMEOUT_S},
        )
        Stack(settings).up(("kafka",))
        ensure_topics(settings)
        champion = FolderChampion(home / "models", settings)
        champion.promote(1, small_forecaster(settings))
        names = [f"forecaster-{number}" for number in range(forecasters)]
        fleet = Fleet(settings, home / "models", home / "forecasters", names)
        fleet.want(forecasters)
        fleet.tend()
        return cls(settings, champion, fleet)

    def end(self) -> None:
        self.fleet.end(5)
        end_stack(self.settings)

    def publish(self, steps: int) -> None:
        first = self.published // len(SENSORS)
        self.published += publish(self.settings, rounds(self.settings, SENSORS, range(first, first + steps)))

    def is_caught_up(self) -> bool:
        """Whether all readings are processed; False if the broker is unreachable."""
        self.assert_all_run()
        try:
            ends = topic_ends(self.settings, self.settings.kafka.topics.readings)
            committed = committed_offsets(self.settings)
        except StreamgruError as error:
            self.last_seen = repr(error)
            return False
        self.last_seen = f"ends {ends}, committed {committed}"
        return all(committed.get(partition, 0) >= end for partition, end in ends.items())

    def wait_until_caught_up(self, timeout_s: float, message: str) -> None:
        """Wait; the error shows the offsets and the end of each forecaster's log."""
        try:
            wait_until(self.is_caught_up, timeout_s, message)
        except AssertionError as error:
            logs = "\n\n".join("\n".join(said.splitlines()[-40:]) for said in self.said)
            raise AssertionError(f"{error}; {self.last_seen}\n{logs}") from None

    def all_work(self) -> bool:
        """Whether every forecaster commits, so that each has a partition."""
        self.publish(1)
        return self.is_caught_up() and all(any(member.gauge.commits()) for member in self.fleet.members)

    def stop_at(self, points: Sequence[str]) -> None:
        """Stop each forecaster at a point of its loop, with readings in its batch."""
        for member, point in zip(self.fleet.members, points, strict=True):
            member.gauge.arm(point, STOP)
        self.publish(40)
        wait_until(lambda: all(member.gauge.has_fired for member in self.fleet.members), 30, f"they stop at {points}")

    def resume(self) -> None:
        for member in self.fleet.members:
            self.fleet.resume(member)

    def assert_all_run(self) -> None:
        """Assert that no forecaster has ended; the fleet, which is not tended here, restarts no forecaster."""
        for member, said in zip(self.fleet.members, self.said, strict=True):
            assert member.process is not None
            assert member.process.exitcode is None, said

    @property
    def said(self) -> list[str]:
        """The log of each forecaster so far; empty before its process opens it."""
        logs = [member.folder / "log" for member in self.fleet.members]
        return [log.read_text() if log.exists() else "" for log in logs]

    def have_logged_the_outage(self) -> bool:
        return all(
            "no Kafka broker answers" in said and "the brokers can be reached again" in said for said in self.said
        )

    @property
    def broker_pid(self) -> int:
        pid = Stack(self.settings).status()[0].pid
        assert pid is not None, "the broker is not running"
        return pid

    def assert_nothing_is_lost_or_twice(self) -> None:
        verdict = verify(self.settings, self.champion.load)
        assert verdict.faults == {}, verdict.examples
        assert verdict.audit.accepted == verdict.audit.forecasts == self.published
        self.assert_all_run()


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[[int, int], list[Stream]]]:
    """A function that begins ``count`` streams of ``forecasters`` forecasters; they end with the test."""
    with ExitStack() as opened:

        def make(count: int, forecasters: int) -> list[Stream]:
            made = []
            for port in free_ports(count):
                made.append(Stream.begin(tmp_path / str(port), port, forecasters))
                opened.callback(made[-1].end)
            return made

        yield make


@contextmanager
def frozen(stream: Stream) -> Iterator[None]:
    """Freeze the broker: its connections stay open and carry nothing, as if its machine stalled."""
    pid = stream.broker_pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def dead(stream: Stream) -> Iterator[None]:
    """Kill the broker and start it again at the end; in between nothing listens on its port."""
    os.kill(stream.broker_pid, signal.SIGKILL)
    wait_until(lambda: is_free(stream.settings.stack.kafka_port), 30, "the broker is dead")
    yield
    Stack(stream.settings).up(("kafka",))


# (outage, points of the loop at which the two forecasters are when it begins)
OUTAGES = ((frozen, ("offsets-sent", "before-flush")), (dead, ("offsets-sent", "polled")))
OUTAGE_S = 75.0  # longer than the timeouts of a forecaster


@pytest.mark.long(107)
def test_forecasters_continue_after_an_outage_longer_than_their_timeouts(
    begin: Callable[[int, int], list[Stream]],
) -> None:
    streams = begin(len(OUTAGES), 2)
    chosen = streams[0].settings.forecaster
    assert max(chosen.poll_interval_s, chosen.commit_timeout_s, chosen.transaction_timeout_s) < OUTAGE_S
    for stream in streams:
        wait_until(stream.all_work, 60, "each forecaster has a partition")
    with ExitStack() as outages:
        for stream, (outage, points) in zip(streams, OUTAGES, strict=True):
            stream.stop_at(points)
            outages.enter_context(outage(stream))
            stream.resume()
        until = time.monotonic() + OUTAGE_S
        wait_until(lambda: time.monotonic() > until, OUTAGE_S + 5, "the outage lasted")
    for stream in streams:
        stream.wait_until_caught_up(GO_ON_S, "the forecasters caught up")
        stream.publish(5)
        stream.wait_until_caught_up(30, "the new readings were forecast")
        wait_until(stream.have_logged_the_outage, 30, "each forecaster has logged the outage and its end")
        stream.assert_nothing_is_lost_or_twice()


@pytest.mark.long(20)
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can limit the file size of a running process")
def test_a_forecaster_waits_for_a_broker_that_ends_because_its_disk_is_full(
    begin: Callable[[int, int], list[Stream]],
) -> None:
    """No file of the broker may grow. Its writes fail as they do on a full disk, but with another error number."""
    (stream,) = begin(1, 1)
    wait_until(stream.all_work, 60, "the forecaster has a partition")
    broker = psutil.Process(stream.broker_pid)
    stream.stop_at(["before-flush"])
    _, hard = broker.rlimit(psutil.RLIMIT_FSIZE)
    broker.rlimit(psutil.RLIMIT_FSIZE, (1, hard))
    stream.resume()
    wait_until(lambda: not Stack(stream.settings).status()[0].pid, 60, "the broker ended")
    wait_until(lambda: "no Kafka broker answers" in stream.said[0], 30, "the forecaster says so")
    Stack(stream.settings).up(("kafka",))  # this broker has no limit on file sizes
    stream.wait_until_caught_up(GO_ON_S, "the forecaster caught up")
    stream.publish(5)
    stream.wait_until_caught_up(30, "the new readings were forecast")
    stream.assert_nothing_is_lost_or_twice()
