"""The sides of the throughput benchmark: each reads the same topic from its beginning to its end."""

import multiprocessing
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from kafka import TopicPartition
from kafka.structs import OffsetAndMetadata

from model.state import blank_states
from model.stepper import Stepper
from pipeline.forecast_encoding import ForecastEncoder, ForecastInputs
from pipeline.forecaster.loop import Options, StreamForecaster
from pipeline.history.ingest import ingest
from pipeline.kafka.batch_consumer import fetch_late
from pipeline.kafka.clients import make_consumer, make_producer
from pipeline.kafka.instance import Instance
from pipeline.kafka.topics import ensure_topics
from pipeline.messages import ModelId
from pipeline.settings import Settings
from tests.benchmarks.meter import Meter, Run
from tests.integration.stream_rig import FolderChampion, publish, rounds, small_forecaster

HIDDEN_SIZE = 64
FEATURES = ("a", "b", "c")
ADAPTATIONS = ("off", "light", "full")


@dataclass(frozen=True)
class Input:
    """Settings with a filled readings topic, and its number of readings."""

    settings: Settings
    readings: int


def fill(base: Settings, sensors: int, steps: int) -> Input:
    """Create the topics of ``base``, and publish ``steps`` readings of every sensor."""
    ensure_topics(base)
    names = [f"sensor-{number:05d}" for number in range(sensors)]
    return Input(base, publish(base, rounds(base, names, range(steps))))


def adapting(base: Settings, level: str) -> Settings:
    """The base settings with a level of adaptation. "off" also turns calibration off."""
    chosen = {"adaptation": level, "calibration": level != "off"}
    return base.model_copy(update={"forecaster": base.forecaster.model_copy(update=chosen)})


def again(settings: Settings, **overrides: Any) -> Settings:
    """Settings for the same readings with new output topics, group and history: a run starts at the first reading."""
    name = uuid.uuid4().hex[:8]
    content = settings.model_dump() | overrides
    content["kafka"]["topics"] |= {"forecasts": f"forecasts-{name}", "state": f"state-{name}"}
    content["forecaster"] |= {"group_id": f"group-{name}"}
    content["history"] = settings.home / f"history-{name}"
    made = Settings(**content)
    ensure_topics(made)
    return made


def poll(source: Input, meter: Meter) -> Run:
    """A consumer that discards the readings."""
    settings = source.settings
    with _reader(settings, group_id=None) as consumer:
        first = _first_poll(consumer)
        seen = 0
        meter.begin()
        while first + seen < source.readings:
            seen += sum(map(len, consumer.poll(timeout_ms=1_000).values()))
        meter.end()
    return meter.run(seen)


def pass_through(settings: Settings, readings: int, payload: bytes, meter: Meter) -> Run:
    """Consuming, ``send`` and commit in transactions, without decoding, model or states."""
    with _passing(settings) as (consumer, producer):
        seen = 0
        while seen < readings:
            batches = consumer.poll(timeout_ms=1_000)
            if batches and not seen:
                meter.begin()
            if batches:
                seen += _pass_on(settings, consumer, producer, batches, payload)
        meter.end()
    return meter.run(seen)


def keep_passing(settings: Settings, payload: bytes, ready: Any) -> None:
    """``pass_through`` in a separate process, until it is killed or its parent ends.

    It fetches late, as the forecaster does. Otherwise each reading would wait for one more transaction.

    Args:
        ready: an event that is set when partitions are assigned.
    """
    parent = multiprocessing.parent_process()
    with _passing(settings) as (consumer, producer):
        fetch_late(consumer)
        while parent is None or parent.is_alive():
            batches = consumer.poll(timeout_ms=100)
            if batches:
                _pass_on(settings, consumer, producer, batches, payload)
            elif consumer.assignment():
                ready.set()


def forecast(source: Input, horizon_steps: int, quantiles: tuple[float, ...], health_port: int | None = None) -> float:
    """Readings per second of the forecaster, from its first batch to its last commit, with new output topics."""
    return forecast_into(
        again(source.settings, horizon_steps=horizon_steps, quantiles=quantiles), source.readings, health_port
    ).rate


