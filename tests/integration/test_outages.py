"""A broker away for minutes, or with nowhere to write: forecasters wait, go on by themselves, and lose nothing."""

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
from pipeline.audit.topic_logs import committed_offsets
from pipeline.audit.verify import verify
from pipeline.errors import StreamgruError
from pipeline.kafka.topic_reader import topic_ends
from pipeline.kafka.topics import ensure_topics
from pipeline.settings import Settings
from tests.chaos.fleet import Fleet
from tests.chaos.gauge import STOP
from tests.integration.stream_rig import FolderChampion, publish, rounds, small_forecaster
from tests.ports import is_free, steady_ports
from tests.stacks import end_stack
from tests.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(480)]

SENSORS = [f"sensor-{number}" for number in range(8)]
GO_ON_S = 90.0
# A broker that comes back on a busy machine takes its time with the transactions that were open.
COMMIT_TIMEOUT_S = 60.0


@dataclass
class Stream:
    """A broker of its own and its forecasters, whose processes are the same from beginning to end."""

    settings: Settings
    champion: FolderChampion
    fleet: Fleet
    published: int = 0

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
        """Everything on the topic is forecast, as far as the broker can be asked."""
        self.assert_all_run()
        try:
            ends = topic_ends(self.settings, self.settings.kafka.topics.readings)
            committed = committed_offsets(self.settings)
        except StreamgruError:
            return False
        return all(committed.get(partition, 0) >= end for partition, end in ends.items())

    def all_work(self) -> bool:
        """Each forecaster commits: they share the partitions."""
        self.publish(1)
        return self.is_caught_up() and all(any(member.gauge.commits()) for member in self.fleet.members)

    def hold(self, points: Sequence[str]) -> None:
        """Stop each forecaster at a point of its loop, with readings in hand."""
        for member, point in zip(self.fleet.members, points, strict=True):
            member.gauge.arm(point, STOP)
        self.publish(40)
        wait_until(lambda: all(member.gauge.has_fired for member in self.fleet.members), 30, f"they stand at {points}")

    def let_go(self) -> None:
        for member in self.fleet.members:
            self.fleet.resume(member)

    def assert_all_run(self) -> None:
        """None has ended: the fleet is not tended, so none was started again."""
        for member, said in zip(self.fleet.members, self.said, strict=True):
            assert member.process is not None
            assert member.process.exitcode is None, said

    @property
    def said(self) -> list[str]:
        """What each forecaster has logged so far."""
        return [(member.folder / "log").read_text() for member in self.fleet.members]

    def have_told_of_the_outage(self) -> bool:
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
    """Makes so many streams with so many forecasters each, all stopped at the end."""
    with ExitStack() as opened:

        def make(count: int, forecasters: int) -> list[Stream]:
            made = []
            for port in steady_ports(count):
                made.append(Stream.begin(tmp_path / str(port), port, forecasters))
                opened.callback(made[-1].end)
            return made

        yield make


@contextmanager
def frozen(stream: Stream) -> Iterator[None]:
    """Its connections stay, and nothing comes through them: a machine or a network that stalls."""
    pid = stream.broker_pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def dead(stream: Stream) -> Iterator[None]:
    """Nobody listens on its port."""
    os.kill(stream.broker_pid, signal.SIGKILL)
    wait_until(lambda: is_free(stream.settings.stack.kafka_port), 10, "the broker is dead")
    yield
    Stack(stream.settings).up(("kafka",))


# How the broker goes away, and where in their loops its two forecasters are then.
OUTAGES = ((frozen, ("offsets-sent", "before-flush")), (dead, ("offsets-sent", "polled")))
AWAY_S = 75.0  # longer than any timeout of a forecaster's


@pytest.mark.long(107)
def test_after_minutes_without_a_broker_forecasters_go_on(begin: Callable[[int, int], list[Stream]]) -> None:
    streams = begin(len(OUTAGES), 2)
    chosen = streams[0].settings.forecaster
    assert max(chosen.poll_interval_s, chosen.commit_timeout_s, chosen.transaction_timeout_s) < AWAY_S
    for stream in streams:
        wait_until(stream.all_work, 60, "each has its partition")
    with ExitStack() as away:
        for stream, (outage, points) in zip(streams, OUTAGES, strict=True):
            stream.hold(points)
            away.enter_context(outage(stream))
            stream.let_go()
        until = time.monotonic() + AWAY_S
        wait_until(lambda: time.monotonic() > until, AWAY_S + 5, "the outage lasted")
    for stream in streams:
        wait_until(stream.is_caught_up, GO_ON_S, "they go on")
        stream.publish(5)
        wait_until(stream.is_caught_up, 30, "what is new is forecast")
        wait_until(stream.have_told_of_the_outage, 30, "each has said that the brokers were away, and are back")
        stream.assert_nothing_is_lost_or_twice()


@pytest.mark.long(20)
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the files of a process that runs already")
def test_a_broker_whose_disk_is_full_ends_and_the_forecaster_waits_for_room(
    begin: Callable[[int, int], list[Stream]],
) -> None:
    """No file of the broker may grow: its writes fail as on a full disk, with another number."""
    (stream,) = begin(1, 1)
    wait_until(stream.all_work, 60, "it forecasts")
    broker = psutil.Process(stream.broker_pid)
    stream.hold(["before-flush"])
    _, hard = broker.rlimit(psutil.RLIMIT_FSIZE)
    broker.rlimit(psutil.RLIMIT_FSIZE, (1, hard))
    stream.let_go()
    wait_until(lambda: not Stack(stream.settings).status()[0].pid, 60, "the broker ended")
    wait_until(lambda: "no Kafka broker answers" in stream.said[0], 30, "the forecaster says so")
    Stack(stream.settings).up(("kafka",))  # there is room again
    wait_until(stream.is_caught_up, GO_ON_S, "it goes on")
    stream.publish(5)
    wait_until(stream.is_caught_up, 30, "it forecasts what is new")
    stream.assert_nothing_is_lost_or_twice()
