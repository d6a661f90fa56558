"""Record batches that cannot be read: they are damaged, or too large once they are decompressed.

The consumer returns such a batch as one record, so that every reader of a topic sees it at the same place: the record
has the batch's first offset, no key, and an ``UnreadableBatch`` as its value. ``ReadingDecoder`` rejects it, so the
forecaster sets it aside as one dead letter.
"""

from typing import Final

DAMAGED: Final = "damaged-batch"
OVERSIZED: Final = "oversized-batch"
BATCH_REASONS: Final = (DAMAGED, OVERSIZED)


class UnreadableBatch(bytes):
    """The bytes of a record batch as they are in the log, and why its records cannot be read.

    Attributes:
        reason: one of ``BATCH_REASONS``.
        detail: the fault, and the next step for the user.
        first_offset: offset of the batch's first record.
        last_offset: offset of its last record, at least ``first_offset``.
        records: the number of records that the batch claims to have, at least 1.
    """

    reason: str
    detail: str
    first_offset: int
    last_offset: int
    records: int

    @classmethod
    def of(
        cls, content: bytes, reason: str, detail: str, *, first_offset: int, last_offset: int, records: int
    ) -> "UnreadableBatch":
        """The batch with these attributes."""
        made = cls(content)
        made.reason, made.detail = reason, detail
        made.first_offset, made.last_offset = first_offset, max(first_offset, last_offset)
        # A damaged batch may claim any number; it cannot have more records than offsets.
        made.records = min(max(1, records), made.last_offset - first_offset + 1)
        return made
