"""Rebalances of the consumer group, passed from the client's thread to the loop's.

kafka-python calls the listener on its I/O thread. A slow call there would delay heartbeats, and a request to the broker
would wait for its own thread. So the listener only pauses partitions and records events. The loop applies the events
between two batches, when no transaction is open.
"""

import threading
from collections.abc import Collection, Iterable
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.subscription_state import ConsumerRebalanceListener


class RebalanceListener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Listener that pauses assigned partitions, and keeps all events until ``drain``."""

    def __init__(self, consumer: KafkaConsumer) -> None:
        self._consumer = consumer
        self._lock = threading.Lock()
        self._events: list[tuple[str, frozenset[int]]] = []

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Pause the partitions: the loop restores their states and sets their positions before the first fetch."""
        self._consumer.pause(*assigned)
        for partition in assigned:
            # Without a position the client looks up the committed offset, and raises an error if the group has none.
            self._consumer.seek(partition, 0)
        self._record("assigned", assigned)

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """No transaction is open here, because the client rebalances only inside ``poll``."""
        self._record("revoked", revoked)

    def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        """Other members own these partitions already. Brokers fence our commits for them by the group's generation."""
        self._record("revoked", lost)

    def drain(self) -> list[tuple[str, frozenset[int]]]:
        """The events since the last call, in order: "assigned" or "revoked", and the partitions."""
        with self._lock:
            events, self._events = self._events, []
        return events

    def _record(self, event: str, partitions: Iterable[TopicPartition]) -> None:
        with self._lock:
            self._events.append((event, frozenset(partition.partition for partition in partitions)))


class GenerationTracker:
    """Tells whether this process was a member of every generation of the group.

    If a generation passed without this member, another member has had its partitions, and the positions and states in
    memory are out of date. kafka-python 3.0.12 does not always report that. If its JoinGroup request is answered with
    "unknown member", it joins again without ``on_partitions_lost`` and claims its old partitions, which the group may
    then assign to it.
    """

    def __init__(self) -> None:
        self._member_id = ""
        self._generation = -1

    def is_continuous(self, group_metadata: Any) -> bool:
        """Whether no generation can have passed without this member since the last call."""
        if not is_member(group_metadata):
            return True  # no commit can use this metadata; the metadata of the next generation decides
        is_first = not self._member_id
        # The same member, at most one generation later: it was in both, and none lies between.
        goes_on = group_metadata.member_id == self._member_id and group_metadata.generation_id - self._generation <= 1
        self._member_id, self._generation = group_metadata.member_id, group_metadata.generation_id
        return is_first or goes_on


def is_member(group_metadata: Any) -> bool:
    """Whether group metadata names a member.

    The metadata names no member after this forecaster has exceeded the poll interval. Brokers accept it nevertheless.
    """
    return group_metadata.generation_id >= 0 and bool(group_metadata.member_id)
