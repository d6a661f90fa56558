"""The records of the dead letter topic: a rejected record with headers that say why, and where it was.

Changing anything here is a new version of the product. ``pipeline.dead_letters`` reads and republishes these records.
"""

from typing import Final, NamedTuple

from pipeline.messages import Headers, InputPosition, Rejected
from pipeline.unreadable_batch import UnreadableBatch

BATCH_LAST_OFFSET: Final = "streamgru-last-offset"
BATCH_RECORDS: Final = "streamgru-records"


class DeadLetterRecord(NamedTuple):
    """Key, value and headers of a dead letter."""

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


def dead_letter(
    key: bytes | None,
    value: bytes | None,
    original: Headers,
    rejected: Rejected,
    position: InputPosition,
    limit_bytes: int,
) -> DeadLetterRecord:
    """The dead letter of a rejected record: its key, value and headers, then headers with the reason and its position.

    The size limit of the readings topic applies to compressed bytes: 20 MB of spaces pass it as 50 KB. The dead letter
    topic would refuse such a record at every attempt, so key, value and headers are cut to ``limit_bytes`` in all. A
    reading that was sent uncompressed always fits. The value is cut first. If key and headers alone exceed the limit,
    the headers are discarded and the key is cut. The header ``streamgru-truncated`` then holds the original size.

    A batch that cannot be read is one dead letter, with the bytes of the batch as its value. Two more headers hold its
    last offset and the number of its records.
    """
    headers = list(original)
    batch = value if isinstance(value, UnreadableBatch) else None
    room = limit_bytes - _headers_bytes(headers)
    key_bytes, value_bytes = len(key or b""), len(value or b"")
    if key_bytes + value_bytes > room:
        size = limit_bytes - room + key_bytes + value_bytes
        if key_bytes > room:
            headers, room = [], limit_bytes
        key = key and key[:room]
        value = value and value[: room - len(key or b"")]
        headers.append(("streamgru-truncated", str(size).encode()))
    if batch is not None:
        headers.append((BATCH_LAST_OFFSET, str(batch.last_offset).encode()))
        headers.append((BATCH_RECORDS, str(batch.records).encode()))
    headers += [
        ("streamgru-reason", rejected.reason.encode()),
        ("streamgru-detail", rejected.detail.encode(errors="replace")[:500]),
        ("streamgru-topic", position.topic.encode()),
        ("streamgru-partition", str(position.partition).encode()),
        ("streamgru-offset", str(position.offset).encode()),
    ]
    return DeadLetterRecord(key, value, headers)


def _headers_bytes(headers: Headers) -> int:
    """Bytes of the headers in a record, including the length fields of their names and values."""
    parts = [
        part for name, value in headers for part in (len(name.encode(errors="surrogateescape")), len(value or b""))
    ]
    return sum(part + max(1, -(-(2 * part).bit_length() // 7)) for part in parts)
