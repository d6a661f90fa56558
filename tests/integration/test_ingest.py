"""Ingest against a real broker: each reading once, even after kills, and errors that say what to do."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from kafka import TopicPartition
from kafka.admin import NewTopic

from pipeline.errors import Busy, HistoryError, OffsetsLost, TopicError
from pipeline.file_lock import hold_lock
from pipeline.history.ingest import IngestReport, ingest
from pipeline.history.table import History
from pipeline.kafka.clients import make_admin, make_producer
from pipeline.messages import encode_reading
from pipeline.settings import Settings
from pipeline.settings.sections import TimeSettings
from tests.conftest import SettingsFactory
from tests.environment import environment
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

HOUR_US = 3_600_000_000
SENSORS = 7


@pytest.fixture
def settings(broker: Settings, fresh_settings: SettingsFactory) -> Settings:
    return fresh_settings(features=["a", "b"], targets=["a"])


def create_topic(settings: Settings) -> None:
    admin = make_admin(settings)
    admin.create_topics([NewTopic(settings.kafka.topics.readings, settings.kafka.partitions, 1)])
    admin.close()


def publish(settings: Settings, count: int, *, first: int = 0, transactional: bool = False) -> None:
    """Publish readings numbered from ``first``: reading i is of sensor i % 7, and its value of ``a`` is i."""
    producer = make_producer(settings, transactional_id=f"tx-{time.time_ns()}" if transactional else None)
    topic = settings.kafka.topics.readings
    if transactional:
        producer.init_transactions()
        producer.begin_transaction()
    for number in range(first, first + count):
        key, value = encode_reading(f"s{number % SENSORS}", number * HOUR_US, {"a": float(number), "b": None})
        producer.send(topic, key=key, value=value, partition=number % SENSORS % settings.kafka.partitions)
    if transactional:
        producer.commit_transaction()
    producer.flush()
    producer.close()


def send_raw(settings: Settings, *records: tuple[bytes | None, bytes | None]) -> None:
    producer = make_producer(settings)
    for key, value in records:
        producer.send(settings.kafka.topics.readings, key=key, value=value, partition=0)
    producer.flush()
    producer.close()


def numbers_in_history(settings: Settings) -> list[int]:
    frame = History(settings.history_path, settings.features).scan().sort("a").collect()
    return [int(number) for number in frame["a"]]


def test_ingest_appends_only_new_readings(settings: Settings) -> None:
    create_topic(settings)
    publish(settings, 500)
    assert ingest(settings).readings == 500
    publish(settings, 300, first=500)
    assert ingest(settings).readings == 300

    assert numbers_in_history(settings) == list(range(800))
    frame = History(settings.history_path, settings.features).scan().collect()
    assert frame["b"].null_count() == 800
    row = frame.filter(pl.col("a") == 12.0)
    assert row["sensor_id"].item() == "s5"
    assert row["timestamp"].dt.epoch("us").item() == 12 * HOUR_US


def test_ingest_without_new_readings_makes_no_commit(settings: Settings) -> None:
    create_topic(settings)
    assert str(ingest(settings)) == f"nothing new on topic {settings.kafka.topics.readings}"
    publish(settings, 10)
    ingest(settings)
    version = History(settings.history_path, settings.features).version
    assert ingest(settings).total_offsets == 0
    assert History(settings.history_path, settings.features).version == version


def test_late_readings_are_counted_by_sensor_with_the_remedy(settings: Settings) -> None:
    # The readings are of 1970.
    settings = settings.model_copy(update={"times": TimeSettings(earliest=datetime(1960, 1, 1, tzinfo=UTC))})
    create_topic(settings)
    publish(settings, 70, first=7_000)
    assert ingest(settings).late == {}
    publish(settings, 1_400)  # a backfill behind the live readings
    publish(settings, 7, first=7_070)
    done = ingest(settings, chunk_readings=500)
    assert done.late == {f"s{number}": 200 for number in range(SENSORS)}
    assert "late, not used in training: s0 200" in str(done)
    assert 'training.late = "train"' in str(done)


def test_transaction_markers_at_the_end_of_a_partition_do_not_block_ingest(settings: Settings) -> None:
    create_topic(settings)
    publish(settings, 50, transactional=True)
    assert ingest(settings).readings == 50
    assert ingest(settings).total_offsets == 0


def test_malformed_records_are_skipped_and_counted_by_reason(settings: Settings) -> None:
    create_topic(settings)
    send_raw(
        settings,
        (b"s1", b"not json"),
        (None, b'{"sensor_id": "s1", "timestamp": "2020-01-01T00:00:00Z", "values": {"a": 1}}'),
        (b"s1", None),
        (b"s1", b'{"sensor_id": "s1", "timestamp": "2020-01-01T00:00:00Z", "values": {"z": 1}}'),
    )
    publish(settings, 20)
    done = ingest(settings)
    assert done.readings == 20
    assert done.rejected == {"malformed": 1, "bad-key": 1, "no-value": 1, "no-feature": 1}
    assert "malformed and left out: bad-key 1" in str(done)
    assert ingest(settings).total_offsets == 0


def test_ingest_of_only_malformed_records_still_moves_the_offsets(settings: Settings) -> None:
    create_topic(settings)
    send_raw(settings, (b"s1", b"?"))
    assert ingest(settings).rejected == {"malformed": 1}
    assert ingest(settings).total_offsets == 0


def test_a_missing_topic_is_an_error_that_says_how_to_create_it(settings: Settings) -> None:
    with pytest.raises(TopicError, match="streamgru topics create"):
        ingest(settings)


def test_a_second_ingest_at_the_same_time_is_refused(settings: Settings) -> None:
    create_topic(settings)
    lock = settings.history_path.with_name(f"{settings.history_path.name}.ingest.lock")
    with hold_lock(lock, "held"), pytest.raises(Busy, match="another ingest"):
        ingest(settings)


def test_deleted_readings_are_an_error_unless_the_loss_is_accepted(settings: Settings) -> None:
    create_topic(settings)
    publish(settings, 140)
    ingest(settings)
    publish(settings, 140, first=140)
    admin = make_admin(settings)
    topic = settings.kafka.topics.readings
    kept = History(settings.history_path, settings.features).next_offsets(topic)[1]
    admin.delete_records({TopicPartition(topic, 1): kept + 10})
    admin.close()

    with pytest.raises(
        OffsetsLost, match=rf"partition 1: next offset {kept}, first offset on the topic {kept + 10}.*--accept-loss"
    ):
        ingest(settings)
    done = ingest(settings, accept_loss=True)
    assert done.lost_offsets == 10
    assert done.readings == 130
    assert ingest(settings).total_offsets == 0


def test_readings_deleted_from_a_partition_that_was_empty_so_far_are_an_error(settings: Settings) -> None:
    create_topic(settings)
    send_raw(settings, (b"s1", b"?"))  # to partition 0 only
    ingest(settings)
    topic = settings.kafka.topics.readings
    assert History(settings.history_path, settings.features).next_offsets(topic) == {0: 1, 1: 0}
    publish(settings, 14)
    admin = make_admin(settings)
    admin.delete_records({TopicPartition(topic, 1): 2})
    admin.close()
    with pytest.raises(OffsetsLost, match="partition 1: next offset 0, first offset on the topic 2"):
        ingest(settings)


@pytest.mark.parametrize("records", [14, 140, 280], ids=["shorter", "as-long", "longer"])
def test_a_recreated_topic_is_refused(settings: Settings, records: int) -> None:
    create_topic(settings)
    publish(settings, 140)
    ingest(settings)
    ingest(settings)
    admin = make_admin(settings)
    admin.delete_topics([settings.kafka.topics.readings])
    wait_until(lambda: settings.kafka.topics.readings not in admin.list_topics(), 30, "the topic is deleted")
    admin.close()
    create_topic(settings)
    publish(settings, records)
    with pytest.raises(TopicError, match="deleted and recreated"):
        ingest(settings)
    assert numbers_in_history(settings) == list(range(140))


def test_a_table_without_a_topic_id_gets_the_id_of_the_present_topic(settings: Settings) -> None:
    create_topic(settings)
    publish(settings, 14)
    history = History(settings.history_path, settings.features)
    history.create()
    topic = settings.kafka.topics.readings
    none = pl.DataFrame({name: [] for name in ("sensor_id", "timestamp", "a", "b", "partition", "offset")})
    history.append(none, {0: 2}, topic)
    assert ingest(settings).readings == 12
    assert history.is_of_another_topic(topic, "another")
    assert ingest(settings).total_offsets == 0


def test_a_table_of_another_topic_is_refused(settings: Settings, fresh_settings: SettingsFactory) -> None:
    create_topic(settings)
    publish(settings, 14)
    ingest(settings)
    other = fresh_settings(features=["a", "b"], targets=["a"], history=settings.history_path)
    create_topic(other)
    publish(other, 14)
    with pytest.raises(HistoryError, match=r"of a topic other than .*point `history`"):
        ingest(other)
    assert numbers_in_history(settings) == list(range(14))
    assert ingest(settings).total_offsets == 0


# --- kill -9 ----------------------------------------------------------------------------------------------------------

KILLED_RUN = """
import os, signal, sys
from pipeline.history.ingest import ingest
from pipeline.settings import load_settings

