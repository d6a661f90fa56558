"""Kafka offsets in a Delta table, as its application transactions: a commit has rows and offsets, or neither.

``TOPIC-PARTITION`` has the next offset to read, and ``TOPIC-partitions`` the number of partitions. Delta stores only
numbers, so the topic's id is in the name of ``TOPIC-id-ID``; ``TOPIC-ids`` says that there is one. A recreated topic
has another id.
"""

from collections.abc import Mapping

from deltalake import DeltaTable, Transaction


def stored_offsets(table: DeltaTable, topic: str) -> dict[int, int]:
    """The next offset to append by partition of ``topic``; partitions never read are absent."""
    partitions = table.transaction_version(f"{topic}-partitions") or 0
    found = {number: table.transaction_version(f"{topic}-{number}") for number in range(partitions)}
    return {number: offset for number, offset in found.items() if offset is not None}


def offset_marks(
    topic: str, stored: Mapping[int, int], next_offsets: Mapping[int, int], topic_id: str | None
) -> list[Transaction]:
    """The application transactions of a commit that advances from ``stored`` to ``next_offsets``."""
    ahead = {part: offset for part, offset in next_offsets.items() if offset > stored.get(part, -1)}
    marks = [Transaction(f"{topic}-{partition}", offset) for partition, offset in sorted(ahead.items())]
    marks.append(Transaction(f"{topic}-partitions", max([*stored, *ahead]) + 1))
    if topic_id is not None:
        marks += [Transaction(f"{topic}-ids", 1), Transaction(f"{topic}-id-{topic_id}", 1)]
    return marks


def is_of_another_topic(table: DeltaTable, topic: str, topic_id: str) -> bool:
    """Whether the stored offsets of ``topic`` belong to a topic with another id; False if no id is stored."""
    known = table.transaction_version(f"{topic}-ids") is not None
    return known and table.transaction_version(f"{topic}-id-{topic_id}") is None
