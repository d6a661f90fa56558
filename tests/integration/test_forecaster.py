"""A forecaster on a real broker, checked by a plain consumer of the forecasts topic."""

import random
import time
from typing import Literal

import msgspec
import pytest
from kafka import TopicPartition
from kafka.structs import OffsetAndMetadata

from pipeline.errors import OffsetsLost, StreamgruError, TopicError
from pipeline.kafka.clients import make_admin, make_consumer, make_producer
from pipeline.kafka.topics import ensure_topics
from pipeline.settings import Settings
from tests.conftest import SettingsFactory
from tests.integration.stream_rig import (
    FolderChampion,
    Message,
    assert_same,
    expected_forecasts,
    publish,
    read_all,
    reading,
    rejected_reason,
    rounds,
    run_until_it_fails,
    running,
    session_of,
    small_forecaster,
    wait_for_forecasts,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

SENSORS = [f"sensor-{number}" for number in range(7)]


@pytest.fixture
def settings(broker: Settings, fresh_settings: SettingsFactory) -> Settings:
    made = fresh_settings(
        features=["a", "b"], targets=["a"], horizon_steps=2, forecaster={"poll_alias_s": 0.2, "max_batch_readings": 50}
    )
    ensure_topics(made)
    return made


@pytest.mark.parametrize("level", ["off", "light", "full"])
def test_every_accepted_reading_gets_one_forecast_in_order(
    settings: Settings, champion: FolderChampion, level: Literal["off", "light", "full"]
) -> None:
    adapting = {"adaptation": level, "calibration": level != "off"}
    settings = settings.model_copy(update={"forecaster": settings.forecaster.model_copy(update=adapting)})
    generator = random.Random(1)
    messages = list(rounds(settings, SENSORS, range(60)))
    messages += list(rounds(settings, SENSORS[:3], range(63, 70)))  # a gap: missing steps
    messages += list(rounds(settings, SENSORS[3:], range(500, 510)))  # a gap beyond the limit: a reset
    for message in generator.sample(messages, 40):
        messages.insert(generator.randrange(len(messages)), message)  # duplicate, late or early
    count = publish(settings, messages)
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.readings == count, 30, "all readings were processed")
    expected = expected_forecasts(settings, small_forecaster(settings))
    found = wait_for_forecasts(settings, len(expected))
    assert_same(found, expected)
    for forecast in found:
        assert ("weights" in msgspec.to_builtins(forecast)) == (level != "off")
        for weights in forecast.weights.values() if forecast.weights else ():
            assert sum(weights.values()) == pytest.approx(1.0, abs=0.01)
            assert {"gru", "persistence", "seasonal"} < weights.keys()
            assert ("gru+hidden" in weights) == (level == "full")
    counters = forecaster.counters
    assert counters.accepted == counters.forecasts == len(expected)
    assert counters.accepted + counters.duplicates + counters.late == count
    assert counters.duplicates
    assert counters.late


def test_invalid_records_become_dead_letters_with_their_reasons(settings: Settings, champion: FolderChampion) -> None:
    invalid = [
        Message(b"sensor-0", b"not json", 0, (("origin", b"test"),)),
        Message(b"sensor-0", None, 1),
        Message(None, reading(settings, "sensor-0", 3).value, 0),
        Message(b"somebody else", reading(settings, "sensor-0", 3).value, 0),
        Message(b"\xff\xfe", b"\x00\x01\xff", 1),
        reading(settings, "sensor-0", 4, stranger=1.0),
        Message(b"sensor-0", b'{"sensor_id":"sensor-0","timestamp":1,"values":{"a":1e300}}', 0),
        Message(b"sensor-0", b"[" * 100_000, 0),
    ]
    good = list(rounds(settings, SENSORS, range(5)))
    messages = good[:10] + invalid[:4] + good[10:20] + invalid[4:] + good[20:]
    publish(settings, messages)
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.readings == len(messages), 30, "all records were processed")
    assert_same(wait_for_forecasts(settings, len(good)), expected_forecasts(settings, small_forecaster(settings)))
    letters = read_all(settings, settings.kafka.topics.dead_letters)
    originals = {
        (record.partition, record.offset): record for record in read_all(settings, settings.kafka.topics.readings)
    }
    assert len(letters) == len(invalid)
    for letter in letters:
        headers = dict(letter.headers)
        original = originals[letter.partition, int(headers["streamgru-offset"])]
        assert (letter.key, letter.value) == (original.key, original.value)
        assert letter.headers[: len(original.headers)] == original.headers
        message = Message(original.key, original.value, original.partition)
        assert headers["streamgru-reason"].decode() == rejected_reason(settings, message)
        assert headers["streamgru-topic"].decode() == settings.kafka.topics.readings
        assert headers["streamgru-partition"] == str(original.partition).encode()
    assert sum(forecaster.counters.dead_letters.values()) == len(invalid)


