"""The compiled reader of record batches: it finds the keys, values and numbers of records, and makes no objects.

It reads valid batches only. It leaves any other batch to ``record_batch.read_batch``, which finds the fault. Both make
the same records of the same bytes. All compiled functions and their constants are in this file: numba compiles a cached
function again if its own file changes, and would miss a change in another file.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.kernel import compiled, inner
from pipeline.kafka.record_batch import RECORD_BYTES, BatchContent, UnpackedBatch
from pipeline.kafka.record_columns import COLUMNS, RecordColumns

Bytes = NDArray[np.uint8]
Numbers = NDArray[np.int64]

_LEAST_RECORD_BYTES: Final = 7  # length, attributes, two deltas, two sizes and the number of headers
_VARINT_BYTES: Final = 9  # a longer number does not fit into 63 bits
_LARGEST: Final = 2**63 - 1  # int64
_REFUSED: Final = -(2**62)  # neither a position nor a number of bytes


def read_columns(unpacked: UnpackedBatch, limit_bytes: int) -> BatchContent | None:
    """The records of a batch as ``RecordColumns``; None if the batch is invalid, or valid in an unusual form.

    Args:
        limit_bytes: the memory limit of ``record_batch.read_batch``, from which the memory of the records is computed.
    """
    count, data = unpacked.record_count, unpacked.data
    if not 0 <= _LEAST_RECORD_BYTES * count <= len(data):
        return None
    table = np.empty((count, COLUMNS), np.int64)
    left = _read(
        np.frombuffer(data, np.uint8),
        table,
        unpacked.base_offset,
        unpacked.last_offset_delta,
        unpacked.stamped_ms,
        unpacked.is_stamped_by_broker,
        unpacked.left_bytes,
        RECORD_BYTES,
    )
    return None if left == _REFUSED else BatchContent(RecordColumns(data, table), limit_bytes - left)


def prepare() -> None:
    """Compile the kernel, or load it from the cache."""
    read_columns(UnpackedBatch(b"\x0c\x00\x00\x00\x01\x01\x00", 1, 0, 0, 0, False, 0), 0)


@compiled
def _read(
    data: Bytes,
    table: Numbers,
    base_offset: int,
    last_offset_delta: int,
    stamped_ms: int,
    by_broker: bool,
    left_bytes: int,
    header_bytes: int,
) -> int:
    """Fill the table; return the bytes of memory that are left after the headers, or ``_REFUSED``.

    Args:
        table: (n, COLUMNS) of ``record_columns``.
        left_bytes: memory for headers; header_bytes: memory of one header.
    """
    size = len(data)
    position = 0
    last_delta = -1
    for row in range(len(table)):
        length, position = _varint(data, position, size)
        if position < 0 or length < 0 or length > size - position:
            return _REFUSED
        end = position + length
        since, position = _varint(data, position + 1, end)  # after the attributes
        if position < 0:
            return _REFUSED
        delta, position = _varint(data, position, end)
        if position < 0 or delta <= last_delta or delta > last_offset_delta:
            return _REFUSED
        last_delta = delta
        key_size, position = _varint(data, position, end)
        if position < 0 or key_size > end - position:
            return _REFUSED
        key_size = max(key_size, -1)
        key_start = position
        value_size, position = _varint(data, key_start + max(key_size, 0), end)
        if position < 0 or value_size > end - position:
            return _REFUSED
        value_size = max(value_size, -1)
        value_start = position
        position += max(value_size, 0)
        if position >= end:
            return _REFUSED
        headers = 0
        if data[position] == 0:
            position += 1
        else:
            headers, position = _skip_headers(data, position, end, left_bytes // header_bytes)
            left_bytes -= headers * header_bytes
        if position != end:
            return _REFUSED
        if delta > _LARGEST - base_offset:
            return _REFUSED
        if (since > 0 and stamped_ms > _LARGEST - since) or (since < 0 and stamped_ms < -_LARGEST - since):
            return _REFUSED
        # The columns of ``record_columns`` by number, because numba would miss a change of an imported constant.
        table[row, 0] = key_start
        table[row, 1] = key_size
        table[row, 2] = value_start
        table[row, 3] = value_size
        table[row, 4] = headers
        table[row, 5] = end
        table[row, 6] = base_offset + delta
        table[row, 7] = stamped_ms if by_broker else stamped_ms + since
    return left_bytes if position == size else _REFUSED


@inner
def _skip_headers(data: Bytes, position: int, end: int, most: int) -> Any:
    """The number of headers, at most ``most``, and the position after them; a negative position if it refuses them."""
    count, position = _varint(data, position, end)
    if position < 0 or count <= 0 or count > most:
        return 0, _REFUSED
    for _ in range(count):
        name_size, position = _varint(data, position, end)
        if position < 0 or name_size < 0 or name_size > end - position:
            return 0, _REFUSED
        value_size, position = _varint(data, position + name_size, end)
        if position < 0 or value_size > end - position:
            return 0, _REFUSED
        position += max(value_size, 0)
    return count, position


@inner
def _varint(data: Bytes, position: int, end: int) -> Any:
    """A zigzag varint and the position after it; a negative position if the number is too long or cut off."""
    value = np.uint64(0)
    shift = np.uint64(0)
    for _ in range(_VARINT_BYTES):
        if position >= end:
            return 0, _REFUSED
        byte = data[position]
        position += 1
        value |= np.uint64(byte & np.uint8(0x7F)) << shift
        if byte < 0x80:
            return np.int64(value >> np.uint64(1)) ^ -np.int64(value & np.uint64(1)), position
        shift += np.uint64(7)
    return 0, _REFUSED
