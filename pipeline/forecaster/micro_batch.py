"""Micro-batches: how many readings the next one takes, and the records of its transaction.

Turns the records of one poll into the content of one transaction. Neither Kafka nor a state is touched.

How many readings to take at once, so that a batch never takes longer than a poll may, nor more bytes than a commit.

What a reading costs depends on the stream: many sensors are stepped together, one sensor's backlog is stepped one after
the other. A batch that outlasts the poll interval is lost, as the group has given its forecaster up by then, and would
be tried again for ever; so would be a transaction that is too large for its timeouts.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from kafka import TopicPartition

from model.stepper import Forecasts
from pipeline.forecaster.encoding import ForecastEncoder
from pipeline.forecaster.metrics import Counters
from pipeline.forecaster.positions import POSITION_KEY, Position, PositionRecord
from pipeline.forecaster.readings import Readings, Record, decode_records
from pipeline.forecaster.state_store import Rows, ServedModel, States, StepResult
from pipeline.forecaster.transaction import Records
from pipeline.kafka.batch_producer import encode_headers
from pipeline.messages import InputPosition, ModelId, ReadingDecoder, Rejected, dead_letter
from pipeline.settings import Settings


@dataclass(frozen=True)
class MicroBatch:
    """The outcome of one poll, to be committed together."""

    accepted: Sequence[Readings]  # one per partition that has any, in the order in which they were stepped
    stepped: StepResult | None  # None: no reading was accepted
    records: Sequence[Records]
    positions: Mapping[int, Position]  # partition -> position after it; polled partitions and full writes
    buffered: Mapping[int, Readings]  # partition -> reorder buffer after it; partitions with an empty one are left out
    counts: Counters
    non_finite: Mapping[int, Sequence[str]]  # partition -> sensors with a non-finite new state or forecast
    polled: Collection[int]  # partitions with records in it
    needs_full_write: Collection[int]  # partitions whose states are all in it
    step_s: float  # how long decoding, stepping and encoding took


class MicroBatchBuilder:
    """Makes micro-batches with one model version.

    Args:
        owner: of the positions in the changelog, see ``positions.position_owner``.
    """

    def __init__(self, settings: Settings, serving: ServedModel, owner: str) -> None:
        self.serving = serving
        self._owner = owner
        self._settings = settings
        self._topics = settings.kafka.topics
        self._decoder = ReadingDecoder(settings.features)
        self._encoder = ForecastEncoder(settings, ModelId(settings.model_name, serving.version), serving.config)

    def build(
        self,
        polled: Mapping[TopicPartition, Sequence[Record]],
        needs_full_write: Mapping[int, int] = MappingProxyType({}),
        buffered: Mapping[int, Readings] = MappingProxyType({}),
    ) -> MicroBatch:
        """The micro-batch of some records.

        Args:
            polled: records by partition, in the order of their offsets; each has at least one.
            needs_full_write: partition -> position, of full writes: all states go into the changelog, changed or not.
            buffered: partition -> reorder buffer.
        """
        began = time.monotonic()
        counts = Counters()
        accepted: list[Readings] = []
        outgoing: list[Records] = []
        features = len(self._settings.features)
        parts = [decode_records(self._decoder, features, at.partition, records) for at, records in polled.items()]
        offsets = {where.partition: records[-1].offset + 1 for where, records in polled.items()}
        classifications = self.serving.classify_all([decoded.readings for decoded in parts], buffered, offsets)
        still_buffered = {partition: waiting for partition, waiting in buffered.items() if partition not in offsets}
        for (where, records), decoded, classified in zip(polled.items(), parts, classifications, strict=True):
            if len(classified.accepted):
                accepted.append(classified.accepted)
            if classified.buffered is not None:
                still_buffered[where.partition] = classified.buffered
            counts.readings += len(records)
            counts.accepted += len(classified.accepted)
            counts.duplicates += classified.duplicates
            counts.late += classified.late
            counts.ignored_features += decoded.ignored_features
            counts.dead_letters.update(reason.reason for _, reason in decoded.rejected)
            if decoded.rejected:
                outgoing.append(self._dead_letters(where.partition, decoded.rejected))
        positions = {
            partition: Position(
                next_, int(still_buffered[partition].offsets[0]) if partition in still_buffered else None
            )
            for partition, next_ in {**needs_full_write, **offsets}.items()
        }
        stepped = self.serving.step(accepted) if accepted else None
        if stepped is not None and len(stepped.non_finite):
            named = self.serving.table.sensors_by_partition(stepped.non_finite)
            return MicroBatch(
                accepted, stepped, [], {}, {}, counts, named, offsets, needs_full_write, time.monotonic() - began
            )
        if stepped is not None:
            outgoing += self._forecasts(accepted, stepped.forecasts)
            counts.forecasts = counts.accepted
        counts.transactions = 1
        outgoing += self._states(stepped, needs_full_write)
        # After the states: a log loses its newest records first, so the states before a surviving position survive.
        outgoing += [
            Records(self._topics.state, partition, [POSITION_KEY], [PositionRecord(position, self._owner).encode()])
            for partition, position in positions.items()
        ]
        seconds = time.monotonic() - began
        return MicroBatch(
            accepted, stepped, outgoing, positions, still_buffered, counts, {}, offsets, needs_full_write, seconds
        )

    def _forecasts(self, accepted: Sequence[Readings], forecasts: Forecasts) -> list[Records]:
        # All at once: most of the cost is per call.
        sizes = [len(readings) for readings in accepted]
        traced = any(readings.traceparents is not None for readings in accepted)
        parents = [readings.traceparents or [None] * len(readings) for readings in accepted]
        values, headers = self._encoder.encode(
            self._topics.readings,
            [readings.partition for readings in accepted for _ in readings.keys],
            list(chain.from_iterable(readings.sensors for readings in accepted)),
            np.concatenate([readings.timestamp_us for readings in accepted]),
            np.concatenate([readings.offsets for readings in accepted]),
            forecasts,
            list(chain.from_iterable(parents)) if traced else None,
        )
        records = []
        for readings, end in zip(accepted, accumulate(sizes), strict=True):
            mine = slice(end - len(readings), end)
            records.append(
                Records(self._topics.forecasts, readings.partition, readings.keys, values[mine], headers[mine])
            )
        return records

    def _states(self, stepped: StepResult | None, needs_full_write: Collection[int]) -> list[Records]:
        """One record per changed sensor; for full writes one per sensor."""
        table = self.serving.table
        topic = self._topics.state
        records = []
        if stepped is not None:
            changed: dict[int, tuple[list[bytes], list[bytes]]] = {}
            partitions = table.partitions_at(stepped.rows).tolist()
            for partition, key, value in zip(partitions, *self._encoded(stepped.rows, stepped.states), strict=True):
                keys, values = changed.setdefault(partition, ([], []))
                keys.append(key)
                values.append(value)
            records += [
                Records(topic, each, *changed[each]) for each in sorted(changed) if each not in needs_full_write
            ]
        for partition in needs_full_write:
            _, rows = table.partition_rows(partition)
            states = table.gather(rows)
            if stepped is not None:
                _, here, there = np.intersect1d(rows, stepped.rows, return_indices=True)
                states[here] = stepped.states[there]
            if len(rows):
                records.append(Records(topic, partition, *self._encoded(rows, states)))
        return records

    def _encoded(self, rows: Rows, states: States) -> tuple[list[bytes], list[bytes]]:
        """Keys and values of the records of some states."""
        encode = self.serving.tag.encode
        size = states.dtype.itemsize
        packed = states.tobytes()
        values = [encode(packed[start : start + size]) for start in range(0, len(packed), size)]
        return [sensor.encode() for sensor in self.serving.table.sensors_at(rows.tolist())], values

    def _dead_letters(self, partition: int, rejected: Sequence[tuple[Any, Rejected]]) -> Records:
        limit = self._settings.kafka.max_reading_bytes  # the topic has room for our own headers on top of it
        topic = self._topics.readings
        letters = [
            dead_letter(
                record.key, record.value, record.headers, reason, InputPosition(topic, partition, record.offset), limit
            )
            for record, reason in rejected
        ]
        return Records(
            self._topics.dead_letters,
            partition,
            [letter.key for letter in letters],
            [letter.value for letter in letters],
            [encode_headers(letter.headers) for letter in letters],
        )


# --- how many readings ------------------------------------------------------------------------------------------------


FIRST_BATCH_READINGS: Final = 1_000  # nothing is known yet
SMALLEST_BATCH_READINGS: Final = 50
BUDGET_S: Final = 2.0
MAX_TRANSACTION_BYTES: Final = 64_000_000  # of states and forecasts; a broker takes that many in a second or two
SMALL_TRANSACTION_BYTES: Final = 4_000_000  # a transaction of no more does not fail by its size
_SHARE_OF_POLL_INTERVAL: Final = 0.1
_REGROWTH: Final = 1.02  # of what is tried again behind a failed transaction, with each full batch that is committed


class BatchSize:
    """Follows what batches take.

    Args:
        most: readings of a batch at most.
        poll_interval_s: how long a forecaster may go without a poll.
    """

    def __init__(self, most: int, poll_interval_s: float) -> None:
        self._asked = self._most = most
        self._tried = float(most)  # what is tried since a transaction failed
        self._bytes_per_reading = 1
        self._budget_s = min(BUDGET_S, poll_interval_s * _SHARE_OF_POLL_INTERVAL)
        self.readings = min(FIRST_BATCH_READINGS, most)

    def set_bytes_per_reading(self, bytes_per_reading: int) -> None:
        """A reading leads to so many bytes at most, its sensor's state and its forecast."""
        self._bytes_per_reading = bytes_per_reading
        self._most = min(self._asked, max(SMALLEST_BATCH_READINGS, MAX_TRANSACTION_BYTES // bytes_per_reading))
        self._tried = self._most
        self._set(self.readings)

    def committed(self, readings: int, seconds: float) -> None:
        """A batch of so many readings, made in so many seconds, was committed: the next is to keep to the budget."""
        is_full = readings >= self.readings
        if is_full:
            self._tried = min(self._most, self._tried * _REGROWTH)
        if not self._keep_to_budget(readings, seconds) and is_full and seconds < self._budget_s / 2:
            self._set(2 * self.readings)

    def failed(self, readings: int, seconds: float) -> None:
        """The transaction of such a batch failed: should its size have been the reason, the next is smaller."""
        if readings * self._bytes_per_reading > SMALL_TRANSACTION_BYTES:
            self._tried = max(SMALLEST_BATCH_READINGS, min(self._tried, readings / 2))
        self._keep_to_budget(readings, seconds)
        self._set(self.readings)

    def _keep_to_budget(self, readings: int, seconds: float) -> bool:
        """Whether it took too long, so that the next is smaller; where only states were written, that says nothing."""
        if seconds <= self._budget_s or not readings:
            return False
        self._set(int(readings * self._budget_s / seconds))
        return True

    def _set(self, readings: int) -> None:
        self.readings = min(self._most, max(SMALLEST_BATCH_READINGS, min(readings, int(self._tried))))
