"""Batches with fast lz4 hold the same records for every reader."""

import os

import lz4.frame
import pytest
from kafka.record.default_records import DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder

from pipeline.kafka.compression import use_fast_lz4

GZIP, LZ4 = 1, 3
HEADER_BYTES = DefaultRecordBatchBuilder.HEADER_STRUCT.size
FORECASTS = [b'{"quantiles": {"value": {"0.5": [%d.25, %d.75]}}}' % (n, n * 7) for n in range(500)]
NOISE = [os.urandom(5_000)]


def built(values: list[bytes], codec: int, *, fast: bool) -> bytes:
    builder = MemoryRecordsBuilder(2, codec, 1_000_000)
    if fast:
        use_fast_lz4(builder)
    for number, value in enumerate(values):
        builder.append(1_700_000_000_000, b"sensor-%d" % number, value)
    builder.close()
    return bytes(builder.buffer())


def read(batch: bytes) -> list[tuple[bytes, bytes]]:
    (found,) = [list(each) for each in iter(MemoryRecords(batch).next_batch, None)]
    return [(record.key, record.value) for record in found]


@pytest.mark.parametrize("values", [FORECASTS, NOISE, [b""]], ids=["forecasts", "noise", "one empty record"])
def test_the_client_reads_the_same_records_from_a_fast_batch(values: list[bytes]) -> None:
    batch = built(values, LZ4, fast=True)
    assert read(batch) == read(built(values, LZ4, fast=False))
    assert MemoryRecords(batch).next_batch().validate_crc()


def test_a_fast_batch_is_one_standard_frame_with_the_content_of_a_slow_one() -> None:
    slow, fast = (lz4.frame.decompress(built(FORECASTS, LZ4, fast=fast)[HEADER_BYTES:]) for fast in (False, True))
    assert fast == slow
    info = lz4.frame.get_frame_info(built(FORECASTS, LZ4, fast=True)[HEADER_BYTES:])
    assert not info["block_linked"], "Kafka reads independent blocks only"


def test_noise_is_sent_as_it_is() -> None:
    assert built(NOISE, LZ4, fast=True) == built(NOISE, LZ4, fast=False)


def test_other_codecs_are_the_clients_own() -> None:
    assert read(built(FORECASTS, GZIP, fast=True)) == read(built(FORECASTS, GZIP, fast=False))
