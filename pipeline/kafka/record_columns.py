"""Fetched records as columns: the positions of keys and values in the bytes of their batches.

``RecordColumns`` is a sequence of ``FetchedRecord`` objects, and makes an object only for a record that is asked for.
Code that processes whole batches takes the columns and needs no object for a record.
"""

import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from typing import Final, overload

import numpy as np
from numpy.typing import NDArray

from pipeline.kafka.record_batch import FetchedRecord, Headers, read_headers

# Columns of a record. Positions and sizes are in bytes, a size of -1 is a null, and END is the position after the
# record. HEADERS is the number of headers, TIMESTAMP in milliseconds. The kernels of records and readings repeat these
# numbers; a test compares them.
KEY_START, KEY_SIZE, VALUE_START, VALUE_SIZE, HEADERS, END, OFFSET, TIMESTAMP = range(8)
COLUMNS: Final = 8
_POSITIONS: Final = (KEY_START, VALUE_START, END)

Numbers = NDArray[np.int64]


class RecordColumns(Sequence[FetchedRecord]):
    """n records of one partition, in offset order. A slice with step 1 shares the memory.

    Args:
        data: the decompressed records of one or more batches.
        table: (n, COLUMNS) positions and numbers of each record.
    """

    __slots__ = ("data", "table")

    def __init__(self, data: bytes, table: Numbers) -> None:
        self.data = data
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[FetchedRecord]:
        return self._records(self.table)

    @overload
    def __getitem__(self, place: int) -> FetchedRecord: ...

    @overload
    def __getitem__(self, place: slice) -> "RecordColumns": ...

    def __getitem__(self, place: int | slice) -> "FetchedRecord | RecordColumns":
        if isinstance(place, slice):
            return RecordColumns(self.data, self.table[place])
        return next(self._records(self.table[place][None]))

    def __repr__(self) -> str:
        return f"RecordColumns({list(self)!r})"

    @property
    def offsets(self) -> Numbers:
        """(n,) the offsets."""
        return self.table[:, OFFSET]

    @property
    def timestamps(self) -> Numbers:
        """(n,) milliseconds since the epoch, as the producer or the broker stamped them."""
        return self.table[:, TIMESTAMP]

    def pick(self, places: NDArray[np.intp]) -> "RecordColumns":
        """The records at ``places``."""
        return RecordColumns(self.data, self.table[places])

    def _records(self, table: Numbers) -> Iterator[FetchedRecord]:
        data = self.data
        none: Headers = []
        for key_start, key_size, start, size, headers, _, offset, timestamp in table.tolist():
            found = none
            if headers:
                found, _ = read_headers(data, start + max(size, 0), sys.maxsize)
            yield FetchedRecord(
                None if key_size < 0 else data[key_start : key_start + key_size],
                None if size < 0 else data[start : start + size],
                offset,
                found,
                timestamp,
            )


def join_records(runs: Sequence[Sequence[FetchedRecord]]) -> Sequence[FetchedRecord]:
    """The records of consecutive runs of one partition as one sequence; columns if all runs are columns.

    Args:
        runs: at least one; each has a record.
    """
    if len(runs) == 1:
        return runs[0]
    columns = [run for run in runs if isinstance(run, RecordColumns)]
    if len(columns) < len(runs):  # a batch that the kernel does not read, or one that cannot be read at all
        return list(chain.from_iterable(runs))
    pieces, shifts, size = [], [], 0
    for run in columns:
        begin, end = run.table.item(0, KEY_START), run.table.item(-1, END)
        pieces.append(memoryview(run.data)[begin:end])  # the join below copies; a slice of bytes would copy too
        shifts.append(size - begin)
        size += end - begin
    table = np.concatenate([run.table for run in columns])
    shift = np.repeat(shifts, [len(run) for run in columns])
    for column in _POSITIONS:
        table[:, column] += shift
    return RecordColumns(b"".join(pieces), table)


def offsets_of(records: Sequence[FetchedRecord]) -> Numbers:
    """(n,) the offsets of records."""
    if isinstance(records, RecordColumns):
        return records.offsets
    return np.fromiter((record.offset for record in records), np.int64, len(records))


def end_offset(records: Sequence[FetchedRecord]) -> int:
    """The offset after the last of at least one record."""
    if isinstance(records, RecordColumns):
        return int(records.table[-1, OFFSET]) + 1
    return records[-1].next_offset


def places_of(records: Sequence[FetchedRecord], keys: Collection[bytes | None]) -> Iterator[int]:
    """The places of the records with one of these keys, ascending."""
    places: Iterable[int] = range(len(records))
    if isinstance(records, RecordColumns):  # only keys of the right sizes become objects
        sizes = [-1 if key is None else len(key) for key in keys]
        places = np.flatnonzero(np.isin(records.table[:, KEY_SIZE], sizes)).tolist()
    return (place for place in places if records[place].key in keys)


def places_with_headers(records: Sequence[FetchedRecord]) -> list[int]:
    """The places of the records with headers."""
    if isinstance(records, RecordColumns):
        found: list[int] = records.table[:, HEADERS].nonzero()[0].tolist()
        return found
    return [place for place, record in enumerate(records) if record.headers]


def timestamps_of(records: Sequence[FetchedRecord]) -> Numbers:
    """(n,) the timestamps of records, in milliseconds."""
    if isinstance(records, RecordColumns):
        return records.timestamps
    return np.fromiter((record.timestamp for record in records), np.int64, len(records))
