"""What the consumer group says, carried from the client's thread to the loop's.

The client calls the listener on its own I/O thread, where anything slow would hold up heartbeats and anything that
asks the broker would wait for itself. So the listener only stops the fetching and takes a note; the loop acts on the
notes between two batches, when no transaction is open.
"""

import threading
from collections.abc import Iterable
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.subscription_state import ConsumerRebalanceListener


class RebalanceListener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Listener that pauses what arrives and keeps what happened until ``drain``."""

    def __init__(self, consumer: KafkaConsumer) -> None:
        self._consumer = consumer
        self._lock = threading.Lock()
        self._events: list[tuple[str, frozenset[int]]] = []

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Nothing is fetched before the partitions' states are restored and the loop has set their positions."""
        partitions = list(assigned)
        self._consumer.pause(*partitions)
        for partition in partitions:
            # Any position keeps the client from looking up its own, which would fail where none is committed.
            self._consumer.seek(partition, 0)
        self._record("assigned", partitions)

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """The batch before was committed or aborted: the client rebalances only inside ``poll``."""
        self._record("revoked", revoked)

    def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        """Others own them already; whatever is still committed for them is fenced by the group's generation."""
        self._record("revoked", lost)

    def drain(self) -> list[tuple[str, frozenset[int]]]:
        """What happened since the last call: ("assigned" or "revoked", partitions), in order."""
        with self._lock:
            events, self._events = self._events, []
        return events

    def _record(self, what: str, partitions: Iterable[TopicPartition]) -> None:
        with self._lock:
            self._events.append((what, frozenset(partition.partition for partition in partitions)))


class GenerationTracker:
    """Tells whether this process has been in the group without a break.

    A member that was out of the group for a generation has had a successor. The client does not always say so: where
    its JoinGroup itself is answered with "unknown member", kafka-python 3.0.12 joins again without
    ``on_partitions_lost``, still claims what it had, and may be left with it. Nothing then tells the listener that the
    positions and states of those partitions are of before the successor.
    """

    def __init__(self) -> None:
        self._member_id = ""
        self._generation = -1

    def is_continuous(self, group_metadata: Any) -> bool:
        """Whether no generation can have passed without this member since the last call; no member's is left out."""
        if not is_member(group_metadata):
            return True  # nothing can be committed with it; the next generation tells
        is_first = not self._member_id
        # One generation on as the same member: it was in both, and none lies between.
        goes_on = group_metadata.member_id == self._member_id and group_metadata.generation_id - self._generation <= 1
        self._member_id, self._generation = group_metadata.member_id, group_metadata.generation_id
        return is_first or goes_on


def is_member(group_metadata: Any) -> bool:
    """Whether group metadata is of a member: past the poll interval it is not, and the broker takes it all the same."""
    return group_metadata.generation_id >= 0 and bool(group_metadata.member_id)
