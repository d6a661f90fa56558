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


class Rebalances(ConsumerRebalanceListener):  # type: ignore[misc]
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
        self._note("assigned", partitions)

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """The batch before was committed or aborted: the client rebalances only inside ``poll``."""
        self._note("revoked", revoked)

    def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        """Others own them already; whatever is still committed for them is fenced by the group's generation."""
        self._note("revoked", lost)

    def drain(self) -> list[tuple[str, frozenset[int]]]:
        """What happened since the last call: ("assigned" or "revoked", partitions), in order."""
        with self._lock:
            events, self._events = self._events, []
        return events

    def _note(self, what: str, partitions: Iterable[TopicPartition]) -> None:
        with self._lock:
            self._events.append((what, frozenset(partition.partition for partition in partitions)))


def is_member(membership: Any) -> bool:
    """Whether group metadata is of a member: past the poll interval it is not, and the broker takes it all the same."""
    return membership.generation_id >= 0 and bool(membership.member_id)