def test_a_record_that_is_too_large_when_decompressed_becomes_a_truncated_dead_letter(
    settings: Settings, champion: FolderChampion
) -> None:
    producer = make_producer(settings, compression_type="gzip", max_request_size=64_000_000)
    headers = [("mine", b"h" * 3_000_000)]
    producer.send(settings.kafka.topics.readings, b"x" * 3_000_000, b"sensor-0", partition=0)
    producer.send(settings.kafka.topics.readings, b"x" * 20_000_000, b"k" * 3_000_000, headers, partition=0)
    producer.flush()
    producer.close()
    good = list(rounds(settings, SENSORS, range(5)))
    publish(settings, good)
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.readings == len(good) + 2, 30, "all records were processed")
    assert_same(wait_for_forecasts(settings, len(good)), expected_forecasts(settings, small_forecaster(settings)))
    limit = settings.kafka.max_reading_bytes
    first, second = read_all(settings, settings.kafka.topics.dead_letters)
    assert (first.key, first.value) == (b"sensor-0", b"x" * (limit - len(b"sensor-0")))
    assert first.headers[0] == ("streamgru-truncated", b"3000008")
    assert (second.key, second.value) == (b"k" * limit, b"")
    assert second.headers[0][0] == "streamgru-truncated"
    assert sum(forecaster.counters.dead_letters.values()) == 2


def test_unknown_features_are_counted_and_a_traceparent_is_passed_on(
    settings: Settings, champion: FolderChampion
) -> None:
    traced = reading(settings, "sensor-0", 0, a=1.0, stranger=2.0)
    parent = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    publish(
        settings,
        [Message(traced.key, traced.value, 0, (("traceparent", parent),)), reading(settings, "sensor-1", 0)],
    )
    with running(settings, champion) as forecaster:
        wait_for_forecasts(settings, 2)
        wait_until(lambda: forecaster.counters.forecasts == 2, 30, "both forecasts were counted")
    assert forecaster.counters.ignored_features == 1
    headers = {record.key: dict(record.headers) for record in read_all(settings, settings.kafka.topics.forecasts)}
    assert headers[b"sensor-0"]["traceparent"] == parent
    assert "traceparent" not in headers[b"sensor-1"]
    assert headers[b"sensor-0"]["ce_id"].decode() == f"{settings.kafka.topics.readings}-0-0-1"


def test_a_batch_without_an_accepted_reading_still_commits_its_offsets(
    settings: Settings, champion: FolderChampion
) -> None:
    first = list(rounds(settings, SENSORS, range(2)))
    publish(settings, first)
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.readings == len(first), 30, "the readings were processed")
        publish(settings, first)
        wait_until(lambda: forecaster.counters.readings == 2 * len(first), 30, "the duplicates were processed")
        idle = forecaster.counters.transactions
        with pytest.raises(AssertionError):
            wait_until(lambda: forecaster.counters.transactions > idle, 1.0, "an idle loop commits nothing", patience=1)
    assert forecaster.counters.duplicates == forecaster.counters.late == len(SENSORS)
    with running(settings, champion) as again:
        wait_until(lambda: again.counters.restored_sensors == len(SENSORS), 30, "the states were restored")
        publish(settings, rounds(settings, SENSORS, range(2, 3)))
        wait_until(lambda: again.counters.accepted == len(SENSORS), 30, "the new readings were processed")
    assert again.counters.readings == len(SENSORS)
    assert_same(
        wait_for_forecasts(settings, 3 * len(SENSORS)), expected_forecasts(settings, small_forecaster(settings))
    )