left = int(sys.argv[1])
def report(done):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

ingest(load_settings(), chunk_readings=400, report=report)
"""


def run_killed(settings: Settings, at_report: int) -> int:
    done = subprocess.run(
        [sys.executable, "-c", KILLED_RUN, str(at_report)], env=environment(settings), timeout=60, check=False
    )
    return done.returncode


def test_a_kill_at_any_report_loses_and_repeats_no_reading(settings: Settings) -> None:
    create_topic(settings)
    publish(settings, 5_000)
    for kill, at_report in enumerate((1, 2, 3, 6)):  # the reports come after a poll, after a commit, and later
        assert run_killed(settings, at_report) == -signal.SIGKILL
        publish(settings, 100, first=5_000 + 100 * kill)
    so_far = numbers_in_history(settings)
    assert 0 < len(so_far) < 5_000
    assert len(set(so_far)) == len(so_far)
    ingest(settings)
    assert numbers_in_history(settings) == list(range(5_400))


def data_files(table: Path) -> Iterator[Path]:
    return table.glob("*.parquet")


def test_a_kill_between_data_file_and_commit_loses_and_repeats_no_reading(settings: Settings) -> None:
    """Between data file and commit, the file with the readings is on disk, and no commit of the table names it."""
    create_topic(settings)
    publish(settings, 20_000)
    kills = 0
    for _ in range(2):
        seen = set(data_files(settings.history_path))
        run = subprocess.Popen([sys.executable, "-c", KILLED_RUN, "-1"], env=environment(settings))
        deadline = time.monotonic() + 60
        while run.poll() is None and not set(data_files(settings.history_path)) - seen:
            assert time.monotonic() < deadline
        run.kill()
        kills += run.wait() == -signal.SIGKILL
    assert kills
    reports: list[IngestReport] = []
    done = ingest(settings, report=reports.append)
    assert not reports or reports[-1] == replace(done, seconds=reports[-1].seconds)
    assert numbers_in_history(settings) == list(range(20_000))
