"""Model swaps in a running stream: no forecast is missing, and the new states equal those of a replay."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from model.forecaster import Forecaster
from pipeline.forecaster.readings import decode_records
from pipeline.forecaster.states.store import ServedModel
from pipeline.kafka.topics import ensure_topics
from pipeline.messages import Forecast, ReadingDecoder, StateTag, decode_state
from pipeline.settings import Settings
from tests.conftest import SettingsFactory
from tests.integration.stream_rig import (
    FolderChampion,
    ForecasterProcess,
    publish,
    read_all,
    read_states,
    rounds,
    running,
    small_forecaster,
    wait_for_forecasts,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

SENSORS = [f"sensor-{number}" for number in range(12)]
REWARM_STEPS = 100


@pytest.fixture
def settings(broker: Settings, fresh_settings: SettingsFactory) -> Settings:
    made = fresh_settings(
        features=["a"],
        targets=["a"],
        horizon_steps=1,
        forecaster={"poll_alias_s": 0.1, "max_batch_readings": 100, "rewarm_steps": REWARM_STEPS},
    )
    ensure_topics(made)
    return made


@pytest.fixture
def champion(settings: Settings, tmp_path: Path) -> FolderChampion:
    source = FolderChampion(tmp_path / "champion", settings)
    source.promote(1, small_forecaster(settings, 1))
    return source


class Feed:
    """Publishes readings of every sensor in a thread and counts the steps."""

    def __init__(self, settings: Settings, first_step: int = 0) -> None:
        self.step = first_step
        self._settings = settings
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._enough.wait(0.02):
            publish(self._settings, rounds(self._settings, SENSORS, range(self.step, self.step + 2)))
            self.step += 2

    @contextmanager
    def flowing(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._enough.set()
            self._thread.join()


def by_partition(found: list[Forecast]) -> list[list[Forecast]]:
    return [list(group) for _, group in groupby(found, key=lambda forecast: forecast.input.partition)]


def assert_replay_explains(settings: Settings, models: dict[int, Forecaster], found: list[Forecast]) -> None:
    """Assert that a replay of the accepted readings from a state's origin gives the same forecasts."""
    decoder = ReadingDecoder(settings.features)
    records = {
        (record.partition, record.offset): record for record in read_all(settings, settings.kafka.topics.readings)
    }
    replayed: dict[tuple[int, int, str, int], dict[int, float]] = {}
    for forecast in found:
        key = (forecast.model.version, forecast.input.partition, forecast.sensor_id, forecast.state.origin)
        if key not in replayed:
            version, partition, sensor, origin = key
            serving = ServedModel(version, models[version], settings)
            serving.table.add_partition(partition)
            mine = [
                record
                for (where, offset), record in records.items()
                if where == partition and offset >= origin and record.key == sensor.encode()
            ]
            accepted = serving.classify(decode_records(decoder, 1, partition, mine).readings).accepted
            stepped = serving.step([accepted])
            medians = stepped.forecasts.quantiles[:, 0, settings.quantiles.index(0.5), 0]
            replayed[key] = dict(zip(accepted.offsets.tolist(), medians.tolist(), strict=True))
        expected = replayed[key][forecast.input.offset]
        np.testing.assert_allclose(forecast.quantiles["a"]["0.5"][0], expected, rtol=1e-5, atol=1e-5)


