"""A flood of new sensor ids at a limit of sensors: stream, restart, rebuild, history and audit refuse the same."""

from pathlib import Path

import pytest
from kafka.admin import KafkaAdminClient

from pipeline.audit.verify import verify
from pipeline.dead_letters import read_letters, republish_letters
from pipeline.forecaster.positions import POSITION_KEY
from pipeline.history.ingest import ingest
from pipeline.history.table import History
from pipeline.kafka.clients import make_admin
from pipeline.kafka.topics import ensure_topics
from pipeline.sensor_limit import TOO_MANY_SENSORS
from pipeline.settings import Settings
from pipeline.windows import load_sequences
from tests.conftest import SettingsFactory
from tests.integration.stream_rig import (
    FolderChampion,
    ForecasterProcess,
    publish,
    read_all,
    read_forecasts,
    rounds,
    running,
    wait_for_forecasts,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

LIMIT = 20
KNOWN = [f"known-{number:02d}" for number in range(LIMIT)]
FLOOD = [f"flood-{number:03d}" for number in range(300)]


@pytest.fixture
def settings(broker: Settings, fresh_settings: SettingsFactory) -> Settings:
    made = fresh_settings(
        features=["a"],
        targets=["a"],
        horizon_steps=1,
        kafka={"partitions": 1},
        forecaster={"poll_alias_s": 0.1, "max_batch_readings": 50, "max_sensors_per_partition": LIMIT},
    )
    ensure_topics(made)
    return made


def letters_of(settings: Settings) -> list[tuple[str, bytes | None]]:
    return [(letter.reason, letter.key) for letter in read_letters(settings)]


def delete_changelog(settings: Settings) -> None:
    topic = settings.kafka.topics.state
    admin: KafkaAdminClient = make_admin(settings)
    admin.delete_topics([topic])
    wait_until(lambda: topic not in admin.list_topics(), 30, "the changelog is deleted")
    admin.close()
    ensure_topics(settings)


def test_a_flood_of_sensor_ids_is_refused_in_stream_restart_rebuild_history_and_audit(
    settings: Settings, champion: FolderChampion, tmp_path: Path
) -> None:
    publish(settings, rounds(settings, KNOWN, range(3)))
    publish(settings, rounds(settings, FLOOD, range(1)))
    publish(settings, rounds(settings, KNOWN, range(3, 5)))
    with ForecasterProcess(settings, tmp_path / "champion", die_at="committed", times=5) as process:
        process.exit_code(60)  # it dies within the flood
    with running(settings, champion):
        wait_for_forecasts(settings, 5 * LIMIT)
    publish(settings, rounds(settings, [*FLOOD[:5], *KNOWN], range(5, 6)))
    delete_changelog(settings)
    with running(settings, champion) as rebuilt:
        wait_for_forecasts(settings, 6 * LIMIT)
        wait_until(lambda: rebuilt.counters.readings == LIMIT + 5, 30, "all records were processed")

    assert {forecast.sensor_id for forecast in read_forecasts(settings)} == set(KNOWN)
    states = {record.key for record in read_all(settings, settings.kafka.topics.state) if record.key != POSITION_KEY}
    assert states == {sensor.encode() for sensor in KNOWN}
    refused = [*FLOOD, *FLOOD[:5]]
    assert letters_of(settings) == [(TOO_MANY_SENSORS, sensor.encode()) for sensor in refused]
    verdict = verify(settings, champion.load)
    assert verdict.faults == {}
    assert (verdict.audit.accepted, verdict.audit.rejected) == (6 * LIMIT, len(refused))
    assert ingest(settings).readings == 6 * LIMIT + len(refused)  # the history keeps them for a higher limit
    sequences = load_sequences(History(settings.history_path, settings.features), settings)
    assert sequences.sensors == tuple(KNOWN)


def test_a_flood_longer_than_a_replay_takes_no_place_of_a_known_sensor_after_a_deleted_changelog(
    broker: Settings, fresh_settings: SettingsFactory, champion: FolderChampion
) -> None:
    """The known sensors were accepted before the readings that a rebuild replays; half of them are silent since."""
    few, silent = KNOWN[:4], KNOWN[:2]
    settings = fresh_settings(
        features=["a"],
        targets=["a"],
        horizon_steps=1,
        kafka={"partitions": 1},
        forecaster={"poll_alias_s": 0.1, "max_sensors_per_partition": len(few), "rewarm_max_readings": 100},
    )
    ensure_topics(settings)
    publish(settings, rounds(settings, few, range(3)))
    publish(settings, rounds(settings, FLOOD, range(1)))
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.readings == 12 + len(FLOOD), 60, "all records were processed")
    delete_changelog(settings)
    publish(settings, rounds(settings, [*FLOOD[:3], *few], range(3, 4)))
    publish(settings, rounds(settings, silent, range(1, 2)))  # late
    with running(settings, champion) as rebuilt:
        wait_until(lambda: rebuilt.counters.readings == 9, 60, "all records were processed")
    assert len(letters_of(settings)) == len(FLOOD) + 3
    assert {forecast.sensor_id for forecast in read_forecasts(settings)} == set(few)
    assert len(read_forecasts(settings)) == 4 * len(few)


def test_republished_readings_are_forecast_after_the_limit_was_raised(
    settings: Settings, champion: FolderChampion
) -> None:
    publish(settings, rounds(settings, [*KNOWN, *FLOOD[:3]], range(2)))
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.dead_letters[TOO_MANY_SENSORS] == 6, 30, "readings were refused")
    assert republish_letters(settings, lambda: read_letters(settings)).still_rejected == {TOO_MANY_SENSORS: 6}
    content = settings.model_dump(exclude_unset=True)
    content["forecaster"]["max_sensors_per_partition"] = LIMIT + 2
    raised = Settings(**content)
    assert republish_letters(raised, lambda: read_letters(raised)).published == 6
    with running(raised, champion):
        wait_for_forecasts(raised, 2 * (LIMIT + 2))
        wait_until(lambda: len(letters_of(raised)) == 8, 30, "the third sensor was refused again")
    verdict = verify(raised, champion.load)
    assert verdict.faults == {}
    assert verdict.audit.accepted == 2 * (LIMIT + 2)
