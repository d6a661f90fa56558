"""The reorder buffer on a real broker: it puts readings in order, even after kills and model swaps."""

import random
import signal
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from kafka import TopicPartition

from model.reorder_buffer import MAX_BUFFERED_OFFSETS
from pipeline.audit.verify import AuditResult, Span, verify
from pipeline.forecaster.positions import CommittedPosition, Position
from pipeline.forecaster.readings import decode_records
from pipeline.forecaster.states.store import ServedModel
from pipeline.kafka.clients import make_admin
from pipeline.kafka.topics import ensure_topics
from pipeline.messages import Forecast, ReadingDecoder
from pipeline.settings import Settings
from tests.conftest import SettingsFactory
from tests.integration.stream_rig import (
    FolderChampion,
    ForecasterProcess,
    Message,
    assert_same,
    expected_forecasts,
    partition_of,
    publish,
    read_all,
    read_forecasts,
    reading,
    running,
    small_forecaster,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

SENSORS = [f"sensor-{number}" for number in range(6)]
GRACE_STEPS = 4


@pytest.fixture
def settings(broker: Settings, fresh_settings: SettingsFactory) -> Settings:
    made = fresh_settings(
        features=["a"],
        targets=["a"],
        horizon_steps=2,
        max_gap_steps=6,
        grace_steps=GRACE_STEPS,
        kafka={"partitions": 2},
        forecaster={
            "poll_alias_s": 0.1,
            "max_batch_readings": 20,
            "static_membership": True,
            "adaptation": "off",  # anchors are 64 readings apart: replays begin at them
            "calibration": False,
            "rewarm_steps": 30,
        },
    )
    ensure_topics(made)
    return made


@pytest.fixture
def champion(settings: Settings, tmp_path: Path) -> FolderChampion:
    source = FolderChampion(tmp_path / "champion", settings)
    source.promote(1, small_forecaster(settings, 1))
    source.promote(2, small_forecaster(settings, 2))
    source.promote(1)
    return source


def shuffled(settings: Settings, steps: range, seed: int, *, faults: bool = False) -> list[Message]:
    """Readings with random delays up to GRACE_STEPS; ``faults`` adds gaps, repeats and invalid records."""
    chance = random.Random(seed)
    sent: list[tuple[float, Message]] = []
    silent_until = dict.fromkeys(SENSORS, steps.start)
    for step in steps:
        for sensor in SENSORS:
            delay = chance.uniform(0, GRACE_STEPS) if step > steps.start else 0
            message = reading(settings, sensor, step)
            if faults and chance.random() < 0.03:
                silent_until[sensor] = step + chance.randint(1, 9)
            if step < silent_until[sensor]:
                continue
            sent.append((step + delay, message))
            if faults and chance.random() < 0.05:
                sent.append((step + chance.uniform(0, 9), message))
            if faults and chance.random() < 0.02:
                sent.append((step + delay, Message(sensor.encode(), b"rubbish", message.partition)))
    return [message for _, message in sorted(sent, key=lambda at: at[0])]


def ahead(settings: Settings, sensor: str, step: int) -> list[Message]:
    """Two readings after a gap: both are buffered."""
    return [reading(settings, sensor, step + 2), reading(settings, sensor, step + 1)]


def audited(settings: Settings) -> AuditResult:
    models = {version: small_forecaster(settings, version) for version in (1, 2)}
    verdict = verify(settings, models.__getitem__, Span())
    assert verdict.faults == {}, verdict.examples
    return verdict


def committed(settings: Settings) -> dict[int, Position]:
    admin = make_admin(settings)
    group = settings.forecaster.group_id
    found = {
        at.partition: CommittedPosition.of(offset).position
        for at, offset in admin.list_group_offsets([group])[group].items()
    }
    admin.close()
    return found


def is_processed(settings: Settings, readings: int) -> bool:
    return sum(position.next for position in committed(settings).values()) == readings


def lose_changelog(settings: Settings) -> None:
    admin = make_admin(settings)
    admin.delete_topics([settings.kafka.topics.state])
    wait_until(lambda: settings.kafka.topics.state not in admin.list_topics(), 30, "the changelog was deleted")
    admin.close()
    ensure_topics(settings)


def by_reading(forecasts: list[Forecast]) -> dict[tuple[str, str], list[float]]:
    return {
        (str(one.sensor_id), str(one.issued_at)): one.quantiles["a"]["0.5"] + [one.state.steps] for one in forecasts
    }


def test_readings_shuffled_within_the_buffer_are_forecast_as_if_they_were_in_order(
    settings: Settings, champion: FolderChampion
) -> None:
    count = publish(settings, shuffled(settings, range(60), seed=1))
    with running(settings, champion) as forecaster:
        counters = forecaster.counters
        wait_until(lambda: counters.readings == count and not counters.held, 60, "all readings left the buffer")
    assert (counters.accepted, counters.forecasts) == (count, count)
    assert (counters.late, counters.duplicates) == (0, 0)
    found = read_forecasts(settings)
    assert_same(found, expected_forecasts(settings, small_forecaster(settings, 1)))
    assert audited(settings).audit.accepted == count

    serving = ServedModel(1, small_forecaster(settings, 1), settings.model_copy(update={"grace_steps": 0.0}))
    decoder = ReadingDecoder(settings.features)
    in_order: dict[tuple[str, str], list[float]] = {}
    names = {(one.input.partition, one.input.offset): one for one in found}
    for partition in range(settings.kafka.partitions):
        serving.table.add_partition(partition)
        mine = [one for one in read_all(settings, settings.kafka.topics.readings) if one.partition == partition]
        readings = decode_records(decoder, 1, partition, mine).readings
        accepted = serving.classify(readings.pick(np.argsort(readings.timestamp_us, kind="stable"))).accepted
        made = serving.step([accepted]).forecasts
        for offset, quantiles, steps in zip(accepted.offsets.tolist(), made.quantiles, made.steps, strict=True):
            one = names[partition, offset]
            in_order[str(one.sensor_id), str(one.issued_at)] = [*quantiles[0, 1].tolist(), int(steps)]
    published = by_reading(found)
    assert published.keys() == in_order.keys()
    for key, numbers in published.items():
        np.testing.assert_allclose(numbers, in_order[key], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("point", ["before-flush", "offsets-sent", "committed"])
def test_a_kill_while_readings_are_buffered_loses_and_repeats_no_forecast(
    settings: Settings, champion: FolderChampion, tmp_path: Path, point: str
) -> None:
    """Buffered readings are read again; processed records between them must not be processed again."""
    sensor = SENSORS[0]
    messages = shuffled(settings, range(40), seed=2, faults=True)
    halves = messages[: len(messages) // 2], messages[len(messages) // 2 :]
    count = publish(settings, [*halves[0], *ahead(settings, sensor, 40)])
    count += publish(settings, [Message(b"poison", b"rubbish", partition_of(settings, sensor))])
    for times in (2, 3):
        with ForecasterProcess(settings, tmp_path / "champion", die_at=point, times=times) as process:
            assert process.exit_code(60) == -signal.SIGKILL, process.said
    with running(settings, champion) as forecaster:
        wait_until(
            lambda: is_processed(settings, count) and forecaster.counters.held > 0,
            60,
            "all records were processed, some readings are buffered",
        )
    position = committed(settings)[partition_of(settings, sensor)]
    assert position.held_from is not None
    audited(settings)
    publish(settings, halves[1])
    with ForecasterProcess(settings, tmp_path / "champion", die_at=point, times=1) as process:
        assert process.exit_code(60) == -signal.SIGKILL, process.said
    publish(settings, [reading(settings, one, step) for step in range(43, 60) for one in SENSORS])
    with running(settings, champion) as forecaster:
        total = len(read_all(settings, settings.kafka.topics.readings))
        wait_until(
            lambda: is_processed(settings, total) and not forecaster.counters.held,
            60,
            "all records were processed, no reading is buffered",
        )
    assert_same(read_forecasts(settings), expected_forecasts(settings, small_forecaster(settings, 1)))
    verdict = audited(settings)
    assert verdict.audit.held == 0
    assert verdict.audit.rejected > 1
    assert verdict.audit.late > 0


def test_buffered_readings_that_were_deleted_are_counted_and_the_stream_continues(
    settings: Settings, champion: FolderChampion
) -> None:
    sensor = SENSORS[0]
    partition = partition_of(settings, sensor)
    count = publish(settings, [reading(settings, sensor, 0), reading(settings, sensor, 2)])
    count += publish(settings, [reading(settings, one, step) for step in range(9) for one in SENSORS[1:]])
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.readings == count, 60, "the readings were processed")
    reached = committed(settings)[partition]
    assert reached.held_from == 1
    admin = make_admin(settings)
    admin.delete_records({TopicPartition(settings.kafka.topics.readings, partition): 3})
    admin.close()
    with running(settings, champion) as forecaster:
        wait_until(
            lambda: committed(settings)[partition] == Position(reached.next), 60, "the deleted readings left the buffer"
        )
        count += publish(settings, [reading(settings, one, 9) for one in SENSORS[1:]])
        wait_until(partial(is_processed, settings, count), 60, "the new readings were processed")
        assert forecaster.counters.held_lost == 2, "offsets 1 and 2"
    assert len(read_forecasts(settings)) == count - 1


def test_model_swaps_and_rebuilds_while_readings_are_buffered_pass_the_audit(
    settings: Settings, champion: FolderChampion
) -> None:
    """Replays step no buffered readings, and the audit follows every state to its origin."""
    messages = [*shuffled(settings, range(300), seed=3, faults=True), *ahead(settings, SENSORS[0], 300)]
    cuts = [0, *(len(messages) * part // 5 for part in range(1, 6))]
    met = 0
    for number, (low, high) in enumerate(pairwise(cuts)):
        publish(settings, messages[low:high])
        if number == 3:
            lose_changelog(settings)
        with running(settings, champion) as forecaster:
            wait_until(partial(is_processed, settings, high), 60, "the readings were processed")
            met += any(at.held_from is not None for at in committed(settings).values())
            champion.promote(2 - number % 2)
            wait_until(lambda counters=forecaster.counters: counters.swaps == 1, 60, "the other version serves")
    assert met >= 4, "readings were buffered at every cut except perhaps the first"
    verdict = audited(settings)
    assert verdict.audit.held >= 2
    assert set(verdict.versions) == {1, 2}
    assert verdict.audit.readings < MAX_BUFFERED_OFFSETS
