"""Readings with implausible times, on a real broker: dead letters, and the same verdicts everywhere."""

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from kafka.admin import ConfigResource, ConfigResourceType

from model.acceptance import ACCEPTED
from pipeline.audit.topic_logs import read_readings
from pipeline.audit.verify import verify
from pipeline.dead_letters import read_letters
from pipeline.forecaster import restore
from pipeline.history.ingest import ingest
from pipeline.history.table import History
from pipeline.kafka.clients import make_admin
from pipeline.kafka.time_rule_log import read_time_rules
from pipeline.kafka.topics import ensure_topics
from pipeline.messages import encode_reading, microseconds
from pipeline.settings import Settings
from pipeline.settings.sections import TimeSettings
from pipeline.windows import load_sequences
from tests.conftest import SettingsFactory
from tests.integration.stream_rig import (
    FolderChampion,
    Message,
    partition_of,
    publish,
    read_forecasts,
    rounds,
    running,
    small_forecaster,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

SENSORS = ["good", "led-astray", "new"]
FAR = datetime(2106, 2, 7, 6, 28, 15, tzinfo=UTC)


@pytest.fixture
def settings(broker: Settings, fresh_settings: SettingsFactory) -> Settings:
    made = fresh_settings(horizon_steps=2, forecaster={"poll_alias_s": 0.1, "rewarm_steps": 30})
    ensure_topics(made)
    return made


def at(settings: Settings, sensor: str, moment: datetime) -> Message:
    key, value = encode_reading(sensor, microseconds(moment), {"value": 1.0})
    return Message(key, value, partition_of(settings, sensor))


def in_seconds(settings: Settings, sensor: str, seconds: int) -> Message:
    value = f'{{"sensor_id": "{sensor}", "timestamp": {seconds}, "values": {{"value": 1.0}}}}'
    return Message(sensor.encode(), value.encode(), partition_of(settings, sensor))


def forecast(settings: Settings, champion: FolderChampion, messages: list[Message], version: int = 1) -> None:
    publish(settings, messages)
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.readings == len(messages), 60, "the readings were processed")
        wait_until(lambda: forecaster.counters.model_version == version, 60, f"version {version} serves")


def accepted_by_stream(settings: Settings) -> list[tuple[str, int]]:
    return sorted((found.sensor_id, found.input.offset) for found in read_forecasts(settings))


def accepted_in_history(settings: Settings) -> list[tuple[str, int]]:
    sequences = load_sequences(History(settings.history_path, settings.features), settings)
    return sorted(
        (sensor, offset)
        for number, sensor in enumerate(sequences.sensors)
        for offset in sequences.offset[slice(*sequences.span(number))].tolist()
        if offset >= 0
    )


def accepted_by_audit(settings: Settings) -> list[tuple[str, int]]:
    log = read_readings(settings)
    rows = log.verdict == ACCEPTED
    return sorted(
        (log.sensors[code], offset)
        for code, offset in zip(log.sensor[rows].tolist(), log.offset[rows].tolist(), strict=True)
    )


@pytest.mark.parametrize("stamped_by", ["CreateTime", "LogAppendTime"])
def test_an_implausible_time_is_a_dead_letter_and_its_sensor_goes_on(
    settings: Settings, champion: FolderChampion, caplog: pytest.LogCaptureFixture, stamped_by: str
) -> None:
    with make_admin(settings) as admin:
        changes = {"message.timestamp.type": stamped_by}
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, settings.kafka.topics.readings, changes)])
    seconds = microseconds(datetime(2023, 11, 20, tzinfo=UTC)) // 1_000_000
    wrong = [at(settings, "good", FAR), in_seconds(settings, "good", seconds)]
    tomorrow = at(settings, "new", datetime.now(UTC) + timedelta(hours=20))
    messages = [*rounds(settings, SENSORS, range(5)), *wrong, *rounds(settings, SENSORS, range(5, 10)), tomorrow]
    with caplog.at_level(logging.WARNING, "streamgru.reading_times"):
        forecast(settings, champion, messages)
    letters = {letter.detail: letter.reason for letter in read_letters(settings)}
    assert set(letters.values()) == {"implausible-time"}
    assert any("years later than the record's timestamp" in detail for detail in letters)
    assert any("epoch seconds (2023-11-20T00:00:00Z)" in detail for detail in letters)
    assert "sensor good, partition" in caplog.text
    assert len(accepted_by_stream(settings)) == len(SENSORS) * 10 + 1

    report = ingest(settings)
    assert report.implausible == {"good": 2}
    assert "implausible times, not used in training: good 2" in str(report)
    assert accepted_in_history(settings) == accepted_by_stream(settings) == accepted_by_audit(settings)
    verdict = verify(settings, champion.load)
    assert verdict.faults == {}
    assert verdict.implausible_times == {"good": 2}


def test_an_upgrade_changes_no_earlier_verdict(
    settings: Settings,
    champion: FolderChampion,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    with monkeypatch.context() as release_without_rules:
        release_without_rules.setattr(restore, "time_rules_from", lambda *_: ())
        early = at(settings, "led-astray", datetime(1975, 1, 1, tzinfo=UTC))
        messages = [early, *rounds(settings, SENSORS, range(5)), at(settings, "led-astray", FAR)]
        forecast(settings, champion, [*messages, *rounds(settings, SENSORS, range(5, 8))])
    assert set(read_time_rules(settings).values()) == {()}
    ingest(settings)
    before = accepted_by_stream(settings)
    assert accepted_in_history(settings) == before == accepted_by_audit(settings)
    assert verify(settings, champion.load).faults == {}

    wrong = [at(settings, "good", FAR), at(settings, "led-astray", FAR + timedelta(hours=1))]
    forecast(settings, champion, [*wrong, *rounds(settings, SENSORS, range(8, 12))])
    assert [rule.from_offset > 0 for rules in read_time_rules(settings).values() for rule in rules] == [True] * len(
        {message.partition for message in messages}
    )
    assert set(before) <= set(accepted_by_stream(settings))
    assert sorted(letter.key for letter in read_letters(settings)) == [b"good", b"led-astray"]
    ingest(settings)
    assert accepted_in_history(settings) == accepted_by_stream(settings) == accepted_by_audit(settings)
    assert verify(settings, champion.load).faults == {}

    # A new model rebuilds all states from the readings on both sides of the upgrade.
    champion.promote(2, small_forecaster(settings, seed=2))
    forecast(settings, champion, list(rounds(settings, SENSORS, range(12, 14))), version=2)
    assert verify(settings, champion.load).faults == {}
    assert accepted_by_stream(settings) == accepted_by_audit(settings)

    # The sensor that was led astray continues under settings that judge all readings.
    rescue = settings.model_copy(update={"times": TimeSettings(all_readings=True)})
    rescued = FolderChampion(tmp_path / "rescue", rescue)
    rescued.promote(1, small_forecaster(rescue))
    with caplog.at_level(logging.WARNING, "streamgru.restore"):
        forecast(rescue, rescued, list(rounds(rescue, SENSORS, range(14, 17))))
    ours = [found for found in read_forecasts(rescue) if found.settings == rescue.fingerprint]
    assert sorted(found.sensor_id for found in ours) == sorted(SENSORS * 3)
    assert {found.state.steps for found in ours if found.sensor_id == "led-astray"} == {15, 16, 17}
    assert verify(rescue, rescued.load).faults == {}
    assert "accepted from 1 sensors, so that their readings are late: led-astray" in caplog.text
