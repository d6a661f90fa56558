"""The records of the dead letter topic: a rejected record with headers that say why, and where it was.

Changing anything here is a new version of the product. ``pipeline.dead_letters`` reads and republishes these records.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from pipeline.messages import Headers, InputPosition, ReadingDecoder, Rejected
from pipeline.outlook_messages import BAD_OUTLOOK
from pipeline.sensor_limit import TOO_MANY_SENSORS
from pipeline.unreadable_batch import BATCH_REASONS, UnreadableBatch

IMPLAUSIBLE: Final = "implausible-time"  # the reason of ``pipeline.reading_times``
REASONS: Final = (*ReadingDecoder.REASONS, TOO_MANY_SENSORS, IMPLAUSIBLE, BAD_OUTLOOK)
BATCH_LAST_OFFSET: Final = "streamgru-last-offset"
BATCH_RECORDS: Final = "streamgru-records"
_MOST_DETAIL_BYTES: Final = 500
# Headers that `dead_letter` appends to the original's; if the original was cut, its size stands before them.
_HEADERS: Final = ("streamgru-reason", "streamgru-detail", "streamgru-topic", "streamgru-partition", "streamgru-offset")
TRUNCATED: Final = "streamgru-truncated"

_Number = Annotated[str, msgspec.Meta(pattern="^[0-9]+$")]


class DeadLetterHeaders(
    msgspec.Struct, frozen=True, kw_only=True, rename=lambda field: "streamgru-" + field.replace("_", "-")
):
    """The headers that follow those of the original, in their order; each value is text in UTF-8."""

    truncated: Annotated[
        _Number | msgspec.UnsetType,
        msgspec.Meta(description="bytes of the original's key, value and headers, if they were cut"),
    ] = msgspec.UNSET
    last_offset: Annotated[
        _Number | msgspec.UnsetType, msgspec.Meta(description="last offset of a batch that cannot be read")
    ] = msgspec.UNSET
    records: Annotated[
        _Number | msgspec.UnsetType, msgspec.Meta(description="records of a batch that cannot be read")
    ] = msgspec.UNSET
    reason: Annotated[str, msgspec.Meta(description="why the record was rejected")]
    detail: Annotated[str, msgspec.Meta(description="the reason in words, at most 500 bytes; may change")]
    topic: Annotated[str, msgspec.Meta(description="topic of the rejected record")]
    partition: Annotated[_Number, msgspec.Meta(description="partition of the rejected record")]
    offset: Annotated[_Number, msgspec.Meta(description="offset of the rejected record, or the first one of its batch")]


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
        ("streamgru-detail", _cut(rejected.detail)),
        ("streamgru-topic", position.topic.encode()),
        ("streamgru-partition", str(position.partition).encode()),
        ("streamgru-offset", str(position.offset).encode()),
    ]
    return DeadLetterRecord(key, value, headers)


@dataclass(frozen=True)
class DeadLetter:
    """A record of the dead letter topic: the original's bytes and position, and the reason of its rejection."""

    at_partition: int  # position on the dead letter topic
    at_offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]  # the original's
    reason: str
    detail: str
    topic: str  # position of the original
    partition: int
    offset: int
    set_aside_ms: int
    whole_bytes: int | None = None  # size of the original's key, value and headers; None unless it was cut
    last_offset: int | None = None  # of a batch that cannot be read, whose bytes are the value; None for a record
    records: int = 1  # in the batch

    @classmethod
    def of(cls, record: Any) -> "DeadLetter | None":
        """The dead letter in a record; None if the record lacks a dead letter's headers."""
        headers = list(record.headers or ())
        # Only the last headers are ours: the original may have headers of the same names.
        ours, headers = dict(headers[-len(_HEADERS) :]), headers[: -len(_HEADERS)]
        try:
            # Earlier versions cut a detail inside a character.
            reason, detail, topic, partition, offset = (ours[name].decode(errors="replace") for name in _HEADERS)
            last_offset, records = None, 1
            if reason in BATCH_REASONS:
                records, last_offset = int(_pop(headers, BATCH_RECORDS)), int(_pop(headers, BATCH_LAST_OFFSET))
            whole_bytes = int(headers.pop()[1]) if headers and headers[-1][0] == TRUNCATED else None
            return cls(
                at_partition=record.partition,
                at_offset=record.offset,
                key=record.key,
                value=record.value,
                headers=tuple(headers),
                reason=reason,
                detail=detail,
                topic=topic,
                partition=int(partition),
                offset=int(offset),
                set_aside_ms=record.timestamp,
                whole_bytes=whole_bytes,
                last_offset=last_offset,
                records=records,
            )
        except (KeyError, ValueError, TypeError, AttributeError):  # a header is missing, null, or not a number
            return None


def _cut(detail: str) -> bytes:
    """The detail as UTF-8, cut between two characters."""
    return detail.encode(errors="replace")[:_MOST_DETAIL_BYTES].decode(errors="ignore").encode()


def _pop(headers: list[tuple[str, bytes | None]], name: str) -> bytes:
    """The value of the last header, which must have this name; removes the header."""
    found, value = headers.pop() if headers else ("", None)
    if found != name or value is None:
        raise KeyError(name)
    return value


def _headers_bytes(headers: Headers) -> int:
    """Bytes of the headers in a record, including the length fields of their names and values."""
    parts = [
        part for name, value in headers for part in (len(name.encode(errors="surrogateescape")), len(value or b""))
    ]
    return sum(part + max(1, -(-(2 * part).bit_length() // 7)) for part in parts)
