"""``streamgru publish`` publishes files as readings: completely, in order, and resumable."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner, Result
from kafka import TopicPartition
from kafka.partitioner.default import murmur2

import deploy
from deploy.commands.publish import publish
from deploy.context import Context
from pipeline.errors import DataFileError, TopicError
from pipeline.kafka.clients import make_consumer
from pipeline.kafka.topics import ensure_topics
from pipeline.messages import Reading, ReadingDecoder
from pipeline.settings import Settings
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

SettingsFactory = Callable[..., Settings]
HOUR_US = 3_600_000_000
BUNDLED = Path(deploy.__path__[0]) / "data" / "beijing.parquet"


@pytest.fixture
def settings(broker: Settings, fresh_settings: SettingsFactory) -> Settings:
    made = fresh_settings(kafka={"partitions": 4})
    ensure_topics(made)
    return made


def run(settings: Settings, *arguments: object) -> Result:
    return CliRunner().invoke(publish, [str(each) for each in arguments], obj=Context(lambda: settings))


class Published(NamedTuple):
    partition: int
    reading: Reading


def published(settings: Settings) -> list[Published]:
    """Every reading on the topic, partition by partition."""
    decoder = ReadingDecoder(settings.features)
    topic = settings.kafka.topics.readings
    consumer = make_consumer(settings)
    try:
        where = [TopicPartition(topic, partition) for partition in range(settings.kafka.partitions)]
        consumer.assign(where)
        consumer.seek_to_beginning(*where)
        ends = consumer.end_offsets(where)
        found: list[Published] = []

        def arrived() -> bool:
            for records in consumer.poll(timeout_ms=200, max_records=50_000).values():
                found.extend(Published(each.partition, decoder.decode(each.key, each.value)) for each in records)
            return len(found) >= sum(ends.values())

        wait_until(arrived, 60, "all readings read back")
        return found
    finally:
        consumer.close()


def write_hours(path: Path, count: int, column: str = "value") -> Path:
    hours = (f"2020-01-{1 + i // 24:02}T{i % 24:02}:00:00Z,{i}\n" for i in range(count))
    path.write_text(f"timestamp,{column}\n" + "".join(hours), encoding="utf-8")
    return path


def test_the_readings_of_each_file_arrive_in_order_on_the_partition_of_its_sensor(
    settings: Settings, tmp_path: Path
) -> None:
    files = [write_hours(tmp_path / f"sensor {i}.csv", 300) for i in range(6)]
    result = run(settings, *files)
    assert result.exit_code == 0, result.output
    assert "1,800 readings of 6 sensors published" in result.stdout
    by_sensor: dict[str, list[Published]] = {}
    for each in published(settings):
        by_sensor.setdefault(each.reading.sensor_id, []).append(each)
    assert len(by_sensor) == 6
    for sensor, found in by_sensor.items():
        assert [each.reading.values[0] for each in found] == list(range(300))
        assert {each.partition for each in found} == {(murmur2(sensor.encode()) & 0x7FFFFFFF) % 4}


def test_the_bundled_data_is_published_completely(fresh_settings: SettingsFactory, broker: Settings) -> None:
    settings = fresh_settings(features=("PM2.5", "TEMP"), targets=("TEMP",))
    ensure_topics(settings)
    options = ("--sensor-column", "station", "--timezone", "Asia/Shanghai")
    result = run(settings, BUNDLED, *options, "--until", "2014-03-01")
    assert result.exit_code == 0, result.output
    found = published(settings)
    count = int(re.findall(r"([\d,]+) readings of 12 sensors", result.stdout)[0].replace(",", ""))
    assert len(found) == count > 105_000
    assert max(each.reading.timestamp_us for each in found) == 1_393_599_600_000_000  # 23:00 on 28 February in Shanghai
    result = run(settings, BUNDLED, *options, "--from", "2014-03-01", "--limit", "12")
    assert result.exit_code == 0, result.output
    latest = sorted(each.reading.timestamp_us for each in published(settings))[-13:]
    assert latest == [1_393_599_600_000_000] + [1_393_603_200_000_000] * 12


def test_a_refused_publication_publishes_nothing(settings: Settings, tmp_path: Path) -> None:
    path = write_hours(tmp_path / "a.csv", 3)
    bad = tmp_path / "bad.csv"
    bad.write_text("timestamp,value\n2020-01-01T00:00:00Z,x\n", encoding="utf-8")
    assert isinstance(run(settings, path, bad).exception, DataFileError)
    assert isinstance(run(settings, tmp_path / "none.csv").exception, DataFileError)
    for arguments, message in (
        (("--from", "soon"), "'soon' is neither a row nor a time"),
        (
            ("--from", "2021-01-01"),
            "nothing to publish: no readings from 2021-01-01; the files have 3, from 2020-01-01T00",
        ),
        (("--speed", "0"), "0.0 is not in the range x>0"),
        (("--order", "file", "--until", "2020-01-01"), "accept times only with --order event"),
        (("--limit", "0"), "0 is not in the range x>=1"),
    ):
        result = run(settings, path, *arguments)
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())
    assert published(settings) == []


def test_a_missing_topic_is_an_error_that_says_how_to_create_it(
    broker: Settings, fresh_settings: SettingsFactory, tmp_path: Path
) -> None:
    settings = fresh_settings()
    result = run(settings, write_hours(tmp_path / "a.csv", 3))
    assert isinstance(result.exception, TopicError)
    assert "streamgru topics create" in str(result.exception)


def test_speed_keeps_the_time_between_readings(settings: Settings, tmp_path: Path) -> None:
    path = write_hours(tmp_path / "a.csv", 5)
    begun = time.monotonic()
    result = run(settings, path, "--speed", 4 * 3_600)  # 4 hours of data in one second
    assert result.exit_code == 0, result.output
    assert time.monotonic() - begun >= 1.0
    assert len(published(settings)) == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_publication_says_at_which_row_to_continue_without_loss(
    settings: Settings, tmp_path: Path, number: signal.Signals
) -> None:
    path = write_hours(tmp_path / "a.csv", 700)
    settings_file = tmp_path / "settings.toml"
    topics = "\n".join(f'{name} = "{topic}"' for name, topic in settings.kafka.topics.model_dump().items())
    settings_file.write_text(
        f'[kafka]\nbootstrap_servers = "{settings.kafka.bootstrap_servers}"\npartitions = 4\n'
        f"[kafka.topics]\n{topics}\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "deploy.cli", "--settings", str(settings_file), "publish", str(path)]
    process = subprocess.Popen(
        [*command, "--speed", str(50 * 3_600)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_until(lambda: len(published(settings)) > 20, 60, "some readings are published")
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130, said
    row = int(re.findall(r"of 700 readings are published for certain. To continue, .* --from (\d+)", said)[0])
    assert 0 < row < 700
    before = [each.reading.timestamp_us for each in published(settings)]
    assert len(before) >= row

    result = subprocess.run([*command, "--from", str(row)], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    every = [each.reading.timestamp_us for each in published(settings)]
    assert len(set(every)) == 700
    assert len(every) == len(before) + 700 - row
    assert set(every[:row]) == {every[0] + i * HOUR_US for i in range(row)}


def test_publish_imports_neither_torch_nor_mlflow() -> None:
    program = "import sys, deploy.commands.publish; sys.exit('torch' in sys.modules or 'mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
