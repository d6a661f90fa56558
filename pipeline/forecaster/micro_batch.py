"""What one poll brought, turned into the records of one transaction; nothing here touches Kafka or changes a state."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from kafka import TopicPartition

from model.rules import ACCEPTED, DUPLICATE, LATE
from model.stepper import Forecasts
from pipeline.forecaster.commit import Records
from pipeline.forecaster.counters import Counters
from pipeline.forecaster.encoding import ForecastEncoder
from pipeline.forecaster.readings import Readings, Record, decode_records
from pipeline.forecaster.serving import Serving, Stepped
from pipeline.forecaster.state_table import Rows, States
from pipeline.kafka.record_batches import encode_headers
from pipeline.messages import InputPosition, ModelId, ReadingDecoder, Rejected, dead_letter
from pipeline.settings import Settings


@dataclass(frozen=True)
class MicroBatch:
    """The outcome of one poll, to be committed together."""

    accepted: Sequence[Readings]  # one per partition that has any
    stepped: Stepped | None  # none: nothing was accepted
    records: Sequence[Records]
    offsets: Mapping[int, int]
    counts: Counters
    unsound: Mapping[int, Sequence[str]]  # by partition, sensors whose new state or forecast is not finite


class MicroBatchMaker:
    """Makes micro-batches with one serving."""

    def __init__(self, settings: Settings, serving: Serving) -> None:
        self._settings = settings
        self._topics = settings.kafka.topics
        self._serving = serving
        self._decoder = ReadingDecoder(settings.features)
        self._encoder = ForecastEncoder(settings, ModelId(settings.model_name, serving.version), serving.config)

    def make(self, polled: Mapping[TopicPartition, Sequence[Record]], unsaved: Sequence[int] = ()) -> MicroBatch:
        """The micro-batch of some records.

        Args:
            polled: records by partition, in the order of their offsets; each has at least one.
            unsaved: partitions whose states all go into the changelog, changed or not.
        """
        counts = Counters()
        accepted: list[Readings] = []
        outgoing: list[Records] = []
        offsets: dict[int, int] = {}
        for where, records in polled.items():
            decoded = decode_records(self._decoder, len(self._settings.features), where.partition, records)
            verdicts = self._serving.judge(decoded.readings)
            mine = decoded.readings.take(verdicts == ACCEPTED)
            if len(mine):
                accepted.append(mine)
            counts.readings += len(records)
            counts.accepted += len(mine)
            counts.duplicates += int(np.count_nonzero(verdicts == DUPLICATE))
            counts.late += int(np.count_nonzero(verdicts == LATE))
            counts.ignored_features += decoded.ignored_features
            counts.dead_letters.update(reason.reason for _, reason in decoded.rejected)
            if decoded.rejected:
                outgoing.append(self._dead_letters(where.partition, decoded.rejected))
            offsets[where.partition] = records[-1].offset + 1
        stepped = self._serving.step(accepted) if accepted else None
        if stepped is not None and len(stepped.unsound):
            return MicroBatch(accepted, stepped, [], {}, counts, self._serving.table.named(stepped.unsound))
        if stepped is not None:
            outgoing += self._forecasts(accepted, stepped.forecasts)
            counts.forecasts = counts.accepted
        counts.transactions = 1
        outgoing += self._states(stepped, unsaved)
        return MicroBatch(accepted, stepped, outgoing, offsets, counts, {})

    def _forecasts(self, accepted: Sequence[Readings], forecasts: Forecasts) -> list[Records]:
        records = []
        start = 0
        for readings in accepted:
            end = start + len(readings)
            values, headers = self._encoder.encode(
                self._topics.readings,
                readings.partition,
                readings.sensors,
                readings.timestamp_us,
                readings.offsets,
                _slice(forecasts, start, end),
                readings.traceparents,
            )
            records.append(Records(self._topics.forecasts, readings.partition, readings.keys, values, headers))
            start = end
        return records

    def _states(self, stepped: Stepped | None, unsaved: Sequence[int]) -> list[Records]:
        """One record per changed sensor; in unsaved partitions one per sensor."""
        table = self._serving.table
        records = []
        if stepped is not None:
            partitions = table.partitions_at(stepped.rows)
            for partition in np.unique(partitions).tolist():
                if partition not in unsaved:
                    chosen = partitions == partition
                    records.append(self._state_records(partition, stepped.rows[chosen], stepped.states[chosen]))
        for partition in unsaved:
            _, rows = table.partition_rows(partition)
            states = table.gather(rows)
            if stepped is not None:
                _, here, there = np.intersect1d(rows, stepped.rows, return_indices=True)
                states[here] = stepped.states[there]
            if len(rows):
                records.append(self._state_records(partition, rows, states))
        return records

    def _state_records(self, partition: int, rows: Rows, states: States) -> Records:
        encode = self._serving.tag.encode
        size = states.dtype.itemsize
        packed = states.tobytes()
        values = [encode(packed[start : start + size]) for start in range(0, len(packed), size)]
        keys = [sensor.encode() for sensor in self._serving.table.sensors_at(rows.tolist())]
        return Records(self._topics.state, partition, keys, values)

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


def _slice(forecasts: Forecasts, start: int, end: int) -> Forecasts:
    return Forecasts(
        quantiles=forecasts.quantiles[start:end],
        scale=forecasts.scale[start:end],
        origin=forecasts.origin[start:end],
        steps=forecasts.steps[start:end],
        warm=forecasts.warm[start:end],
        weights=forecasts.weights[start:end],
    )
