"""The compiled kernel of ``batch_producer``: writes records in the form of Kafka's record batches, version 2.

It takes the strings as arrays (``byte_strings.ByteStrings``), so that a record costs no Python object. All compiled
functions are in this file: numba compiles a cached function again if its own file changes, and would miss a change in
another file. ``batch_producer`` imports this module only for records in columns, which only the forecaster appends:
numba takes most of a second to load.
"""

import numpy as np
from numpy.typing import NDArray

from model.kernel import compiled, inner
from pipeline.kafka.byte_strings import ByteStrings

Buffer = NDArray[np.uint8]
Places = NDArray[np.int64]


@inner
def _varint_size(value: int) -> int:
    """Bytes of a zigzag varint."""
    rest = (value << 1) ^ (value >> 63)
    size = 1
    while rest > 0x7F:
        rest >>= 7
        size += 1
    return size


@inner
def _write_varint(out: Buffer, at: int, value: int) -> int:
    """Write a zigzag varint at ``at``, and return the place after it."""
    rest = (value << 1) ^ (value >> 63)
    while rest > 0x7F:
        out[at] = 0x80 | (rest & 0x7F)
        rest >>= 7
        at += 1
    out[at] = rest
    return at + 1


@inner
def _copy(out: Buffer, at: int, data: Buffer, start: int, end: int) -> int:
    """Copy a string to ``at``, and return the place after it."""
    to, source = np.uint64(at), np.uint64(start)  # unsigned: no check for negative places, so the loop is vectorised
    for i in range(np.uint64(end - start)):
        out[to + i] = data[source + i]
    return at + end - start


@compiled
def frame_records(
    keys: Buffer,
    key_starts: Places,
    key_ends: Places,
    values: Buffer,
    value_starts: Places,
    value_ends: Places,
    headers: Buffer,
    header_starts: Places,
    header_ends: Places,
    start: int,
    first_offset: int,
    since_first_ms: int,
    room: int,
    at_least_one: bool,
    out: Buffer,
) -> tuple[int, int, int]:
    """Write the records from ``start`` on that fit into ``room``; returns their bytes, number and largest size.

    Args:
        keys, values, headers: n strings each; a header block begins with its number of headers.
        first_offset: offset of the first record in its batch.
        since_first_ms: time since the batch's first record; negative if the clock was set back.
        at_least_one: whether the first record is written even if it does not fit.
        out: has at least ``room`` bytes, or enough for all n records; and enough for the first record.
    """
    size = largest = count = 0
    time_size = _varint_size(since_first_ms)
    for i in range(start, len(key_starts)):
        offset = first_offset + count
        key_size = key_ends[i] - key_starts[i]
        value_size = value_ends[i] - value_starts[i]
        length = 1 + time_size + _varint_size(offset)
        length += _varint_size(key_size) + key_size + _varint_size(value_size) + value_size
        length += header_ends[i] - header_starts[i]
        whole = _varint_size(length) + length
        if size + whole > room and not (at_least_one and count == 0):
            break
        at = _write_varint(out, size, length)
        out[at] = 0  # no attributes
        at = _write_varint(out, at + 1, since_first_ms)
        at = _write_varint(out, at, offset)
        at = _write_varint(out, at, key_size)
        at = _copy(out, at, keys, key_starts[i], key_ends[i])
        at = _write_varint(out, at, value_size)
        at = _copy(out, at, values, value_starts[i], value_ends[i])
        size = _copy(out, at, headers, header_starts[i], header_ends[i])
        largest = max(largest, whole)
        count += 1
    return size, count, largest


def prepare() -> None:
    """Compile the kernel, or load it from numba's cache."""
    one = ByteStrings.repeated(b"\x00", 1)
    parts = (one.data, one.starts, one.ends)
    frame_records(*parts, *parts, *parts, 0, 0, 0, 64, True, np.empty(64, np.uint8))
