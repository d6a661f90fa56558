"""The fuzz target of record batches: broken bytes, broken compression, and broken records with a valid checksum."""

import random
from dataclasses import replace
from types import SimpleNamespace

from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatch

from pipeline.kafka.record_batch import find_fault, read_or_set_aside, split_batches
from pipeline.kafka.record_kernel import read_columns
from pipeline.unreadable_batch import BATCH_REASONS, UnreadableBatch
from tests.fuzz.mutation import mutate
from tests.raw_batches import CODECS, NONE, RawBatch, batch_of, compress, record

LIMIT_BYTES = 100_000
_WHERE = SimpleNamespace(topic="readings", partition=0)
_MESSAGES: list[tuple[bytes | None, bytes | None]] = [
    (b"s", b'{"sensor_id": "s", "timestamp": 0, "values": {"a": 1}}'),
    (None, b" " * 300),
    (b"t", None),
]
_RECORDS = [b"".join(record(delta, *_MESSAGES[delta % 3]) for delta in range(count)) for count in (1, 3, 40)]
_BATCHES = [batch_of(codec, _MESSAGES) for codec in CODECS.values()]


def batches(chance: random.Random) -> None:
    """Any bytes are records in order, or one unreadable batch with a reason, or an error with the position."""
    whole = replace(chance.choice(_BATCHES), base_offset=chance.choice((0, 7, 2**40)))
    match chance.randrange(3):
        case 0:  # damage on a disk, headers included
            data = mutate(whole.encode() + whole.encode(), [whole.encode()], chance)
        case 1:  # a faulty producer: the checksum is valid
            codec = chance.choice(list(CODECS.values()))
            content = mutate(chance.choice(_RECORDS), _RECORDS, chance)
            packed = content if codec == NONE else compress(codec, [content])
            data = RawBatch(packed, chance.choice((1, 3, 40, 2**31 - 1, -1)), codec).encode()
        case _:
            packed = mutate(whole.records, [batch.records for batch in _BATCHES], chance)
            last = chance.choice((None, -1, 2**31 - 1))
            data = replace(whole, records=packed, codec=chance.randrange(8), last_offset_delta=last).encode()
    try:
        found = list(split_batches(data, _WHERE, 0))
    except CorruptRecordError:
        return
    for content, next_base in found:
        _check(content, next_base)


def _check(content: memoryview, next_base: int | None) -> None:
    batch = DefaultRecordBatch(content)
    fault = find_fault(batch, check_crc=True)
    last = batch.last_offset
    if fault is not None:  # without a next batch the consumer asks the broker
        last = batch.base_offset if next_base is None or next_base <= batch.base_offset else next_base - 1
    records, memory_bytes = read_or_set_aside(batch, LIMIT_BYTES, last, fault)
    assert memory_bytes <= max(LIMIT_BYTES, len(content))
    columns, columns_bytes = read_or_set_aside(batch, LIMIT_BYTES, last, fault, read_columns)
    assert list(columns) == records, "columns differ from objects"
    assert columns_bytes == memory_bytes
    offsets = [one.offset for one in records]
    assert offsets == sorted(set(offsets))
    for one in records:
        if isinstance(one.value, UnreadableBatch):
            assert len(records) == 1
            assert one.value.reason in BATCH_REASONS
            assert one.value.detail
            assert one.offset <= one.value.last_offset
            assert 1 <= one.value.records <= one.value.last_offset - one.offset + 1
            assert one.next_offset > one.offset
