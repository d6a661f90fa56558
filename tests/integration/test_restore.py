"""Unusable state records of every kind: their sensors are rebuilt, counted, and not silently reset."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from pipeline.kafka.clients import make_producer
from pipeline.kafka.topics import ensure_topics
from pipeline.messages import decode_state
from pipeline.settings import Settings
from tests.conftest import SettingsFactory
from tests.integration.stream_rig import (
    FolderChampion,
    assert_same,
    expected_forecasts,
    partition_of,
    publish,
    read_all,
    rounds,
    running,
    small_forecaster,
    wait_for_forecasts,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.integration


def of_another_version(value: bytes) -> bytes:
    tag, row = decode_state(value)
    return msgspec.structs.replace(tag, model_version=7).encode(row)


def of_other_settings(value: bytes) -> bytes:
    tag, row = decode_state(value)
    return msgspec.structs.replace(tag, settings="0123456789ab").encode(row)


def of_another_size(value: bytes) -> bytes:
    tag, row = decode_state(value)
    return tag.encode(row[:-8])


# sensor -> the damaged form of its newest state record
DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "whole": lambda value: value,
    "deleted": lambda value: None,
    "empty": lambda value: b"",
    "foreign": lambda value: b'{"not": "ours"}',
    "cut": lambda value: value[: len(value) // 2],
    "bit-flipped": lambda value: value[:100] + bytes([value[100] ^ 1]) + value[101:],
    "older-schema": lambda value: value[:4] + b"\x00\x00" + value[6:],
    "other-version": of_another_version,
    "other-settings": of_other_settings,
    "other-size": of_another_size,
    "all-ones": lambda value: b"\xff" * len(value),
}
SENSORS = list(DAMAGE)


@pytest.fixture
def settings(broker: Settings, fresh_settings: SettingsFactory) -> Settings:
    made = fresh_settings(features=["a"], targets=["a"], horizon_steps=2)
    ensure_topics(made)
    return made


def test_sensors_with_unusable_state_records_are_rebuilt_and_counted(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    champion = FolderChampion(tmp_path / "champion", settings)
    champion.promote(1, small_forecaster(settings))
    count = publish(settings, rounds(settings, SENSORS, range(15)))
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.forecasts == count, 30, "the readings were forecast")
    topic = settings.kafka.topics.state
    newest = {record.key: record for record in read_all(settings, topic)}
    producer = make_producer(settings)
    for sensor, damage in DAMAGE.items():
        record = newest[sensor.encode()]
        producer.send(topic, damage(record.value), record.key, partition=record.partition)
    # Two keys without a sensor: one is not UTF-8, and the sensor of the other has no readings.
    producer.send(topic, newest[b"whole"].value, b"\xff\xfe", partition=0)
    producer.send(topic, b"of nobody", b"stranger", partition=partition_of(settings, "stranger"))
    producer.flush()
    producer.close()
    with running(settings, champion) as forecaster:
        count += publish(settings, rounds(settings, SENSORS, range(15, 20)))
        found = wait_for_forecasts(settings, count)
    assert_same(found, expected_forecasts(settings, small_forecaster(settings)))
    counters = forecaster.counters
    assert counters.restored_sensors == 1
    assert counters.rebuilt_sensors == len(SENSORS) - 1
    assert counters.cold_sensors == 1  # the stranger
    said = "\n".join(caplog.messages)
    for sensor in ("empty", "foreign", "cut", "bit-flipped", "older-schema", "other-size", "all-ones"):
        assert f"the state of sensor {sensor}, partition" in said
    assert "is not a sensor id" in said
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.restore_s > 0, 30, "the states were restored")
        wait_until(lambda: forecaster.counters.restored_sensors >= len(SENSORS), 30, "the changelog is complete again")
    assert forecaster.counters.rebuilt_sensors == 0
