"""Buffered readings survive a crash or a model swap at any moment, from the committed offsets alone."""

import math
import random
from typing import Any

import numpy as np
import pytest

from model.reorder_buffer import MAX_BUFFERED_OFFSETS, reorder
from pipeline.audit.verify import audit_evidence
from pipeline.forecaster.positions import Position
from pipeline.forecaster.readings import Readings
from pipeline.forecaster.rebuild import SensorAnchors
from pipeline.forecaster.states import store
from pipeline.forecaster.states.store import ServedModel
from pipeline.kafka.record_batch import FetchedRecord
from pipeline.messages import encode_reading
from pipeline.settings import Settings
from tests.integration.stream_rig import HOUR_US, START_US, small_forecaster
from tests.memory_stream import Stream, by_sensor, evidence, exhausted, swapped_through

SETTINGS = Settings(
    horizon_steps=1,
    max_gap_steps=5,
    grace_steps=3,
    forecaster={"adaptation": "off", "calibration": False, "rewarm_steps": 20},
)
MODELS = {version: small_forecaster(SETTINGS, seed=version, hidden_size=4) for version in (1, 2)}
SENSORS = ("a", "b", "c")


def stream(seed: int, steps: int) -> list[FetchedRecord]:
    """Readings delayed within grace or beyond, missing, repeated or off the grid, and poison records."""
    chance = random.Random(seed)
    sent: list[tuple[float, bytes, bytes]] = []
    for sensor in SENSORS:
        moment, left_out = 0.0, 0
        for step in range(steps):
            moment += chance.choice([1.0, 1.0, 1.0, 1.0, 0.4, 1.3])
            left_out = chance.randint(1, 8) if chance.random() < 0.05 else left_out - 1
            if left_out > 0 and step:
                continue
            timestamp_us = START_US + round(moment * HOUR_US)
            key, value = encode_reading(sensor, timestamp_us, {"value": math.sin(step / 4) + chance.random()})
            delay = chance.choice([0, 0, chance.uniform(0, 3), chance.uniform(0, 6)]) if step else 0
            sent.append((moment + delay, key, value))
            if chance.random() < 0.05:
                sent.append((moment + chance.uniform(0, 6), key, value))
            if chance.random() < 0.03:
                sent.append((moment + delay, key, b"rubbish"))
    return [FetchedRecord(key, value, offset, []) for offset, (_, key, value) in enumerate(sorted(sent))]


@pytest.mark.parametrize("seed", range(6))
def test_a_stream_in_random_batches_with_crashes_gives_the_same_forecasts_as_one_batch(seed: int) -> None:
    records = stream(seed, 60)
    whole, broken = (Stream(records, SETTINGS, MODELS) for _ in range(2))
    whole.take(len(records))
    chance = random.Random(seed)
    crashes_with_buffered = 0
    while broken.committed.next < len(records):
        broken.take(chance.randint(1, 12))
        before = {number: buffered.offsets.tolist() for number, buffered in broken.buffered.items()}
        crashes_with_buffered += bool(before)
        chance.choice([broken.crash, broken.crash, broken.lose_changelog])()
        assert {number: buffered.offsets.tolist() for number, buffered in broken.buffered.items()} == before
    assert crashes_with_buffered > 3
    assert by_sensor(broken.forecasts) == by_sensor(whole.forecasts)
    assert broken.letters == whole.letters
    assert broken.states == whole.states
    assert broken.committed == whole.committed


@pytest.mark.parametrize("seed", range(6))
def test_a_model_swap_while_readings_are_buffered_continues_from_the_same_steps(seed: int) -> None:
    """The audit traces every forecast and every state to its origin, and recomputes it from there."""
    records = stream(seed, 150)
    live = swapped_through(records, SETTINGS, MODELS, seed)
    verdict = audit_evidence(evidence(live), SETTINGS, MODELS.__getitem__)
    assert verdict.faults == {}, verdict.examples
    assert verdict.recomputed == len(live.forecasts)
    assert set(verdict.versions) == {1, 2}