def test_a_promotion_goes_live_without_a_gap(settings: Settings, champion: FolderChampion) -> None:
    models = {version: small_forecaster(settings, version, hidden_size=7 + version) for version in (1, 2, 3)}
    champion.promote(1, models[1])
    history = publish(settings, rounds(settings, SENSORS, range(150)))
    feed = Feed(settings, 150)
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.readings == history, 30, "the history was processed")
        with feed.flowing():
            for version in (2, 3):
                promoted = time.monotonic()
                champion.promote(version, models[version])
                wait_until(lambda: forecaster.counters.model_version == version, 30, "the promotion went live")  # noqa: B023
                assert time.monotonic() - promoted < 10
                served = forecaster.counters.forecasts
                wait_until(lambda: forecaster.counters.forecasts > served + 50, 30, "the version forecasts")  # noqa: B023
        found = wait_for_forecasts(settings, feed.step * len(SENSORS))
    assert len(found) == feed.step * len(SENSORS)
    assert forecaster.counters.swaps == 2
    for partition in by_partition(found):
        assert [forecast.input.offset for forecast in partition] == list(range(len(partition)))
        versions = [forecast.model.version for forecast in partition]
        assert versions == sorted(versions)
        assert set(versions) == {1, 2, 3}
        fresh = [forecast for forecast in partition if forecast.model.version > 1]
        assert all(forecast.state.warm for forecast in fresh)
        assert min(forecast.state.steps for forecast in fresh) >= REWARM_STEPS
    assert_replay_explains(settings, models, found)


def test_a_swap_writes_all_states_so_that_a_restart_restores_them(settings: Settings, champion: FolderChampion) -> None:
    publish(settings, rounds(settings, SENSORS, range(20)))
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.readings == 20 * len(SENSORS), 30, "the readings were processed")
        before = forecaster.counters.transactions
        champion.promote(2, small_forecaster(settings, 2))
        wait_until(lambda: forecaster.counters.transactions > before, 30, "the states were written")
    tags = {record.key: decode_state(record.value)[0] for record in read_states(settings)}
    assert tags == {sensor.encode(): StateTag(2, settings.fingerprint) for sensor in SENSORS}
    with running(settings, champion) as again:
        wait_until(lambda: again.counters.restored_sensors == len(SENSORS), 30, "the states were restored")
    assert again.counters.rebuilt_sensors == 0
    assert again.counters.model_version == 2


@pytest.mark.parametrize("trouble", ["corrupt", "absurd", "unfit", "demoted", "unreachable"])
def test_the_old_model_goes_on_serving_after_a_bad_promotion(
    settings: Settings, champion: FolderChampion, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    count = publish(settings, rounds(settings, SENSORS, range(5)))
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.readings == count, 30, "the readings were processed")
        if trouble == "corrupt":
            champion.corrupt(2)
            champion.promote(2)
        elif trouble == "absurd":
            champion.inflate(2, small_forecaster(settings), hidden_size=16_384)
            champion.promote(2)
        elif trouble == "unfit":
            other = settings.model_copy(update={"horizon_steps": 5})
            champion.promote(2, small_forecaster(other))
        elif trouble == "demoted":
            champion.demote()
        else:
            champion.become_unreachable()
        wait_until(lambda: "goes on serving" in caplog.text, 30, "the trouble was said")
        count += publish(settings, rounds(settings, SENSORS, range(5, 10)))
        found = wait_for_forecasts(settings, count)
        assert {forecast.model.version for forecast in found} == {1}
        assert caplog.text.count("goes on serving") == 1
        if trouble == "unreachable":
            champion.become_reachable()
        champion.promote(3, small_forecaster(settings, 3))
        wait_until(lambda: forecaster.counters.model_version == 3, 30, "a good promotion went live")


def test_a_restart_while_the_registry_is_unreachable_serves_the_last_served_version(
    settings: Settings, champion: FolderChampion
) -> None:
    count = publish(settings, rounds(settings, SENSORS, range(5)))
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.readings == count, 30, "the readings were processed")
    champion.become_unreachable()
    count += publish(settings, rounds(settings, SENSORS, range(5, 10)))
    with running(settings, champion):
        found = wait_for_forecasts(settings, count)
    assert {forecast.model.version for forecast in found} == {1}


