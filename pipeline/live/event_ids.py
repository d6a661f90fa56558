"""Ids of live events: one offset per partition of each followed topic, so that a client continues without a gap.

An id is text for an HTTP header: base64url of variable-length integers. A client treats it as opaque.
"""

import base64
import binascii
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_VERSION: Final = 1
_LONGEST: Final = 200_000  # characters of an id with 10,000 partitions
_MARK_BYTES: Final = 4
_LARGEST: Final = 2**63 - 1  # Kafka's offsets have 8 bytes with a sign


class BadEventId(Exception):
    """The text is not an event id of this release."""


@dataclass(frozen=True)
class EventId:
    """Everything before these offsets was sent."""

    mark: int  # of the topics, see ``topics_mark``
    forecasts: tuple[int, ...]  # by partition: next offset
    models: tuple[int, ...]  # by partition: version of the last forecast, 0 if unknown; a change is a swap
    letters: tuple[int, ...]  # by partition of the dead letter topic: next offset

    def encode(self) -> str:
        """The text of the id."""
        raw = bytearray([_VERSION]) + self.mark.to_bytes(_MARK_BYTES, "big")
        for numbers in (self.forecasts, self.models, self.letters):
            _append(raw, len(numbers))
            for number in numbers:
                _append(raw, number)
        return base64.urlsafe_b64encode(bytes(raw)).rstrip(b"=").decode()

    @classmethod
    def decode(cls, text: str) -> "EventId":
        """The id in a text that ``encode`` made.

        Raises:
            BadEventId: the text is of another kind.
        """
        if len(text) > _LONGEST:
            raise BadEventId(f"an event id of {len(text):,} characters is too long")
        try:
            raw = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), b"-_", validate=True)
        except (UnicodeError, binascii.Error, ValueError) as error:
            raise BadEventId("not an event id of this program") from error
        if len(raw) <= _MARK_BYTES or raw[0] != _VERSION:
            raise BadEventId("not an event id of this release")
        mark, numbers = int.from_bytes(raw[1 : 1 + _MARK_BYTES], "big"), _integers(raw[1 + _MARK_BYTES :])
        lists = []
        for _ in range(3):
            if not numbers or len(numbers) <= numbers[0]:
                raise BadEventId("an event id that is cut off")
            lists.append(tuple(numbers[1 : 1 + numbers[0]]))
            del numbers[: 1 + numbers[0]]
        if numbers or len(lists[0]) != len(lists[1]):
            raise BadEventId("an event id with more numbers than it should have")
        return cls(mark, *lists)


def topics_mark(topic_ids: Sequence[str]) -> int:
    """A number that changes if a topic is created from scratch."""
    return zlib.crc32("\n".join(topic_ids).encode())


def _append(raw: bytearray, number: int) -> None:
    while number > 0x7F:
        raw.append(number & 0x7F | 0x80)
        number >>= 7
    raw.append(number)


def _integers(raw: bytes) -> list[int]:
    found, number, shift = [], 0, 0
    for byte in raw:
        number |= (byte & 0x7F) << shift
        shift += 7
        if number > _LARGEST:
            raise BadEventId("an event id with a number that is too large")
        if byte < 0x80:
            found.append(number)
            number, shift = 0, 0
    if shift:
        raise BadEventId("an event id that is cut off")
    return found