def test_start_latest_forecasts_from_the_end_with_states_rebuilt_from_earlier_readings(
    settings: Settings, champion: FolderChampion
) -> None:
    settings = settings.model_copy(update={"forecaster": settings.forecaster.model_copy(update={"start": "latest"})})
    publish(settings, rounds(settings, SENSORS, range(30)))
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.rebuilt_sensors == len(SENSORS), 30, "the states were rebuilt")
        publish(settings, rounds(settings, SENSORS, range(30, 32)))
        found = wait_for_forecasts(settings, 2 * len(SENSORS))
    expected = expected_forecasts(settings, small_forecaster(settings))
    assert_same(found, [forecast for forecast in expected if forecast.state.steps > 30])


def test_readings_deleted_before_their_forecast_are_an_error_unless_loss_is_accepted(
    settings: Settings, champion: FolderChampion
) -> None:
    publish(settings, rounds(settings, SENSORS, range(3)))
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.readings == 3 * len(SENSORS), 30, "the readings were processed")
    publish(settings, rounds(settings, SENSORS, range(3, 6)))
    publish(settings, rounds(settings, SENSORS, range(6, 8)))
    consumer = make_consumer(settings)
    topic = settings.kafka.topics.readings
    everywhere = sorted({record.partition for record in read_all(settings, topic)})
    admin = make_admin(settings)
    ends = consumer.end_offsets([TopicPartition(topic, partition) for partition in everywhere])
    kept = {where: end - end // 8 * 2 for where, end in ends.items()}
    admin.delete_records(kept)
    admin.close()
    consumer.close()
    with pytest.raises(OffsetsLost, match="--accept-loss"):
        run_until_it_fails(settings, champion)
    with running(settings, champion, accept_loss=True) as forecaster:
        remaining = sum(ends[where] - kept[where] for where in kept)
        wait_until(lambda: forecaster.counters.readings == remaining, 30, "the remaining readings were processed")


def test_a_missing_topic_is_an_error_that_names_it(settings: Settings, champion: FolderChampion) -> None:
    topics = settings.kafka.topics.model_copy(update={"state": "no-such-topic"})
    settings = settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"topics": topics})})
    with pytest.raises(TopicError, match="no-such-topic"):
        run_until_it_fails(settings, champion)


def test_a_reset_of_the_groups_offsets_repeats_forecasts_from_rebuilt_states(
    settings: Settings, champion: FolderChampion
) -> None:
    publish(settings, rounds(settings, SENSORS, range(10)))
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.readings == 10 * len(SENSORS), 30, "the readings were processed")
    consumer = make_consumer(settings, group_id=settings.forecaster.group_id)
    where = [TopicPartition(settings.kafka.topics.readings, partition) for partition in range(2)]
    ends = consumer.end_offsets(where)
    back = {partition: OffsetAndMetadata(ends[partition] // 2, "", -1) for partition in where}
    consumer.commit(back)
    consumer.close()
    with running(settings, champion) as forecaster:
        again = sum(ends[partition] - back[partition].offset for partition in where)
        wait_until(lambda: forecaster.counters.readings == again, 30, "the readings were processed again")
    assert forecaster.counters.accepted == again
    assert forecaster.counters.rebuilt_sensors == len(SENSORS)
    found = wait_for_forecasts(settings, 10 * len(SENSORS) + again)
    expected = {forecast.input: forecast for forecast in expected_forecasts(settings, small_forecaster(settings))}
    assert_same(found, [expected[forecast.input] for forecast in found])


def test_a_stuck_forecaster_ends_and_an_idle_one_does_not(settings: Settings, champion: FolderChampion) -> None:
    count = publish(settings, rounds(settings, SENSORS, range(2)))
    with (
        pytest.raises(StreamgruError, match="--max-idle"),
        running(settings, champion, max_idle_s=3.0) as forecaster,
    ):
        wait_until(lambda: forecaster.counters.readings == count, 30, "the readings were processed")
        idle_since = time.monotonic()
        wait_until(lambda: time.monotonic() - idle_since > 4.5, 30, "it was idle for longer than max_idle_s")
        count += publish(settings, rounds(settings, SENSORS, range(2, 4)))
        wait_until(lambda: forecaster.counters.readings == count, 30, "the new readings were processed")
        for where in session_of(forecaster).consumer.assignment():
            session_of(forecaster).consumer.pause(where)
        publish(settings, rounds(settings, SENSORS, range(4, 6)))
        monitor = forecaster._monitor
        assert monitor is not None
        wait_until(lambda: monitor.failure, 30, "the monitor reported that it is stuck")
