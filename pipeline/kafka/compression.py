"""Faster lz4 for record batches with forecasts and states.

The numbers of forecasts and states hardly repeat, so most of lz4's search for repetitions finds nothing.
"""

from typing import Final

import lz4.frame
from kafka.record.default_records import DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecordsBuilder

# lz4's acceleration, negated. With 8, forecasts of 24 steps take 40 % of the default's CPU time and 16 % more bytes;
# their states take 3.5 % more bytes. With 16 the time falls by a further tenth, and the bytes grow by 22 %.
LZ4_LEVEL: Final = -8


def use_fast_lz4(records: MemoryRecordsBuilder) -> None:
    """Let a new batch compress with lz4 at ``LZ4_LEVEL``.

    Private: ``MemoryRecordsBuilder._builder``; see ``_FastLz4Builder``.
    Why: the client has no option for the level of its compression.
    Without it: lz4 takes 3.3 µs for a forecast of 24 steps and 7 µs for its state, instead of 1.4 µs and 2.7 µs.
    Tested with: kafka-python >=3.0.12,<3.1.
    Goes when: ``KafkaProducer`` has an option for the level.
    """
    records._builder.__class__ = _FastLz4Builder


class _FastLz4Builder(DefaultRecordBatchBuilder):  # type: ignore[misc]
    """Builds a batch with lz4 at ``LZ4_LEVEL``, in a standard frame. With other codecs it does as the client does.

    Private: this class overrides ``_maybe_compress`` and reads ``_buffer`` and ``_compression_type``.
    Why: see ``use_fast_lz4``.
    Without it: see ``use_fast_lz4``.
    Tested with: kafka-python >=3.0.12,<3.1.
    Goes when: ``use_fast_lz4`` goes.
    """

    __slots__ = ()

    def _maybe_compress(self) -> bool:
        if self._compression_type != self.CODEC_LZ4:
            return bool(super()._maybe_compress())
        header_size = self.HEADER_STRUCT.size
        with memoryview(self._buffer) as whole, whole[header_size:] as records:
            # Kafka does not read frames with linked blocks.
            compressed = lz4.frame.compress(records, compression_level=LZ4_LEVEL, block_linked=False)
            if len(compressed) >= len(records):
                return False
        self._buffer[header_size:] = compressed
        return True