def forecast_into(
    settings: Settings,
    readings: int,
    health_port: int | None = None,
    *,
    meter: Meter | None = None,
    restored: int = 0,
) -> Run:
    """The forecaster, from its first batch to its last commit, with these settings and their empty forecasts topic.

    Args:
        restored: states in the changelog; the run begins when all are restored.
    """
    meter = meter or Meter()
    champion = champion_for(settings)
    before = 0  # forecasts

    def reached(point: str) -> None:
        nonlocal before
        counters = forecaster.counters
        if point == "committed":
            meter.end()
        elif point == "polled" and counters.restored_sensors < restored:
            before = -1  # some partitions may be served before all are restored
        elif point == "polled" and (before < 0 or counters.forecasts == before):
            before = counters.forecasts
            meter.begin()  # set by each poll, until one returns readings
        elif counters.forecasts >= readings:
            forecaster.stop()

    options = Options(reached=reached, health_port=health_port)
    forecaster = StreamForecaster(settings, champion, Instance("bench", exclusive=False), options)
    forecaster.run()
    assert forecaster.counters.forecasts == readings
    return meter.run(readings - before)


def ingest_all(source: Input) -> Run:
    """An ingest into a new history table, commits included."""
    done = ingest(again(source.settings))
    assert done.readings == source.readings
    return Run(done.readings, done.seconds, 0.0, 0.0)


def champion_for(settings: Settings) -> FolderChampion:
    """A champion with random weights and the benchmarks' hidden size."""
    folder = Path(settings.home) / f"champion-{settings.forecaster.group_id}"
    champion = FolderChampion(folder, settings)
    champion.promote(1, small_forecaster(settings, hidden_size=HIDDEN_SIZE))
    return champion


def forecast_value(settings: Settings) -> bytes:
    """The value of one forecast record under these settings."""
    forecaster = small_forecaster(settings, hidden_size=HIDDEN_SIZE)
    encoder = ForecastEncoder(settings, ModelId(settings.model_name, 1), forecaster.config)
    one = np.zeros(1, np.int64)
    values = np.full((1, len(settings.features)), 12.345)
    states = blank_states(forecaster.config, 1, settings.adaptation)
    stepper = Stepper(forecaster, settings.adaptation)
    stepped = stepper.step(states, ["sensor-00000"], one, one, values, one)
    inputs = ForecastInputs(settings.kafka.topics.readings, one, ["sensor-00000"], one, one, one)
    (value,), _ = encoder.encode(inputs, stepped)
    return value


@contextmanager
def _passing(settings: Settings) -> Iterator[tuple[Any, Any]]:
    """A consumer and a transactional producer with the forecaster's options."""
    group = settings.forecaster.group_id
    producer = make_producer(settings, transactional_id=group)
    try:
        producer.init_transactions()
        producer.partitions_for(settings.kafka.topics.forecasts)
        with _reader(settings, group_id=group) as consumer:
            yield consumer, producer
    finally:
        producer.close()


def _pass_on(settings: Settings, consumer: Any, producer: Any, batches: Any, payload: bytes) -> int:
    """Commit one transaction: a record per polled record, and the offsets; return the number of records."""
    topic = settings.kafka.topics.forecasts
    group_metadata = consumer.group_metadata()
    producer.begin_transaction()
    for where, records in batches.items():
        for record in records:
            producer.send(topic, value=payload, key=record.key, partition=where.partition)
    producer.flush()
    producer.send_offsets_to_transaction({where: _next(records) for where, records in batches.items()}, group_metadata)
    producer.commit_transaction()
    return sum(map(len, batches.values()))


@contextmanager
def _reader(settings: Settings, group_id: str | None) -> Iterator[Any]:
    topic = settings.kafka.topics.readings
    consumer = make_consumer(settings, group_id=group_id, auto_offset_reset="earliest")
    if group_id is None:
        consumer.assign([TopicPartition(topic, number) for number in range(settings.kafka.partitions)])
    else:
        consumer.subscribe([topic])
    try:
        yield consumer
    finally:
        consumer.close()


def _first_poll(consumer: Any) -> int:
    while True:
        batches = consumer.poll(timeout_ms=1_000)
        if batches:
            return sum(map(len, batches.values()))


def _next(records: list[Any]) -> Any:
    return OffsetAndMetadata(records[-1].offset + 1, "", -1)
