"""Limits the outlooks of groups that are stepped together.

An outlook of a group is one record, and an entry for each sensor of the group that the partition has. All entries of a
step are in memory at once, and each sensor's state may change. So batches are cut before the record with too many
entries or states. The cut changes no forecast and no state. The first outlook of a group always fits. It changes at
most all states of its partition, like a full write (``partitions``).
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from kafka import TopicPartition

from pipeline.forecaster.readings import Record
from pipeline.forecaster.states.table import StateTable
from pipeline.kafka.record_columns import places_of
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.group_limit")

MAX_TRANSACTION_BYTES: Final = 64_000_000  # states and forecasts; a broker accepts them within one or two seconds
MOST_ENTRIES: Final = 1_000_000  # of a step; each takes some 200 bytes
_MARK: Final = b'"outlook"'  # a sensor may have the name of a group: its readings have no such field

_Polled = Mapping[TopicPartition, Sequence[Record]]


class GroupLimit:
    """Cuts records so that the outlooks of groups in them keep to the limits.

    Args:
        most_entries: of a step.
        most_bytes: of states that the outlooks of groups change in one transaction.
    """

    def __init__(
        self, settings: Settings, most_entries: int = MOST_ENTRIES, most_bytes: int = MAX_TRANSACTION_BYTES
    ) -> None:
        groups = settings.outlooks.groups if settings.outlooks.are_on else {}
        self._groups: dict[bytes | None, tuple[str, ...]] = {name.encode(): each for name, each in groups.items()}
        self._most_entries = most_entries
        self._most_bytes = most_bytes
        self._large: set[tuple[int, bytes | None]] = set()  # partitions and groups that were logged as large

    def pieces(self, records: Sequence[Record], sensors: int) -> Iterator[Sequence[Record]]:
        """The records of a partition in one or more pieces, each within the limit of entries.

        Args:
            sensors: number of sensors that the partition has before the records.
        """
        start = entries = 0
        for place, members in self._outlooks(records, sensors):
            if entries and entries + members > self._most_entries:
                yield records[start:place]
                start, entries = place, 0
            entries += members
        yield records[start:] if start else records

    def cut(self, polled: _Polled, table: StateTable) -> tuple[_Polled, dict[TopicPartition, int]]:
        """The records for the next transaction, and for partitions with further records the offset of the first."""
        if not self._groups:
            return polled, {}
        kept: dict[TopicPartition, Sequence[Record]] = {}
        later: dict[TopicPartition, int] = {}
        entries = states = 0
        for where, records in polled.items():
            sensors, changed = table.count(where.partition), 0
            seen: set[bytes | None] = set()
            end = len(records)
            for place, members in self._outlooks(records, sensors):
                key = records[place].key
                more = 0 if key in seen else min(members, sensors + len(records) - changed)
                is_large = (states + more) * table.dtype.itemsize > self._most_bytes
                if entries and (entries + members > self._most_entries or (more and is_large)):
                    end, later[where] = place, records[place].offset
                    break
                if is_large:
                    self._warn_of_large(where.partition, key, table)
                seen.add(key)
                entries, states, changed = entries + members, states + more, changed + more
            if end:
                kept[where] = records if end == len(records) else records[:end]
        return kept, later

    def _outlooks(self, records: Sequence[Record], sensors: int) -> Iterator[tuple[int, int]]:
        """The place of each group's outlook in the records, and an upper limit of its entries.

        Args:
            sensors: number of sensors before the records; each record may bring another one.
        """
        if not self._groups:
            return
        for place in places_of(records, self._groups):
            record = records[place]
            if _MARK in (record.value or b""):
                yield place, min(len(self._groups[record.key]), sensors + len(records))

    def _warn_of_large(self, partition: int, key: bytes | None, table: StateTable) -> None:
        """Log once that one outlook of a group makes a large transaction."""
        count = len(table.known_rows(partition, self._groups[key]))
        size = count * table.dtype.itemsize
        if size <= self._most_bytes or (partition, key) in self._large:
            return
        self._large.add((partition, key))
        logger.warning(
            "an outlook of group %r changes the states of its %d sensors in partition %d: %.0f MB in one transaction, "
            "and brokers accept %.0f MB fast. Spread the sensors over more partitions, or lower outlooks.steps",
            (key or b"").decode(),
            count,
            partition,
            size / 1e6,
            self._most_bytes / 1e6,
        )
