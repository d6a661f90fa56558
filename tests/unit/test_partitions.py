"""A partition is served from the offset that is committed when it arrives, not from one that was asked for before."""

from collections.abc import Callable, Generator
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.errors import KafkaTimeoutError
from kafka.structs import OffsetAndMetadata

from pipeline.forecaster.changelog import Restored
from pipeline.forecaster.partitions import Partitions
from pipeline.forecaster.position import Committed


class Client:
    """Keeps a question that timed out, with the answer of its time, for the next one who asks; like kafka-python."""

    def __init__(self) -> None:
        self.offset: int | None = None  # what the group has committed now
        self.is_slow = False
        self.paused: set[int] = set()
        self.positions: dict[int, int] = {}
        self._asked: dict[int, int | None] = {}

    def committed(self, where: TopicPartition, *, metadata: bool, timeout_ms: int) -> OffsetAndMetadata | None:
        assert metadata
        answer = self._asked.setdefault(where.partition, self.offset)
        if self.is_slow:
            raise KafkaTimeoutError(f"no answer in {timeout_ms} ms")
        del self._asked[where.partition]
        return None if answer is None else OffsetAndMetadata(answer, "", -1)

    def pause(self, where: TopicPartition) -> None:
        self.paused.add(where.partition)

    def resume(self, where: TopicPartition) -> None:
        self.paused.discard(where.partition)

    def seek(self, where: TopicPartition, offset: int) -> None:
        self.positions[where.partition] = offset


class StateLog:
    """Restores nothing but positions."""

    def restore(
        self, serving: Any, wanted: set[int], committed: Callable[[int], Committed | None], **_: Any
    ) -> Generator[None, None, Restored]:
        positions = {}
        for partition in sorted(wanted):
            while partition not in positions:
                try:
                    found = committed(partition)
                    positions[partition] = 0 if found is None else found.position.next
                except KafkaTimeoutError:
                    yield
        return Restored({partition: positions[partition] for partition in wanted})


class Table:
    def drop_partition(self, partition: int) -> None:
        pass


class Served:
    table = Table()


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def partitions(client: Client) -> Partitions:
    state_log: Any = StateLog()
    return Partitions(client, "readings", state_log, accept_loss=False)


def restored(partitions: Partitions) -> dict[int, int]:
    serving: Any = Served()
    for _ in range(10):
        done = partitions.restore(serving)
        if done is not None and partitions.are_served:
            return partitions.positions
    raise AssertionError("not restored after 10 turns")


def test_an_offset_that_another_transaction_still_holds_up_is_waited_for(
    client: Client, partitions: Partitions
) -> None:
    serving: Any = Served()
    client.offset, client.is_slow = 7, True
    partitions.arrive([0])
    assert partitions.restore(serving) is None
    assert not partitions.are_served
    client.is_slow = False
    assert restored(partitions) == {0: 7}
    assert client.positions == {0: 7}


def test_the_answer_to_a_question_of_before_the_partition_was_lost_is_not_used(
    client: Client, partitions: Partitions
) -> None:
    serving: Any = Served()
    client.offset, client.is_slow = 7, True
    partitions.arrive([0])
    assert partitions.restore(serving) is None
    partitions.leave([0], serving)
    client.offset = 90  # by the member that had it meanwhile
    partitions.arrive([0])
    client.is_slow = False
    assert restored(partitions) == {0: 90}


def test_the_answer_to_a_question_of_before_starting_over_is_not_used(client: Client, partitions: Partitions) -> None:
    serving: Any = Served()
    client.offset, client.is_slow = 7, True
    partitions.arrive([0, 1])
    assert partitions.restore(serving) is None
    for offset in (40, 90):
        partitions.start_over(serving)
        client.offset = offset
        assert partitions.restore(serving) is None  # still without an answer
    client.is_slow = False
    assert restored(partitions) == {0: 90, 1: 90}


def test_what_is_not_saved_is_not_polled(client: Client) -> None:
    class Unsaved(StateLog):
        def restore(self, *_: Any, **__: Any) -> Generator[None, None, Restored]:
            yield
            return Restored(positions={0: 5, 1: 7}, unsaved={0})

    log: Any = Unsaved()
    served: Any = Served()
    partitions = Partitions(client, "readings", log, accept_loss=False)
    client.paused = {0, 1}
    partitions.arrive([0, 1])
    while partitions.restore(served) is None:
        pass
    assert client.paused == {0}
    assert partitions.positions == client.positions == {0: 5, 1: 7}
    partitions.saved([0])
    assert not client.paused
    assert not partitions.unsaved
