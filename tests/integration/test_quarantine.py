"""Non-finite states: they are never written, their sensors are rebuilt, and other sensors continue."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.forecaster import Forecaster
from model.state import non_finite, state_dtype
from pipeline.errors import ModelUnusable
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
    read_states,
    reading,
    rounds,
    run_until_it_fails,
    running,
    session_of,
    small_forecaster,
    wait_for_forecasts,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

SENSORS = [f"sensor-{number}" for number in range(8)]
SICK = SENSORS[3]


@pytest.fixture
def settings(broker: Settings, fresh_settings: SettingsFactory) -> Settings:
    made = fresh_settings(features=["a"], targets=["a"], horizon_steps=2, forecaster={"poll_alias_s": 0.2})
    ensure_topics(made)
    return made


def states_written(settings: Settings, forecaster: Forecaster) -> np.ndarray:
    records = read_states(settings)
    return np.frombuffer(
        b"".join(decode_state(record.value)[1] for record in records),
        state_dtype(forecaster.config, settings.adaptation),
    )


def test_a_state_that_becomes_non_finite_in_memory_is_rebuilt(
    settings: Settings, champion: FolderChampion, caplog: pytest.LogCaptureFixture
) -> None:
    count = publish(settings, rounds(settings, SENSORS, range(12)))
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.forecasts == count, 30, "the readings were forecast")
        table = forecaster._loop.serving.table
        table._states["hidden"][table.rows(partition_of(settings, SICK), [SICK])] = np.nan
        count += publish(settings, rounds(settings, SENSORS, range(12, 16)))
        found = wait_for_forecasts(settings, count)
    assert_same(found, expected_forecasts(settings, small_forecaster(settings)))
    assert forecaster.counters.quarantined_states == 1
    assert forecaster.counters.rebuilt_sensors == 1
    assert forecaster.counters.aborted == 0
    assert any("they are discarded: sensor-3" in message for message in caplog.messages)
    assert not non_finite(states_written(settings, small_forecaster(settings))).any()


def test_a_non_finite_state_in_the_changelog_is_rebuilt(settings: Settings, champion: FolderChampion) -> None:
    """A program with a bug may write a non-finite state with a valid checksum and the version of the champion."""
    count = publish(settings, rounds(settings, SENSORS, range(12)))
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.forecasts == count, 30, "the readings were forecast")
    records = read_states(settings)
    last = [record for record in records if record.key == SICK.encode()][-1]
    tag, row = decode_state(last.value)
    state = np.frombuffer(row, forecaster._loop.serving.table.dtype).copy()
    state["hidden"][0, 0, 0] = np.inf
    producer = make_producer(settings)
    producer.send(settings.kafka.topics.state, tag.encode(state.tobytes()), last.key, partition=last.partition).get(30)
    producer.close()
    with running(settings, champion) as forecaster:
        count += publish(settings, rounds(settings, SENSORS, range(12, 16)))
        found = wait_for_forecasts(settings, count)
    assert_same(found, expected_forecasts(settings, small_forecaster(settings)))
    counters = forecaster.counters
    assert (counters.restored_sensors, counters.rebuilt_sensors) == (len(SENSORS) - 1, 1)


def test_a_state_that_is_non_finite_again_after_a_rebuild_is_reset(
    settings: Settings, champion: FolderChampion
) -> None:
    is_armed = False

    def reached(point: str) -> None:
        partition = partition_of(settings, SICK)
        if point == "polled" and is_armed and partition in session_of(forecaster).partitions.positions:
            table = forecaster._loop.serving.table
            table._states["hidden"][table.rows(partition, [SICK])] = np.nan

    count = publish(settings, rounds(settings, SENSORS, range(12)))
    with running(settings, champion, reached=reached) as forecaster:
        wait_until(lambda: forecaster.counters.forecasts == count, 30, "the readings were forecast")
        is_armed = True
        count += publish(settings, [reading(settings, SICK, 12)])
        wait_until(lambda: forecaster.counters.forecasts == count, 30, "the reset sensor has a forecast")
        is_armed = False
        count += publish(settings, rounds(settings, [name for name in SENSORS if name != SICK], range(12, 16)))
        found = wait_for_forecasts(settings, count)
    assert forecaster.counters.quarantined_states == 2
    assert forecaster.counters.aborted == 0
    (cold,) = [forecast for forecast in found if forecast.sensor_id == SICK][12:]
    assert (cold.state.steps, cold.state.warm, cold.state.origin) == (1, False, cold.input.offset)
    assert not non_finite(states_written(settings, small_forecaster(settings))).any()


def test_a_model_with_non_finite_forecasts_from_blank_states_ends_the_forecaster_and_is_not_saved(
    settings: Settings, tmp_path: Path
) -> None:
    unrecoverable = small_forecaster(settings)
    with torch.no_grad():
        unrecoverable.gru.fc.weight[:] = 3e38
        unrecoverable.gru.fc.weight[:, ::2] *= -1.0
        unrecoverable.gru.fc.bias[:] = 3e38
    champion = FolderChampion(tmp_path / "champion", settings)
    champion.promote(1, unrecoverable)
    count = publish(settings, rounds(settings, SENSORS, range(4)))
    with pytest.raises(ModelUnusable, match=r"version 1 .* non-finite forecasts for sensor .*Promote another version"):
        run_until_it_fails(settings, champion)
    assert champion.last_served() is None
    assert read_all(settings, settings.kafka.topics.forecasts) == []
    champion.promote(2, small_forecaster(settings))
    with running(settings, champion):
        found = wait_for_forecasts(settings, count)
    assert_same(found, expected_forecasts(settings, small_forecaster(settings), version=2))
