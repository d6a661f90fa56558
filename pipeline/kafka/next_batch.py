"""Finds the batch after a damaged one by asking the broker, because the header of a damaged batch cannot be trusted.

If the fetch that brought the damaged batch ends with it, the offset after the batch is unknown. A last offset that is
too high would skip good readings, and one that is too low would set the batch aside twice. The broker itself finds
offsets by its index and by the headers on its disk, so a fetch at an offset behind the damaged batch may bring this
batch again. A fetch never goes beyond the end of a segment.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from itertools import islice
from typing import Any, Final

from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError, KafkaTimeoutError

from pipeline.kafka.record_batch import first_offsets

# Bytes that a fetch may have beyond the damaged batch: at least the header of the next batch, and a few entries of the
# broker's index, which has one per 4 KiB or batch.
BEYOND_BYTES: Final = 2 * 1024 * 1024

_BASES: Final = 3  # first offsets taken from a fetch
_TIMEOUT_S: Final = 30.0  # the broker has the records, so it answers at once

Fetch = Callable[[int], Sequence[int]]


def find_next_base(fetch: Fetch, damaged_base: int, end: int) -> int:
    """The first offset of the batch after a damaged one; ``end`` if it is the last batch.

    Args:
        fetch: returns the first offsets of the batches that the broker returns for an offset, ascending; an empty list
            if the broker has none.
        end: the end of the log for this reader, above ``damaged_base``.
    """
    # The wanted offset is the lowest first offset in (low, high], and ``best`` is the lowest one seen.
    low, high, best = damaged_base, end, end
    middle = damaged_base
    while True:
        found = fetch(middle)
        after = [base for base in found if base > damaged_base]
        if not after:
            # No batch follows, or none in the segment of the damaged batch, which claims this offset.
            low = middle
        elif damaged_base in found:
            return after[0]
        else:
            best = min(best, after[0])
            high = min(middle, after[0])
        if low + 1 >= high:
            return best
        middle = (low + high) // 2


def ask_next_base(consumer: KafkaConsumer, where: TopicPartition, damaged_base: int, size: int) -> int:
    """``find_next_base`` with a consumer of its own, which has the options of ``consumer``.

    Private: ``_fetcher``, whose ``PartitionRecords`` make records of fetched bytes.
    Why: the client returns records of good batches only.
    Without it: offsets of a damaged batch are guessed.
    Tested with: kafka-python >=3.0.12,<3.1.
    Goes when: the client returns the first offsets of batches.

    Args:
        size: bytes of the damaged batch.

    Raises:
        KafkaTimeoutError: the broker does not answer.
    """
    size += BEYOND_BYTES
    options = {name: consumer.config[name] for name in KafkaConsumer.DEFAULT_CONFIG if name in consumer.config}
    options |= {
        "group_id": None,
        "enable_incremental_fetch_sessions": False,  # the broker answers also if it has no batch
        "max_partition_fetch_bytes": max(size, options["max_partition_fetch_bytes"]),
        "fetch_max_bytes": max(size, options["fetch_max_bytes"]),
    }
    with closing(KafkaConsumer(**options)) as asking:
        answers: dict[int, list[int]] = {}
        asking._fetcher.PartitionRecords = partial(_FirstOffsets, answers)
        asking.assign([where])
        end = asking.end_offsets([where])[where]
        return find_next_base(partial(_fetch, asking, answers, where), damaged_base, max(end, damaged_base + 1))


def _fetch(asking: KafkaConsumer, answers: dict[int, list[int]], where: TopicPartition, offset: int) -> list[int]:
    deadline = time.monotonic() + _TIMEOUT_S
    asking.seek(where, offset)
    while time.monotonic() < deadline:
        asking.poll(timeout_ms=50)
        if offset in answers:
            return answers[offset]
    raise KafkaTimeoutError(f"the broker returned no batch of {where.topic}, partition {where.partition}, at {offset}")


class _FirstOffsets(Fetcher.PartitionRecords):  # type: ignore[misc]
    """Stores the first offsets of the batches in each fetch, also of an empty fetch, and returns no record.

    Private: the ``_buffer`` of ``MemoryRecords``.
    Why, Without it, Goes when: see ``ask_next_base``.
    Tested with: kafka-python >=3.0.12,<3.1.
    """

    def __init__(self, answers: dict[int, list[int]], offset: int, where: Any, records: Any, **options: Any) -> None:
        super().__init__(offset, where, records, **options)
        found: list[int] = []
        with suppress(CorruptRecordError):  # the reader of the batches reports it
            found.extend(islice(first_offsets(records._buffer, where, offset), _BASES))
        answers[offset] = found

    def _unpack_records(self, tp: Any, records: Any, *deserializers: Any) -> Iterator[Any]:
        yield from ()
        self.drain()
