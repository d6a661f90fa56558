"""The lifecycle of a partition: transitions, invariants of each state, the committed offset that a restore uses."""

import logging
from collections.abc import Callable, Generator
from itertools import product
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from kafka import TopicPartition
from kafka.errors import KafkaTimeoutError
from kafka.structs import OffsetAndMetadata

from pipeline.forecaster import partitions as module
from pipeline.forecaster.partitions import (
    ASSIGNED,
    LOST,
    RESTORING,
    RUNNING,
    TRANSITIONS,
    WRITING,
    Partition,
    Partitions,
    PartitionState,
)
from pipeline.forecaster.positions import CommittedPosition, Position
from pipeline.forecaster.readings import Readings
from pipeline.forecaster.restore import RestoreReport
from pipeline.forecaster.states.table import StateTable

NUMBERS: Final = range(4)


class Client:
    """A consumer of a group. As in kafka-python, the reply to an offset fetch that timed out goes to the next one."""

    def __init__(self) -> None:
        self.offsets: dict[int, int] = {}  # partition -> the group's committed offset
        self.is_slow = False
        self.assigned: set[int] = set()
        self.paused: set[int] = set()
        self.positions: dict[int, int] = {}
        self._replies: dict[int, int] = {}

    def take(self, *numbers: int) -> None:
        """Assign partitions in a paused state, as the client and its listener do."""
        self.assigned.update(numbers)
        self.paused.update(numbers)
        self.positions.update(dict.fromkeys(numbers, 0))

    def cancel(self, *numbers: int) -> None:
        self.assigned.difference_update(numbers)
        self.paused.difference_update(numbers)

    def committed(self, where: TopicPartition, *, metadata: bool, timeout_ms: int) -> OffsetAndMetadata:
        assert metadata
        reply = self._replies.setdefault(where.partition, self.offsets.get(where.partition, 0))
        if self.is_slow:
            raise KafkaTimeoutError(f"no answer in {timeout_ms} ms")
        del self._replies[where.partition]
        return OffsetAndMetadata(reply, "", -1)

    def pause(self, where: TopicPartition) -> None:
        self._check(where)
        self.paused.add(where.partition)

    def resume(self, where: TopicPartition) -> None:
        self._check(where)
        self.paused.discard(where.partition)

    def seek(self, where: TopicPartition, offset: int) -> None:
        self._check(where)
        self.positions[where.partition] = offset

    def _check(self, where: TopicPartition) -> None:
        if where.partition not in self.assigned:
            raise KeyError(where)


class StateLog:
    """A fake restorer: it restores one sensor per partition, in several slices."""

    def __init__(self) -> None:
        self.incomplete: set[int] = set()  # partitions that need a full write after their restore
        self.buffered: dict[int, Readings] = {}
        self.rebuilt: dict[int, set[str]] = {}  # partition -> sensors that the last restore was told to rebuild

    def restore(
        self,
        serving: Any,
        wanted: set[int],
        committed: Callable[[int], CommittedPosition],
        *,
        accept_loss: bool,
        rebuild_only: dict[int, set[str]],
    ) -> Generator[None, None, RestoreReport]:
        positions = {}
        self.rebuilt = {number: set(sensors) for number, sensors in rebuild_only.items()}
        for number in sorted(wanted):
            while number not in positions:
                try:
                    positions[number] = committed(number).position.next
                except KafkaTimeoutError:
                    yield
        for number in wanted:
            serving.table.add_partition(number)
        yield
        for number in wanted:
            serving.table.rows(number, ["sensor"])
        return RestoreReport(
            {number: positions[number] for number in wanted},
            needs_full_write=self.incomplete & wanted,
            buffered={number: readings for number, readings in self.buffered.items() if number in wanted},
        )


class ServedModel:
    def __init__(self) -> None:
        self.table = StateTable(np.zeros(1, [("last_us", np.int64)]))