def test_a_promotion_while_no_forecaster_runs_rebuilds_the_states(settings: Settings, champion: FolderChampion) -> None:
    models = {version: small_forecaster(settings, version) for version in (1, 2)}
    count = publish(settings, rounds(settings, SENSORS, range(150)))
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.readings == count, 30, "the readings were processed")
    champion.promote(2, models[2])
    champion.save_last_served(2)
    count += publish(settings, rounds(settings, SENSORS, range(150, 155)))
    with running(settings, champion) as forecaster:
        found = wait_for_forecasts(settings, count)
    assert forecaster.counters.rebuilt_sensors == len(SENSORS)
    assert forecaster.counters.swaps == 0
    assert min(forecast.state.steps for forecast in found if forecast.model.version == 2) > REWARM_STEPS
    assert_replay_explains(settings, models, found)


def test_sensors_without_readings_in_the_warm_up_start_cold_and_keep_their_last_timestamp(
    settings: Settings, champion: FolderChampion
) -> None:
    settings = settings.model_copy(
        update={"forecaster": settings.forecaster.model_copy(update={"rewarm_max_readings": 50})}
    )
    models = {version: small_forecaster(settings, version) for version in (1, 2)}
    quiet, *busy = SENSORS
    count = publish(settings, rounds(settings, [quiet], range(100)))
    count += publish(settings, rounds(settings, busy, range(100)))
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.readings == count, 30, "the readings were processed")
        champion.promote(2, models[2])
        wait_until(lambda: forecaster.counters.swaps == 1, 30, "the promotion went live")
        late = publish(settings, rounds(settings, [quiet], range(99, 100)))
        new = publish(settings, rounds(settings, [quiet], range(100, 102)))
        found = wait_for_forecasts(settings, count + new)
        wait_until(lambda: forecaster.counters.readings == count + late + new, 30, "all readings were processed")
    assert forecaster.counters.duplicates == late
    cold = [forecast for forecast in found if forecast.sensor_id == quiet and forecast.model.version == 2]
    assert [forecast.state.steps for forecast in cold] == [1, 2]
    assert_replay_explains(settings, models, found)


def test_a_kill_during_a_swap_loses_and_repeats_no_forecast(
    settings: Settings, champion: FolderChampion, tmp_path: Path
) -> None:
    models = {version: small_forecaster(settings, version) for version in (1, 2)}
    count = publish(settings, rounds(settings, SENSORS, range(30)))
    with ForecasterProcess(settings, tmp_path / "champion", die_at="swapping") as process:
        wait_for_forecasts(settings, count)
        champion.promote(2, models[2])
        assert process.exit_code(30) == -signal.SIGKILL, process.said
    count += publish(settings, rounds(settings, SENSORS, range(30, 35)))
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.model_version == 2, 30, "version 2 serves")
        wait_for_forecasts(settings, count)
        count += publish(settings, rounds(settings, SENSORS, range(35, 36)))
        found = wait_for_forecasts(settings, count)
    assert len(found) == count
    for partition in by_partition(found):
        assert [forecast.input.offset for forecast in partition] == list(range(len(partition)))
    assert_replay_explains(settings, models, found)


def test_partitions_that_move_during_a_warm_up_lose_and_repeat_no_forecast(
    settings: Settings, champion: FolderChampion
) -> None:
    models = {version: small_forecaster(settings, version) for version in (1, 2)}
    count = publish(settings, rounds(settings, SENSORS, range(150)))
    with running(settings, champion, "first") as first:
        wait_until(lambda: first.counters.readings == count, 30, "the first processed all readings")
        with running(settings, champion, "second") as second:
            champion.promote(2, models[2])
            wait_until(
                lambda: second.counters.model_version == first.counters.model_version == 2,
                30,
                "both forecasters swapped models",
            )
            count += publish(settings, rounds(settings, SENSORS, range(150, 155)))
            wait_for_forecasts(settings, count)
        count += publish(settings, rounds(settings, SENSORS, range(155, 160)))
        found = wait_for_forecasts(settings, count)
    assert len(found) == count
    for partition in by_partition(found):
        assert [forecast.input.offset for forecast in partition] == list(range(len(partition)))
    assert_replay_explains(settings, models, found)
