"""Readings of other Kafka clients: with any compression codec and any header names."""

from pathlib import Path

import pytest
from kafka import TopicPartition

from pipeline.audit.verify import verify
from pipeline.history.ingest import ingest
from pipeline.kafka.batch_consumer import read_fast
from pipeline.kafka.batch_producer import BatchAppender, encode_headers
from pipeline.kafka.clients import make_consumer, make_producer
from pipeline.kafka.record_batch import FetchedRecord, Headers
from pipeline.kafka.topics import ensure_topics
from pipeline.settings import Settings
from tests.conftest import SettingsFactory
from tests.integration.stream_rig import (
    FolderChampion,
    expected_forecasts,
    rounds,
    running,
    small_forecaster,
    wait_for_forecasts,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

SENSORS = ["sensor-0", "sensor-1"]
CODECS = ("gzip", "snappy", "lz4", "zstd")
NO_UTF8: Headers = [("origin\udcff\udc80", b"elsewhere"), ("empty", None)]


@pytest.fixture
def settings(broker: Settings, fresh_settings: SettingsFactory) -> Settings:
    made = fresh_settings(features=["a"], targets=["a"], horizon_steps=1, kafka={"partitions": 1})
    ensure_topics(made)
    return made


@pytest.fixture
def champion(settings: Settings, tmp_path: Path) -> FolderChampion:
    champion = FolderChampion(tmp_path / "champion", settings)
    champion.promote(1, small_forecaster(settings))
    return champion


def send(settings: Settings, steps: range, headers: Headers, codec: str | None = None) -> None:
    """Publish the readings of ``steps``, and an invalid record after them."""
    producer = make_producer(settings, compression_type=codec)
    messages = list(rounds(settings, SENSORS, steps))
    keys = [message.key for message in messages] + [b"sensor-0"]
    values = [message.value for message in messages] + [b"rubbish"]
    BatchAppender(producer).append(settings.kafka.topics.readings, 0, keys, values, encode_headers(headers))
    producer.flush()
    producer.close()


def read_dead_letters(settings: Settings, count: int) -> list[FetchedRecord]:
    where = TopicPartition(settings.kafka.topics.dead_letters, 0)
    consumer = read_fast(make_consumer(settings), settings.kafka)
    consumer.assign([where])
    consumer.seek(where, 0)
    found: list[FetchedRecord] = []

    def all_read() -> bool:
        found.extend(consumer.poll(timeout_ms=100).get(where, []))
        return len(found) >= count

    wait_until(all_read, 30, "the dead letters were read")
    consumer.close()
    return found


def test_readings_of_every_codec_are_forecast_and_ingested(settings: Settings, champion: FolderChampion) -> None:
    for number, codec in enumerate(CODECS):
        send(settings, range(5 * number, 5 * (number + 1)), [], codec)
    count = 5 * len(CODECS) * len(SENSORS)
    with running(settings, champion):
        found = wait_for_forecasts(settings, count)
    assert found == expected_forecasts(settings, small_forecaster(settings))
    assert ingest(settings).readings == count


def test_a_header_with_a_non_utf8_name_does_not_stop_the_stream(settings: Settings, champion: FolderChampion) -> None:
    """Brokers accept any bytes as a name; kafka-python alone would raise again after every restart."""
    send(settings, range(5), NO_UTF8)
    count = 5 * len(SENSORS)
    with running(settings, champion):
        wait_for_forecasts(settings, count)
        [letter] = read_dead_letters(settings, 1)
    assert letter.headers[: len(NO_UTF8)] == NO_UTF8
    assert verify(settings, champion.load).faults == {}
    assert ingest(settings).readings == count