def test_buffered_readings_of_sensors_without_a_new_reading_are_not_classified_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After an outage all sensors may have buffered readings, while a batch holds readings of few sensors."""
    handed: list[list[int]] = []

    def counting(codes: Any, timestamp_us: Any, offsets: Any, *rest: Any) -> Any:
        handed.append(offsets.tolist())
        return reorder(codes, timestamp_us, offsets, *rest)

    monkeypatch.setattr(store, "reorder", counting)
    serving = ServedModel(1, MODELS[1], SETTINGS)
    serving.table.add_partition(0)
    names = [f"s{number}" for number in range(1_000)]

    def readings(sensors: list[str], step: int, first: int) -> Readings:
        moments = np.full(len(sensors), START_US + step * HOUR_US)
        n = len(sensors)
        return Readings.of_sensors(0, sensors, moments, np.zeros((n, 1)), np.arange(first, first + n))

    serving.replay([serving.classify(readings(names, 0, 0), end=1_000).accepted])
    buffered = serving.classify(readings(names, 2, 1_000), end=2_000).buffered
    assert buffered is not None
    assert len(buffered) == 1_000
    handed.clear()
    classification = serving.classify(readings(names[500:550], 3, 2_000), buffered, 2_050)
    assert handed == [[*range(1_500, 1_550), *range(2_000, 2_050)]]
    assert classification.buffered is not None
    assert classification.buffered.offsets.tolist() == list(range(1_000, 2_050))
    handed.clear()
    nothing_new = readings([], 0, 0)
    waiting = serving.classify(nothing_new, classification.buffered, 2_051).buffered
    assert waiting is not None
    assert (handed, waiting.offsets.tolist()) == ([], list(range(1_000, 2_050)))
    aged = serving.classify(nothing_new, classification.buffered, 1_502 + MAX_BUFFERED_OFFSETS)
    assert sorted(aged.accepted.offsets.tolist()) == [*range(1_000, 1_503), *range(2_000, 2_003)]
    assert handed == [[*range(1_000, 1_503), *range(2_000, 2_003)]]


def sent(sensor: str, step: float, offset: int) -> FetchedRecord:
    key, value = encode_reading(sensor, START_US + round(step * HOUR_US), {"value": step})
    return FetchedRecord(key, value, offset, [])


def test_a_rebuild_reads_states_from_before_the_buffered_readings_despite_its_limit() -> None:
    """If the rebuild began later, the last readings of ``b`` would count as its first, and be forecast again."""
    few = SETTINGS.model_copy(update={"forecaster": SETTINGS.forecaster.model_copy(update={"rewarm_max_readings": 30})})
    steps = [("b", 0), ("a", 0), ("c", 0), ("c", 2), ("b", 1), ("b", 2), *(("a", step) for step in range(1, 60))]
    live = Stream([sent(sensor, step, offset) for offset, (sensor, step) in enumerate(steps)], few, MODELS)
    live.take(50)
    assert live.committed == Position(50, 3)
    live.lose_changelog()
    assert {number: buffered.offsets.tolist() for number, buffered in live.buffered.items()} == {0: [3]}
    live.take(50)
    assert sorted(one.input.offset for one in live.forecasts) == [offset for offset in range(len(steps)) if offset != 3]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([("a", 0), ("a", 2)], []),
        ([("a", 0), ("a", 2)], [("a", 1)]),
        ([("a", 0), ("a", 5), ("a", 1), ("a", 6)], [("a", 3), ("a", 2), ("a", 4)]),
        ([("a", 0), ("a", 5), ("a", 6)], [("a", 9)]),
    ],
)
def test_a_buffered_reading_is_forecast_though_the_state_and_earlier_readings_are_lost(
    before: list[tuple[str, int]], after: list[tuple[str, int]]
) -> None:
    """The sensor's state and earlier readings are lost, so the buffered reading looks like the sensor's first."""
    steps = [*before, *(("b", step) for step in range(25)), *after, *(("b", step) for step in range(25, 50))]
    live = Stream([sent(sensor, step, offset) for offset, (sensor, step) in enumerate(steps)], SETTINGS, MODELS)
    live.take(len(before) + 25)
    assert live.committed == Position(len(before) + 25, 1)
    buffered = live.buffered[0].offsets.tolist()
    live.log_start = 1
    live.lose_changelog()
    assert live.buffered[0].offsets.tolist() == buffered
    live.take(len(steps))
    forecast = [one.input.offset for one in live.forecasts]
    assert len(forecast) == len(set(forecast))
    assert set(buffered) <= set(forecast)


def test_a_rebuild_names_the_sensors_whose_first_reading_may_have_been_buffered() -> None:
    steps = [("a", 0), ("a", 2), ("b", 0), ("c", 0), ("b", 1), ("b", 2)]
    live = Stream([sent(sensor, step, offset) for offset, (sensor, step) in enumerate(steps)], SETTINGS, MODELS)
    live.take(6)
    for start, maybe_skipped in ((0, []), (1, ["b", "c"])):
        live.log_start = start
        assert live.lose_changelog().maybe_skipped == maybe_skipped
        assert live.buffered[0].offsets.tolist() == [1], "the readings of the other sensors have their forecasts"


@pytest.mark.parametrize("grace_steps", [0.0, 3.0])
def test_a_rebuild_begins_at_a_later_anchor_if_its_limit_does_not_reach_the_best_one(grace_steps: float) -> None:
    """A state with a shorter warm-up is better than a cold one."""
    forecaster = SETTINGS.forecaster.model_copy(update={"rewarm_max_readings": 30})
    settings = SETTINGS.model_copy(update={"grace_steps": grace_steps, "forecaster": forecaster})
    live = Stream([sent("a", step, step) for step in range(50)], settings, MODELS)
    last_us = START_US + 49 * HOUR_US
    for anchors, origin in (((5, 40), 40), ((20, 40), 20), ((5, 19), -1)):
        rebuilt = exhausted(live.rebuilder().rebuild(0, {"a": SensorAnchors(anchors, last_us)}, 50))
        assert (rebuilt.sensors, rebuilt.cold) == ((0, ["a"]) if origin < 0 else (1, []))
        state = live.serving.table.gather(live.serving.table.rows(0, ["a"]))[0]
        assert (state["origin"], state["last_us"]) == (origin, last_us)
