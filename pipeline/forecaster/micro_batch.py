"""What one poll brought, turned into the records of one transaction; nothing here touches Kafka or changes a state."""

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
    stepped: Stepped | None  # none: nothing was accepted
    records: Sequence[Records]
    reached: Mapping[int, Position]  # by partition, of those polled and those whose states all go into the changelog
    held: Mapping[int, Readings]  # as they are after it, of all partitions that hold any
    counts: Counters
    unsound: Mapping[int, Sequence[str]]  # by partition, sensors whose new state or forecast is not finite


class MicroBatchMaker:
    """Makes micro-batches with one serving.

    Args:
        owner: of the positions that it notes, see ``position.owner_of_positions``.
    """

    def __init__(self, settings: Settings, serving: Serving, owner: str) -> None:
        self._owner = owner
        self._settings = settings
        self._topics = settings.kafka.topics
        self._serving = serving
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
            unsaved: partitions whose states all go into the changelog, changed or not, with the offsets of their next
                readings so far.
            held: by partition, the readings that wait since earlier batches.
        """
        counts = Counters()
        accepted: list[Readings] = []
        outgoing: list[Records] = []
        features = len(self._settings.features)
        parts = [decode_records(self._decoder, features, at.partition, records) for at, records in polled.items()]
        offsets = {where.partition: records[-1].offset + 1 for where, records in polled.items()}
        judgements = self._serving.judge_all([decoded.readings for decoded in parts], held, offsets)
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
        stepped = self._serving.step(accepted) if accepted else None
        if stepped is not None and len(stepped.unsound):
            return MicroBatch(accepted, stepped, [], {}, {}, counts, self._serving.table.named(stepped.unsound))
        if stepped is not None:
            outgoing += self._forecasts(accepted, stepped.forecasts)
            counts.forecasts = counts.accepted
        counts.transactions = 1
        outgoing += self._states(stepped, unsaved)
        # Behind the states: logs lose what is newest, so where a position is left the states before it are, too.
        outgoing += [
            Records(self._topics.state, partition, [POSITION_KEY], [Noted(position, self._owner).encode()])
            for partition, position in reached.items()
        ]
        return MicroBatch(accepted, stepped, outgoing, reached, still_held, counts, {})

    def _forecasts(self, accepted: Sequence[Readings], forecasts: Forecasts) -> list[Records]:
        # All at once: what encoding costs is mostly what a call of it costs.
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
        """One record per changed sensor; in unsaved partitions one per sensor."""
        table = self._serving.table
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
        encode = self._serving.tag.encode
        size = states.dtype.itemsize
        packed = states.tobytes()
        values = [encode(packed[start : start + size]) for start in range(0, len(packed), size)]
        return [sensor.encode() for sensor in self._serving.table.sensors_at(rows.tolist())], values

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