class Rig:
    """Partitions with a fake client, restorer and model."""

    def __init__(self) -> None:
        self.client = Client()
        self.state_log: Any = StateLog()
        self.serving: Any = ServedModel()
        self.partitions = Partitions(self.client, "readings", self.state_log, accept_loss=False)

    def state(self, number: int = 0) -> PartitionState:
        return self.partitions._partitions[number].state

    def assign(self, *numbers: int) -> None:
        self.client.take(*numbers)
        self.partitions.assign(numbers, self.serving)

    def revoke(self, *numbers: int) -> None:
        self.client.cancel(*numbers)
        self.partitions.revoke(numbers, self.serving)

    def restore_slice(self) -> RestoreReport | None:
        return self.partitions.restore(self.serving)

    def restore(self, incomplete: set[int] = frozenset()) -> None:
        self.state_log.incomplete = incomplete
        for _ in range(10):
            if self.restore_slice() is not None and self.partitions.are_restored:
                return
        raise AssertionError("not restored after 10 turns")

    def commit_full_write(self) -> None:
        writes = self.partitions.next_full_writes(self.serving.table)
        reached = {number: Position(position) for number, position in writes.items()}
        self.partitions.commit(reached, self.partitions.buffered, writes)

    def bring_to(self, state: PartitionState) -> None:
        """Bring partition 0 into ``state``."""
        self.assign(0)
        if state is LOST:
            self.revoke(0)
        elif state is RESTORING:
            self.client.is_slow = True
            self.restore_slice()
            self.client.is_slow = False
        elif state is not ASSIGNED:
            self.restore({0} if state is WRITING else set())


@pytest.fixture
def rig() -> Rig:
    return Rig()


# --- transitions ------------------------------------------------------------------------------------------------------

EVENTS: Final[dict[tuple[PartitionState, PartitionState], Callable[[Rig], object]]] = {
    (ASSIGNED, RESTORING): Rig.restore_slice,
    (ASSIGNED, LOST): lambda rig: rig.revoke(0),
    (RESTORING, WRITING): lambda rig: rig.restore({0}),
    (RESTORING, RUNNING): Rig.restore,
    (RESTORING, ASSIGNED): lambda rig: rig.partitions.start_over(rig.serving),
    (RESTORING, LOST): lambda rig: rig.revoke(0),
    (WRITING, RUNNING): Rig.commit_full_write,
    (WRITING, ASSIGNED): lambda rig: rig.partitions.start_over(rig.serving),
    (WRITING, LOST): lambda rig: rig.revoke(0),
    (RUNNING, ASSIGNED): lambda rig: rig.partitions.rebuild({0: ["sensor"]}, rig.serving),
    (RUNNING, LOST): lambda rig: rig.revoke(0),
    (LOST, ASSIGNED): lambda rig: rig.assign(0),
}
ALLOWED: Final = {(before, after) for before, states in TRANSITIONS.items() for after in states}


@pytest.mark.parametrize(("before", "after"), sorted(ALLOWED))
def test_an_event_makes_each_allowed_transition(
    rig: Rig, before: PartitionState, after: PartitionState, caplog: pytest.LogCaptureFixture
) -> None:
    rig.bring_to(before)
    assert rig.state() is before
    with caplog.at_level(logging.DEBUG, "streamgru.partitions"):
        EVENTS[before, after](rig)
    assert rig.state() is after
    assert f"partition 0: {before} -> {after}" in caplog.messages


@pytest.mark.parametrize(("before", "after"), sorted({*product(PartitionState, PartitionState)} - ALLOWED))
def test_every_other_transition_raises(before: PartitionState, after: PartitionState) -> None:
    partition = Partition(3, before)
    with pytest.raises(AssertionError, match=f"partition 3: {before} -> {after} is not allowed"):
        partition.enter(after)
    assert partition.state is before


def transitions(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message.removeprefix("partition 0: ") for message in caplog.messages if "->" in message]


