"""Micro-batches: turns the records of one poll into the content of one transaction.

``MicroBatchBuilder`` decodes, classifies and steps the records. It sends nothing and leaves the state store unchanged.
``BatchSize`` limits the records of a poll, by the time and the bytes that earlier batches took. An oversized batch
would never be committed: its forecaster is dropped from the group at the poll interval, or its transaction times out,
and the same records are polled again.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from kafka import TopicPartition
from numpy.typing import NDArray

from model.unit_kernel import HELD
from pipeline.dead_letter_form import dead_letter
from pipeline.flat_forecasts import FlatForecastEncoder
from pipeline.forecast_encoding import ForecastEncoder, ForecastInputs, round_to_scale
from pipeline.forecaster.counters import Counters
from pipeline.forecaster.group_limit import MAX_TRANSACTION_BYTES
from pipeline.forecaster.positions import POSITION_KEY, Position, PositionRecord
from pipeline.forecaster.readings import Readings, Record, decode_records
from pipeline.forecaster.states.records import encode_states
from pipeline.forecaster.states.store import ServedModel, StepResult
from pipeline.forecaster.transaction import Records
from pipeline.forecaster.unit_changes import UnitChange, find_unit_changes
from pipeline.kafka.batch_producer import encode_headers
from pipeline.kafka.byte_strings import ByteStrings
from pipeline.kafka.record_columns import end_offset, offsets_of, timestamps_of
from pipeline.messages import InputPosition, ModelId, Rejected
from pipeline.outlook_messages import make_outlook_decoder
from pipeline.reading_times import ImplausibleTime
from pipeline.readings_format.decoder import make_decoder
from pipeline.sensor_limit import TOO_MANY_SENSORS, limit_detail
from pipeline.settings import Settings


@dataclass(frozen=True)
class MicroBatch:
    """The content of one transaction, and the state of the forecaster once it is committed."""

    # One per partition that has any reading or outlook, in the order in which they were stepped.
    accepted: Sequence[Readings]
    stepped: StepResult | None  # None: no reading was accepted, and no outlook came
    records: Sequence[Records]
    positions: Mapping[int, Position]  # partition -> position after the batch, if polled or fully written
    buffered: Mapping[int, Readings]  # partition -> reorder buffer after the batch, unless empty
    counts: Counters
    non_finite: Mapping[int, Sequence[str]]  # partition -> sensors with a non-finite new state or forecast
    polled: Collection[int]  # partitions with polled records
    needs_full_write: Collection[int]  # partitions whose states are all written by the batch
    step_s: float  # seconds of decoding, stepping and encoding; 0 if non_finite names a sensor
    implausible: Sequence[ImplausibleTime]  # readings that were rejected because of their times
    sent_ms: Sequence[NDArray[np.int64]]  # Kafka timestamps of accepted readings, except those from the reorder buffer
    unit_changes: Sequence[UnitChange]

    @property
    def record_count(self) -> int:
        """The number of polled records."""
        counts = self.counts
        return counts.readings + counts.outlooks + counts.late_outlooks + counts.unused_outlooks

    @property
    def outlook_states(self) -> int:
        """The number of states that change by outlooks alone."""
        return 0 if self.stepped is None else self.stepped.outlook_states


class MicroBatchBuilder:
    """Builds micro-batches with one model version.

    Args:
        owner: owner of the position records, see ``positions.position_owner``.
    """

    def __init__(self, settings: Settings, serving: ServedModel, owner: str) -> None:
        self.serving = serving
        self._owner = owner
        self._settings = settings
        self._topics = settings.kafka.topics
        self._decoder = make_decoder(settings)
        self._outlook_decoder = make_outlook_decoder(settings)
        model = ModelId(settings.model_name, serving.version)
        self._encoder = ForecastEncoder(settings, model, serving.config)
        self._flat_encoder = FlatForecastEncoder(settings, model, serving.config.targets, serving.config.quantiles)

    def build(
        self,
        polled: Mapping[TopicPartition, Sequence[Record]],
        needs_full_write: Mapping[int, int] = MappingProxyType({}),
        buffered: Mapping[int, Readings] = MappingProxyType({}),
    ) -> MicroBatch:
        """The micro-batch of some records. If a new state is non-finite, it only names the sensors, with no records.

        Args:
            polled: records by partition, in offset order; at least one each.
            needs_full_write: partition -> its position, for partitions of which every state is written.
            buffered: partition -> reorder buffer.
        """
        began = time.monotonic()
        counts = Counters()
        accepted: list[Readings] = []
        outgoing: list[Records] = []
        implausible: list[ImplausibleTime] = []
        sent_ms: list[NDArray[np.int64]] = []
        unit_changes: list[UnitChange] = []
        features = len(self._settings.features)
        rules = self.serving.time_rules
        parts = [
            decode_records(
                self._decoder, features, at.partition, records, rules.get(at.partition, ()), self._outlook_decoder
            )
            for at, records in polled.items()
        ]
        offsets = {where.partition: end_offset(records) for where, records in polled.items()}
        classifications = self.serving.classify_all([decoded.readings for decoded in parts], buffered, offsets)
        still_buffered = {partition: waiting for partition, waiting in buffered.items() if partition not in offsets}
        for (where, records), decoded, classified in zip(polled.items(), parts, classifications, strict=True):
            if len(classified.accepted) or classified.accepted.outlooks:
                accepted.append(classified.accepted)
            if len(classified.accepted):
                sent_ms.append(_sent_ms(records, classified.accepted.offsets))
            if classified.buffered is not None:
                still_buffered[where.partition] = classified.buffered
            counts.readings += len(records) - len(decoded.readings.outlooks)
            counts.accepted += len(classified.accepted)
            counts.duplicates += classified.duplicates
            counts.late += classified.late
            counts.ignored_features += decoded.ignored_features
            implausible += decoded.implausible_times
            rejected = [*decoded.rejected, *self._refused(records, classified.refused)]
            if rejected:
                counts.dead_letters.update(reason.reason for _, reason in rejected)
                rejected.sort(key=lambda one: one[0].offset)
                outgoing.append(self._dead_letters(where.partition, rejected))
        stepped = self.serving.step(accepted) if accepted else None
        if stepped is not None:
            if len(stepped.non_finite):
                named = self.serving.table.sensors_by_partition(stepped.non_finite)
                return MicroBatch(
                    accepted, stepped, [], {}, {}, counts, named, offsets, needs_full_write, 0.0, [], [], []
                )
            if counts.accepted:
                outgoing += self._forecasts(accepted, stepped)
            counts.forecasts = counts.accepted
            counts.outlooks, counts.late_outlooks, counts.unused_outlooks = stepped.outlooks
            counts.withheld_values = int(np.count_nonzero(stepped.forecasts.unit_outcome == HELD))
            unit_changes = find_unit_changes(accepted, stepped.forecasts, self._settings.features)
            counts.unit_changes = len(unit_changes)
        counts.transactions = 1
        outgoing += self._states(stepped, needs_full_write)
        first_buffered = {partition: int(waiting.offsets[0]) for partition, waiting in still_buffered.items()}
        positions = {
            partition: Position(next_, first_buffered.get(partition))
            for partition, next_ in {**needs_full_write, **offsets}.items()
        }
        # Positions follow the states: brokers lose the newest records first, so a surviving position has its states.
        outgoing += [
            Records(
                self._topics.state,
                partition,
                [POSITION_KEY],
                [PositionRecord(position, self._owner, rules.get(partition, ())).encode()],
            )
            for partition, position in positions.items()
        ]
        counts.state_bytes = sum(records.size for records in outgoing if records.topic == self._topics.state)
        seconds = time.monotonic() - began
        return MicroBatch(
            accepted,
            stepped,
            outgoing,
            positions,
            still_buffered,
            counts,
            {},
            offsets,
            needs_full_write,
            seconds,
            implausible,
            sent_ms,
            unit_changes,
        )

    def _forecasts(self, accepted: Sequence[Readings], stepped: StepResult) -> list[Records]:
        # One call for all partitions, because a part of its cost is per call.
        readings, forecasts = stepped.readings, stepped.forecasts
        inputs = ForecastInputs(
            self._topics.readings,
            readings.partitions,
            readings.names,
            readings.codes,
            readings.timestamp_us,
            readings.offsets,
            readings.traceparents,
        )
        values, headers = self._encoder.encode(inputs, forecasts)
        keys = self._encoder.keys(inputs.names).take(inputs.codes)
        flat_topic = self._topics.flat_forecasts
        flat: list[bytes] = []
        if flat_topic is not None:
            quantiles = round_to_scale(forecasts.quantiles, forecasts.scale, forecasts.limits)
            sensors = [inputs.names[code] for code in inputs.codes.tolist()]
            flat = self._flat_encoder.encode(
                inputs.partitions.tolist(), sensors, inputs.timestamp_us, inputs.offsets, quantiles
            )
        each = len(flat) // max(1, len(values))  # flat records of a forecast
        records = []
        for part, end in zip(accepted, accumulate(map(len, accepted)), strict=True):
            if not len(part):
                continue  # outlooks alone
            mine = slice(end - len(part), end)
            records.append(Records(self._topics.forecasts, part.partition, keys[mine], values[mine], headers[mine]))
            if flat_topic is not None:
                flat_keys = [key for key in keys[mine] for _ in range(each)]
                flat_values = flat[mine.start * each : mine.stop * each]
                records.append(Records(flat_topic, part.partition, flat_keys, flat_values))
        return records

    def _states(self, stepped: StepResult | None, needs_full_write: Collection[int]) -> list[Records]:
        """One record per changed sensor, or per sensor of the partition in a full write."""
        table, topic = self.serving.table, self._topics.state
        records = []
        if stepped is not None:
            keys = self._encoder.keys(table.sensors_at(stepped.rows.tolist()))
            values = encode_states(self.serving.tag, stepped.states)
            partitions = table.partitions_at(stepped.rows)
            distinct = sorted(set(partitions.tolist()))
            for partition in distinct:
                if partition in needs_full_write:
                    continue
                if len(distinct) == 1:
                    records.append(Records(topic, partition, keys, values))
                else:
                    places = np.flatnonzero(partitions == partition)
                    records.append(Records(topic, partition, keys.take(places), values.take(places)))
        for partition in needs_full_write:
            sensors, rows = table.partition_rows(partition)
            states = table.gather(rows)
            if stepped is not None:
                _, here, there = np.intersect1d(rows, stepped.rows, return_indices=True)
                states[here] = stepped.states[there]
            if len(rows):
                # Not the encoder's keys: it would keep the texts of forecasts for sensors that have no more readings.
                keys = ByteStrings.of([sensor.encode() for sensor in sensors])
                records.append(Records(topic, partition, keys, encode_states(self.serving.tag, states)))
        return records

    def _refused(self, records: Sequence[Record], refused: Readings | None) -> list[tuple[Record, Rejected]]:
        """The records of readings beyond the limit of sensors."""
        limit = self._settings.forecaster.max_sensors_per_partition
        if refused is None or limit is None:
            return []
        reason = Rejected(TOO_MANY_SENSORS, limit_detail(limit, refused.partition))
        offsets = set(refused.offsets.tolist())
        return [(record, reason) for record in records if record.offset in offsets]

    def _dead_letters(self, partition: int, rejected: Sequence[tuple[Any, Rejected]]) -> Records:
        limit = self._settings.kafka.max_reading_bytes  # the topic's own limit leaves room for our headers
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


def _sent_ms(records: Sequence[Record], accepted_offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """The Kafka timestamps of the records with accepted readings."""
    found, offsets = timestamps_of(records), offsets_of(records)
    if len(accepted_offsets) == len(records) and accepted_offsets.min() >= offsets[0]:
        return found  # in most batches: all records were accepted
    return found[np.isin(offsets, accepted_offsets)]


# --- how many records -------------------------------------------------------------------------------------------------


FIRST_BATCH_READINGS: Final = 1_000  # readings of the first batch, before any was timed
SMALLEST_BATCH_READINGS: Final = 50
BUDGET_S: Final = 2.0  # seconds to build a batch
SMALL_TRANSACTION_BYTES: Final = 4_000_000  # a transaction up to this size does not fail because of its size
_SHARE_OF_POLL_INTERVAL: Final = 0.1  # fraction of the poll interval that a batch may take
_REGROWTH: Final = 1.02  # the limit after a failed transaction grows by this factor with each full batch committed


class BatchSize:
    """The number of records to poll next, adapted to how long batches take and whether their transactions fail.

    A record is a reading or an outlook. The outlook of a group changes the states of many sensors, and each of these
    states counts like one more record. Such a batch says less about the number of records that fits, so the number
    shrinks by a factor from batch to batch.

    Args:
        most: upper limit, in readings.
        poll_interval_s: seconds until the group drops a member that does not poll.
    """

    def __init__(self, most: int, poll_interval_s: float) -> None:
        self._asked = self._most = most
        self._limit_after_failure = float(most)  # readings; lowered when a large transaction fails, then grows again
        self._bytes_per_reading = 1
        self._budget_s = min(BUDGET_S, poll_interval_s * _SHARE_OF_POLL_INTERVAL)
        self.readings = min(FIRST_BATCH_READINGS, most)

    def set_bytes_per_reading(self, bytes_per_reading: int) -> None:
        """Set the most bytes that one reading adds to a transaction: its sensor's state and its forecast."""
        self._bytes_per_reading = bytes_per_reading
        self._most = min(self._asked, max(SMALLEST_BATCH_READINGS, MAX_TRANSACTION_BYTES // bytes_per_reading))
        self._limit_after_failure = self._most
        self._set(self.readings)

    def committed(self, records: int, seconds: float, outlook_states: int = 0) -> None:
        """Adapt to a committed batch: shrink if it took too long, double if it was full and fast.

        Args:
            outlook_states: states that changed by outlooks alone.
        """
        is_full = records >= self.readings
        if is_full:
            self._limit_after_failure = min(self._most, self._limit_after_failure * _REGROWTH)
        if not self._keep_to_budget(records + outlook_states, seconds) and is_full and seconds < self._budget_s / 2:
            self._set(2 * self.readings)

    def failed(self, records: int, seconds: float, outlook_states: int = 0) -> None:
        """Adapt to a batch whose transaction failed: halve the next one if the size may be the reason."""
        work = records + outlook_states
        if work * self._bytes_per_reading > SMALL_TRANSACTION_BYTES:
            halved = min(work, self.readings) / 2
            self._limit_after_failure = max(SMALLEST_BATCH_READINGS, min(self._limit_after_failure, halved))
        self._keep_to_budget(work, seconds)
        self._set(self.readings)

    def _keep_to_budget(self, work: int, seconds: float) -> bool:
        """Shrink the next batch if this batch, with some records and states, took too long; return whether it did."""
        if seconds <= self._budget_s or not work:
            return False
        self._set(int(min(work, self.readings) * self._budget_s / seconds))
        return True

    def _set(self, readings: int) -> None:
        self.readings = min(self._most, max(SMALLEST_BATCH_READINGS, min(readings, int(self._limit_after_failure))))
