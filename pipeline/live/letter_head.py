"""Reads the part of a dead letter that people see: its reason, its place, and the first bytes of its key.

The original may take 16 MB, and any producer may write to the topic. The process keeps the latest dead letters in
memory, and every browser receives them.
"""

from dataclasses import replace
from typing import Any, Final

from pipeline.dead_letter_form import DeadLetter
from pipeline.messages import LONGEST_SENSOR_ID_BYTES

_MOST_REASON_CHARACTERS: Final = 100
_MOST_DETAIL_CHARACTERS: Final = 500
_LARGEST: Final = 2**53  # JSON's readers in browsers hold larger whole numbers only roughly


def read_letter(record: Any) -> DeadLetter | None:
    """The dead letter in a logged record, without the original's value and headers.

    None if the record is not a dead letter. Any bytes are accepted.
    """
    letter = DeadLetter.of(record)
    if letter is None or not all(0 <= one <= _LARGEST for one in (letter.partition, letter.offset, letter.records)):
        return None
    return replace(
        letter,
        key=None if letter.key is None else letter.key[:LONGEST_SENSOR_ID_BYTES],
        value=None,
        headers=(),
        reason=letter.reason[:_MOST_REASON_CHARACTERS],
        detail=letter.detail[:_MOST_DETAIL_CHARACTERS],
    )
