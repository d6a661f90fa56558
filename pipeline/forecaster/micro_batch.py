"""Turns the records of one poll into the content of one transaction. Neither Kafka nor a state is touched."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from types import MappingProxyType
from typing import Any

import numpy as np
from kafka import TopicPartition

from model.stepper import Forecasts
from pipeline.forecaster.commit import Records
from pipeline.forecaster.counters import Counters
from pipeline.forecaster.encoding import ForecastEncoder
from pipeline.forecaster.position import POSITION_KEY, Noted, Position
from pipeline.forecaster.readings import Readings, Record, decode_records
from pipeline.forecaster.serving import Serving, Stepped
from pipeline.forecaster.state_table import Rows, States
from pipeline.kafka.batch_producer import encode_headers
from pipeline.messages import InputPosition, ModelId, ReadingDecoder, Rejected, dead_letter
from pipeline.settings import Settings


@dataclass(frozen=True)
class MicroBatch:
    """The outcome of one poll, to be committed together."""

    accepted: Sequence[Readings]  # one per partition that has any, in the order in which they were stepped
    stepped: Stepped | None  # None: no reading was accepted
    records: Sequence[Records]
    reached: Mapping[int, Position]  # partition -> position after it; polled partitions and full writes
    held: Mapping[int, Readings]  # partition -> reorder buffer after it; partitions with an empty one are left out
    counts: Counters
    unsound: Mapping[int, Sequence[str]]  # partition -> sensors with a non-finite new state or forecast
    polled: Collection[int]  # partitions with records in it
    unsaved: Collection[int]  # partitions whose states are all in it
    step_s: float  # how long decoding, stepping and encoding took


class MicroBatchMaker:
    """Makes micro-batches with one model version.

    Args:
        owner: of the positions in the changelog, see ``position.owner_of_positions``.
    """

    def __init__(self, settings: Settings, serving: Serving, owner: str) -> None:
        self.serving = serving
        self._owner = owner
        self._settings = settings
        self._topics = settings.kafka.topics
        self._decoder = ReadingDecoder(settings.features)
        self._encoder = ForecastEncoder(settings, ModelId(settings.model_name, serving.version), serving.config)

    def make(
        self,
        polled: Mapping[TopicPartition, Sequence[Record]],
        unsaved: Mapping[int, int] = MappingProxyType({}),
        held: Mapping[int, Readings] = MappingProxyType({}),
    ) -> MicroBatch:
        """The micro-batch of some records.

        Args:
            polled: records by partition, in the order of their offsets; each has at least one.
            unsaved: partition -> position, of full writes: all states go into the changelog, changed or not.
            held: partition -> reorder buffer.
        """
        began = time.monotonic()
        counts = Counters()
        accepted: list[Readings] = []
        outgoing: list[Records] = []
        features = len(self._settings.features)
        parts = [decode_records(self._decoder, features, at.partition, records) for at, records in polled.items()]
        offsets = {where.partition: records[-1].offset + 1 for where, records in polled.items()}
        judgements = self.serving.judge_all([decoded.readings for decoded in parts], held, offsets)
        still_held = {partition: waiting for partition, waiting in held.items() if partition not in offsets}
        for (where, records), decoded, judged in zip(polled.items(), parts, judgements, strict=True):
            if len(judged.accepted):
                accepted.append(judged.accepted)
            if judged.held is not None:
                still_held[where.partition] = judged.held
            counts.readings += len(records)
            counts.accepted += len(judged.accepted)
            counts.duplicates += judged.duplicates
            counts.late += judged.late
            counts.ignored_features += decoded.ignored_features
            counts.dead_letters.update(reason.reason for _, reason in decoded.rejected)
            if decoded.rejected:
                outgoing.append(self._dead_letters(where.partition, decoded.rejected))
        reached = {
            partition: Position(next_, int(still_held[partition].offsets[0]) if partition in still_held else None)
            for partition, next_ in {**unsaved, **offsets}.items()
        }
        stepped = self.serving.step(accepted) if accepted else None
        if stepped is not None and len(stepped.unsound):
            named = self.serving.table.named(stepped.unsound)
            return MicroBatch(accepted, stepped, [], {}, {}, counts, named, offsets, unsaved, time.monotonic() - began)
        if stepped is not None:
            outgoing += self._forecasts(accepted, stepped.forecasts)
            counts.forecasts = counts.accepted
        counts.transactions = 1
        outgoing += self._states(stepped, unsaved)
        # After the states: a log loses its newest records first, so the states before a surviving position survive.
        outgoing += [
            Records(self._topics.state, partition, [POSITION_KEY], [Noted(position, self._owner).encode()])
            for partition, position in reached.items()
        ]
        seconds = time.monotonic() - began
        return MicroBatch(accepted, stepped, outgoing, reached, still_held, counts, {}, offsets, unsaved, seconds)

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

    def _states(self, stepped: Stepped | None, unsaved: Collection[int]) -> list[Records]:
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
            records += [Records(topic, each, *changed[each]) for each in sorted(changed) if each not in unsaved]
        for partition in unsaved:
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