def test_a_missed_generation_loses_every_partition_and_restores_it(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.bring_to(RUNNING)
    with caplog.at_level(logging.DEBUG, "streamgru.partitions"):
        rig.partitions.miss_generation(rig.serving)
    assert transitions(caplog) == ["RUNNING -> LOST", "LOST -> ASSIGNED"]
    assert rig.client.paused == {0}


def test_an_assignment_of_a_partition_that_was_not_revoked_restores_it(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.bring_to(RUNNING)
    with caplog.at_level(logging.DEBUG, "streamgru.partitions"):
        rig.assign(0)
    assert transitions(caplog) == ["RUNNING -> LOST", "LOST -> ASSIGNED"]
    assert rig.partitions.positions == {}


def test_a_partition_that_the_client_gives_up_during_its_restore_is_lost(rig: Rig) -> None:
    rig.assign(0, 1)
    rig.restore_slice()
    rig.client.cancel(0)
    rig.restore()
    assert (rig.state(0), rig.state(1)) == (LOST, RUNNING)
    assert rig.serving.table.partitions == {1}
    rig.revoke(0)
    assert rig.state(0) is LOST


# --- the committed offset ---------------------------------------------------------------------------------------------


def test_a_restore_waits_for_a_committed_offset_that_an_open_transaction_delays(rig: Rig) -> None:
    rig.client.offsets[0], rig.client.is_slow = 7, True
    rig.assign(0)
    assert rig.restore_slice() is None
    assert not rig.partitions.are_restored
    rig.client.is_slow = False
    rig.restore()
    assert rig.partitions.positions == rig.client.positions == {0: 7}


def test_the_reply_to_an_offset_fetch_from_before_a_revocation_is_discarded(rig: Rig) -> None:
    rig.client.offsets[0], rig.client.is_slow = 7, True
    rig.assign(0)
    assert rig.restore_slice() is None
    rig.revoke(0)
    rig.client.offsets[0] = 90  # committed by the member that owned the partition in between
    rig.assign(0)
    rig.client.is_slow = False
    rig.restore()
    assert rig.partitions.positions == {0: 90}


def test_the_replies_to_offset_fetches_from_before_starting_over_are_discarded(rig: Rig) -> None:
    rig.client.offsets, rig.client.is_slow = {0: 7, 1: 7}, True
    rig.assign(0, 1)
    assert rig.restore_slice() is None
    for offset in (40, 90):
        rig.partitions.start_over(rig.serving)
        rig.client.offsets = {0: offset, 1: offset}
        assert rig.restore_slice() is None  # still without a reply
    rig.client.is_slow = False
    rig.restore()
    assert rig.partitions.positions == {0: 90, 1: 90}


# --- full writes ------------------------------------------------------------------------------------------------------


def test_a_partition_with_an_incomplete_changelog_is_polled_after_its_full_write(rig: Rig) -> None:
    rig.client.offsets = {0: 5, 1: 7}
    rig.assign(0, 1)
    rig.restore({0})
    assert (rig.state(0), rig.state(1)) == (WRITING, RUNNING)
    assert rig.client.paused == {0}
    assert rig.partitions.positions == rig.client.positions == {0: 5, 1: 7}
    assert rig.partitions.need_full_write
    rig.partitions.commit({1: Position(9)}, {}, ())
    assert rig.client.paused == {0}, "this commit held no full write"
    rig.commit_full_write()
    assert not rig.client.paused
    assert not rig.partitions.need_full_write


def test_a_running_partition_is_polled_before_its_full_write_after_a_model_swap(rig: Rig) -> None:
    rig.bring_to(RUNNING)
    rig.partitions.request_full_write()
    assert rig.partitions.next_full_writes(rig.serving.table) == {0: 0}
    assert rig.state() is RUNNING
    assert not rig.client.paused
    rig.commit_full_write()
    assert not rig.partitions.need_full_write


def test_a_transaction_takes_no_more_full_writes_than_fit(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.assign(0, 1, 2)
    rig.restore({0, 1, 2})
    monkeypatch.setattr(module, "FULL_WRITE_BYTES", 2 * rig.serving.table.dtype.itemsize)
    for chosen in ({0, 1}, {2}, set()):
        assert rig.partitions.next_full_writes(rig.serving.table).keys() == chosen
        rig.commit_full_write()


# --- rebuilds and last positions --------------------------------------------------------------------------------------


def test_a_rebuild_names_its_sensors_until_the_restore_is_complete(rig: Rig) -> None:
    rig.bring_to(RUNNING)
    rig.partitions.rebuild({0: ["sensor"]}, rig.serving)
    rig.partitions.start_over(rig.serving)
    rig.restore()
    assert rig.state_log.rebuilt == {0: {"sensor"}}
    rig.partitions.start_over(rig.serving)
    rig.restore()
    assert rig.state_log.rebuilt == {0: set()}


def test_the_last_position_is_known_during_a_restore_and_forgotten_by_a_revocation(rig: Rig) -> None:
    rig.client.offsets[0] = 7
    rig.bring_to(RUNNING)
    rig.partitions.start_over(rig.serving)
    rig.partitions.start_over(rig.serving)
    assert (rig.partitions.positions, rig.partitions.last_positions) == ({}, {0: 7})
    rig.revoke(0)
    assert rig.partitions.last_positions == {}


# --- any sequence of events -------------------------------------------------------------------------------------------


def no_readings(number: int) -> Readings:
    none = np.zeros(0, np.int64)
    return Readings.of_sensors(number, [], none, np.zeros((0, 1)), none)


class Lifecycle(RuleBasedStateMachine):
    """Events in any order. ``rig.client`` holds the group's committed offsets, with which positions are compared."""

    numbers = st.sets(st.sampled_from(NUMBERS), min_size=1)

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig()
        self.partitions = self.rig.partitions
        self.unreported: set[int] = set()  # partitions that the client gave up before the loop was told

    @rule(numbers=numbers)
    def assign(self, numbers: set[int]) -> None:
        self.other_members_commit(numbers)
        self.unreported -= numbers
        self.rig.assign(*numbers)

    @rule(numbers=numbers)
    def revoke(self, numbers: set[int]) -> None:
        self.rig.revoke(*numbers)
        self.unreported -= numbers
        self.other_members_commit(numbers)

    @rule(number=st.sampled_from(NUMBERS))
    def cancel(self, number: int) -> None:
        self.rig.client.cancel(number)
        self.unreported.add(number)

    @rule()
    def miss_generation(self) -> None:
        self.other_members_commit(set(NUMBERS))
        self.partitions.miss_generation(self.rig.serving)

    @rule(is_slow=st.booleans())
    def answer(self, is_slow: bool) -> None:
        self.rig.client.is_slow = is_slow

    @rule(incomplete=st.sets(st.sampled_from(NUMBERS)), buffered=st.sets(st.sampled_from(NUMBERS)))
    def restore_slice(self, incomplete: set[int], buffered: set[int]) -> None:
        self.rig.state_log.incomplete = incomplete
        self.rig.state_log.buffered = {number: no_readings(number) for number in buffered}
        self.rig.restore_slice()

    @rule(polled=st.sets(st.sampled_from(NUMBERS)), buffered=st.sets(st.sampled_from(NUMBERS)))
    def commit(self, polled: set[int], buffered: set[int]) -> None:
        writes = self.partitions.next_full_writes(self.rig.serving.table)
        returned = {TopicPartition("readings", number): [] for number in polled - self.rig.client.paused}
        reached = writes | {
            where.partition: self.partitions.positions[where.partition] + 1
            for where in self.partitions.select(returned)
        }
        self.rig.client.offsets |= reached
        after = {
            number: no_readings(number) for number in self.partitions.buffered.keys() | (buffered & reached.keys())
        }
        self.partitions.commit({number: Position(next_) for number, next_ in reached.items()}, after, writes)
        assert self.partitions.buffered.keys() == after.keys()

    @rule()
    def abort(self) -> None:
        self.partitions.start_over(self.rig.serving)

    @rule()
    def swap(self) -> None:
        self.partitions.request_full_write()

    @rule(numbers=numbers)
    def rebuild(self, numbers: set[int]) -> None:
        positions = self.partitions.positions
        self.partitions.rebuild({number: ["sensor"] for number in numbers if number in positions}, self.rig.serving)

    def other_members_commit(self, numbers: set[int]) -> None:
        for number in numbers:
            self.rig.client.offsets[number] = self.rig.client.offsets.get(number, 0) + 10

    def records(self, *states: PartitionState) -> list[Partition]:
        return self.partitions._in(*states)

    @invariant()
    def the_position_is_the_committed_offset_in_writing_and_running_and_unset_otherwise(self) -> None:
        for record in self.records(ASSIGNED, RESTORING, LOST):
            assert (record.position, record.buffered, record.needs_full_write) == (None, None, False)
        for record in self.records(WRITING, RUNNING):
            assert record.position == self.rig.client.offsets.get(record.number, 0)

    @invariant()
    def running_partitions_alone_are_polled(self) -> None:
        known = self.rig.client.assigned - self.unreported
        polled = {record.number for record in self.records(RUNNING)} & known
        assert polled == known - self.rig.client.paused

    @invariant()
    def the_table_has_rows_of_the_partitions_that_have_states(self) -> None:
        complete = {record.number for record in self.records(WRITING, RUNNING)}
        restoring = {record.number for record in self.records(RESTORING)}
        assert complete <= self.rig.serving.table.partitions <= complete | restoring
        for number in complete:
            assert self.rig.serving.table.partition_rows(number)[0] == ["sensor"]

    @invariant()
    def a_writing_partition_needs_a_full_write_and_needed_writes_are_next(self) -> None:
        assert all(record.needs_full_write for record in self.records(WRITING))
        assert self.partitions.need_full_write == bool(self.partitions.next_full_writes(self.rig.serving.table))

    @invariant()
    def restoring_partitions_are_those_of_the_restore_under_way(self) -> None:
        restoring = {record.number for record in self.records(RESTORING)}
        assert restoring == (set() if self.partitions._restore is None else self.partitions._wanted)
        assert self.partitions.are_restored == (
            self.partitions._restore is None and not self.records(ASSIGNED, RESTORING)
        )


TestLifecycle = Lifecycle.TestCase
TestLifecycle.settings = hypothesis_settings(max_examples=200, stateful_step_count=40, deadline=None)
