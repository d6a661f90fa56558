"""Outlooks in the stream: each forecast sees the newest one before its record, through crashes, rebuilds and swaps."""

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka import TopicPartition

from model.outlooks import NO_ISSUE_US
from pipeline.audit.explain import ExplainedOutlook, _outlook
from pipeline.audit.lineage import accepted_log
from pipeline.audit.outlook_log import LoggedOutlook, StreamOutlooks, are_implausible, of_sensor
from pipeline.audit.verify import audit_evidence
from pipeline.forecaster.group_limit import GroupLimit
from pipeline.forecaster.micro_batch import MicroBatchBuilder
from pipeline.forecaster.positions import PartitionLog, Position
from pipeline.forecaster.readings import Readings, decode_records
from pipeline.forecaster.states.records import StateRecords
from pipeline.forecaster.states.store import ServedModel
from pipeline.kafka.record_batch import FetchedRecord
from pipeline.messages import Reading, ReadingDecoder, decode_forecast
from pipeline.outlook_messages import make_outlook_decoder
from pipeline.reading_times import time_rules_from
from pipeline.registry.versions import settings_differences
from pipeline.settings import Settings
from pipeline.settings.outlooks import OutlookSettings
from pipeline.windows import load_sequences
from tests.integration.stream_rig import small_forecaster
from tests.memory_stream import WHERE, Stream, by_sensor, evidence, swapped_through
from tests.outlook_streams import HOUR_US, PARTITION_OF, SETTINGS, START_US, Event, events, seen_by_hand
from tests.outlook_streams import Stream as Topic
from tests.unit.test_outlook_history import issue_hours, stored

OFF: dict[str, Any] = {"adaptation": "off", "calibration": False, "rewarm_steps": 20}
PLAIN = SETTINGS.model_copy(update={"forecaster": SETTINGS.forecaster.model_copy(update=OFF)})
WAITING = PLAIN.model_copy(update={"grace_steps": 3.0})
MODELS = {version: small_forecaster(PLAIN, seed=version, hidden_size=4) for version in (1, 2)}


def served(made: Settings = PLAIN) -> ServedModel:
    serving = ServedModel(1, MODELS[1], made)
    for partition in (0, 1):
        serving.table.add_partition(partition)
    return serving


def seen_in_stream(topic: Topic, cuts: list[int], made: Settings = PLAIN) -> dict[tuple[str, int], int | None]:
    """Sensor and hour of each reading -> hour of issue of the outlook behind its forecast."""
    serving, decoder = served(made), ReadingDecoder(made.features)
    found: dict[tuple[str, int], int | None] = {}
    for partition, records in topic.records.items():
        buffered = None
        bounds = sorted({0, len(records), *(cut for cut in cuts if cut < len(records))})
        for low, high in pairwise(bounds):
            outlooks = make_outlook_decoder(made)
            readings = decode_records(decoder, 1, partition, records[low:high], (), outlooks).readings
            classified = serving.classify(readings, buffered, high)
            buffered = classified.buffered
            stepped = serving.step([classified.accepted])
            serving.table.scatter(stepped.rows, stepped.states)
            issued = stepped.forecasts.outlook_issued_us.tolist()
            for sensor, time_us, issued_us in zip(
                classified.accepted.sensors, classified.accepted.timestamp_us.tolist(), issued, strict=True
            ):
                hour = None if issued_us == NO_ISSUE_US else (issued_us - START_US) // HOUR_US
                found[sensor, (time_us - START_US) // HOUR_US] = hour
    return found


@settings(deadline=None, max_examples=40)
@given(events, st.lists(st.integers(0, 40), max_size=5))
def test_every_forecast_sees_the_newest_outlook_before_its_record(made: list[Event], cuts: list[int]) -> None:
    assert seen_in_stream(Topic.of(made), cuts) == seen_by_hand(made)


@settings(deadline=None, max_examples=30)
@given(events, st.lists(st.integers(0, 40), max_size=5))
def test_with_a_grace_period_stream_and_history_agree_however_the_stream_is_cut(
    tmp_path_factory: pytest.TempPathFactory, made: list[Event], cuts: list[int]
) -> None:
    topic = Topic.of(made)
    found = seen_in_stream(topic, cuts, WAITING)
    assert found == seen_in_stream(topic, [], WAITING)
    if any(not event.is_outlook for event in made):
        history = stored(tmp_path_factory.mktemp("history"), topic, WAITING)
        assert found == issue_hours(load_sequences(history, WAITING))


def busy(seed: int, steps: int) -> list[FetchedRecord]:
    """The records of partition 0: readings with gaps and delays, and outlooks of its sensors and of the group."""
    chance = random.Random(seed)
    sent: list[tuple[float, Event]] = []
    for sensor in ("s0", "s1"):
        left_out = 0
        for hour in range(steps):
            left_out = chance.randint(1, 7) if chance.random() < 0.06 else left_out - 1
            if left_out <= 0:
                delay = chance.choice([0.0, 0.0, chance.uniform(0, 3), chance.uniform(0, 6)])
                sent.append((hour + delay, Event(sensor, hour, False)))
    for hour in range(0, steps, 2):
        name = chance.choice(["s0", "s1", "city"])
        sent.append((hour + chance.choice([0.5, 0.5, 3.5]), Event(name, hour, True)))
    return Topic.of([event for _, event in sorted(sent, key=lambda one: one[0])]).records[0]


@pytest.mark.parametrize("made", [PLAIN, WAITING], ids=["at once", "with a grace period"])
@pytest.mark.parametrize("seed", range(3))
def test_crashes_and_rebuilds_at_any_record_change_no_forecast_and_no_state(seed: int, made: Settings) -> None:
    records = busy(seed, 60)
    whole, broken = (Stream(records, made, MODELS) for _ in range(2))
    whole.take(len(records))
    chance = random.Random(seed)
    while broken.committed.next < len(records):
        broken.take(chance.randint(1, 12))
        chance.choice([broken.crash, broken.crash, broken.lose_changelog])()
    assert by_sensor(broken.forecasts) == by_sensor(whole.forecasts)
    assert broken.states == whole.states
    assert whole.counts.outlooks > 10
    for name in ("accepted", "outlooks", "late_outlooks", "unused_outlooks"):
        assert getattr(broken.counts, name) == getattr(whole.counts, name)


@pytest.mark.parametrize("made", [PLAIN, WAITING], ids=["at once", "with a grace period"])
@pytest.mark.parametrize("seed", range(3))
def test_the_audit_recomputes_all_forecasts_and_states_through_model_swaps(seed: int, made: Settings) -> None:
    records = busy(seed, 150)
    live = swapped_through(records, made, MODELS, seed)
    verdict = audit_evidence(evidence(live), made, MODELS.__getitem__)
    assert verdict.faults == {}, verdict.examples
    assert verdict.recomputed == len(live.forecasts)
    assert set(verdict.versions) == {1, 2}
    assert verdict.outlooks == sum(b'"outlook"' in (record.value or b"") for record in records)


@pytest.mark.parametrize("made", [PLAIN, WAITING], ids=["at once", "with a grace period"])
def test_a_rebuild_in_small_steps_gives_the_same_states(made: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    records = busy(0, 60)
    whole, pieces = (Stream(records, made, MODELS) for _ in range(2))
    for stream in (whole, pieces):
        stream.take(len(records))
    steps: list[int] = []
    replay = ServedModel.replay

    def counting(self: ServedModel, accepted: Sequence[Readings]) -> None:
        steps.append(sum(outlook.outlook.is_group for part in accepted for outlook in part.outlooks))
        replay(self, accepted)

    monkeypatch.setattr(ServedModel, "replay", counting)
    whole.lose_changelog()
    assert max(steps) > 1
    steps.clear()
    monkeypatch.setattr("pipeline.forecaster.rebuild.GroupLimit", partial(GroupLimit, most_entries=1))
    pieces.lose_changelog()
    assert max(steps) == 1
    assert states_of(pieces) == states_of(whole)


def states_of(stream: Stream) -> dict[str, bytes]:
    sensors, rows = stream.serving.table.partition_rows(0)
    states = stream.serving.table.gather(rows)
    return {sensor: state.tobytes() for sensor, state in zip(sensors, states, strict=True)}


def test_the_audit_finds_a_forecast_made_with_a_later_outlook() -> None:
    """A planted leak: the forecaster had the outlook of offset 2 already at the reading before it."""
    honest = Topic.of([Event("s0", 0, False), Event("s0", 1, False), Event("s0", 1, True), Event("s0", 2, False)])
    leaking = Topic.of([Event("s0", 0, False), Event("s0", 1, True), Event("s0", 1, False), Event("s0", 2, False)])
    live, leak = (Stream(topic.records[0], PLAIN, MODELS) for topic in (honest, leaking))
    for stream in (live, leak):
        stream.take(4)
    found = evidence(live)
    assert audit_evidence(found, PLAIN, MODELS.__getitem__).faults == {}
    assert found.forecasts.quantiles is not None
    leaked = evidence(leak).forecasts.quantiles
    assert leaked is not None
    assert not np.array_equal(found.forecasts.quantiles[1], leaked[1])
    planted = replace(found.forecasts, quantiles=leaked)
    assert audit_evidence(replace(found, forecasts=planted), PLAIN, MODELS.__getitem__).faults == {"different": 1}


def test_a_later_outlook_leaves_earlier_forecasts_byte_equal_and_changes_later_ones() -> None:
    quiet = [Event("s0", hour, False) for hour in range(6)]
    told = [*quiet[:4], Event("s0", 3, True), *quiet[4:]]
    values = []
    for made in (quiet, told):
        batch = MicroBatchBuilder(PLAIN, served(), "").build({WHERE: Topic.of(made).records[0]})
        values.append(next(records.values for records in batch.records if records.topic == "forecasts"))
    assert values[0][:4] == values[1][:4]
    for before, after in zip(values[0][4:], values[1][4:], strict=True):
        first, second = decode_forecast(before or b""), decode_forecast(after or b"")
        assert first.issued_at == second.issued_at
        assert first.quantiles != second.quantiles


def test_a_batch_of_outlooks_alone_writes_the_states_that_accept_them() -> None:
    stream = Stream(Topic.of([Event("s0", 0, False)]).records[0], PLAIN, MODELS)
    stream.take(1)
    more = [
        Event("s0", 1, True),
        Event("s1", 1, True),
        Event("s0", 0, True),
        Event("s2", 0, False),
        Event("city", 2, True),
    ]
    records = Topic.of(more).records[0]
    batch = MicroBatchBuilder(PLAIN, stream.serving, "").build(
        {WHERE: [record._replace(offset=record.offset + 1) for record in records]}
    )
    assert batch.stepped is not None
    assert (batch.records[0].topic, list(batch.records[0].keys)) == ("forecaster-state", [b"s0"])
    assert len(batch.records) == 2, "the state and the position"
    counts = batch.counts
    assert (counts.readings, counts.outlooks, counts.late_outlooks, counts.unused_outlooks) == (0, 2, 1, 1)
    assert batch.stepped.states["outlook_from"].tolist() == [5]
    assert batch.positions == {0: Position(5)}
    assert (batch.record_count, batch.outlook_states) == (4, 1)


@pytest.mark.parametrize("made", [PLAIN, WAITING], ids=["at once", "with a grace period"])
def test_a_batch_may_have_outlooks_alone_in_one_partition_and_readings_in_another(made: Settings) -> None:
    topic = Topic.of([Event("s2", 0, True), Event("s0", 0, False), Event("s0", 2, False), Event("s0", 9, False)])
    polled = {TopicPartition(WHERE.topic, partition): records for partition, records in topic.records.items()}
    batch = MicroBatchBuilder(made, served(made), "").build(polled)
    waits = made is WAITING  # the reading of hour 9 waits for the gap before it, and hour 2 is released by it
    assert (batch.counts.accepted, batch.counts.unused_outlooks) == (2 if waits else 3, 1)
    forecasts = [records for records in batch.records if records.topic == made.kafka.topics.forecasts]
    assert [records.partition for records in forecasts] == [0]
    assert {number: position.next for number, position in batch.positions.items()} == {0: 3, 1: 1}


def test_a_model_without_outlooks_ignores_them() -> None:
    bare = small_forecaster(Settings(horizon_steps=2, max_gap_steps=3), seed=3, hidden_size=4)
    records = Topic.of([Event("s0", 0, False), Event("s0", 1, True), Event("s0", 1, False)]).records[0]
    stream = Stream(records, PLAIN, {1: bare})
    stream.take(3)
    assert (stream.counts.accepted, stream.counts.outlooks, stream.counts.unused_outlooks) == (2, 0, 1)
    assert stream.letters == []


def test_a_model_with_other_covariates_than_the_settings_does_not_fit_them() -> None:
    fits = MODELS[1].config
    assert settings_differences(fits, PLAIN) == []
    assert settings_differences(replace(fits, outlook=None), PLAIN) == []
    swapped = PLAIN.model_copy(update={"outlooks": OutlookSettings(covariates=("WSPM", "TEMP"))})
    assert settings_differences(fits, swapped) == [
        "the model was made for the outlook covariates TEMP, WSPM, and outlooks.covariates says WSPM, TEMP"
    ]
    without = PLAIN.model_copy(update={"outlooks": OutlookSettings()})
    assert settings_differences(fits, without)[0].endswith("outlooks.covariates says none")


def test_an_invalid_outlook_becomes_a_dead_letter() -> None:
    records = Topic.of([Event("s0", 0, False), Event("s0", 1, True)]).records[0]
    bad = records[1]._replace(value=(records[1].value or b"").replace(b"TEMP", b"temp").replace(b"WSPM", b"wspm"))
    stream = Stream([records[0], bad], PLAIN, MODELS)
    stream.take(2)
    assert stream.counts.dead_letters == {"bad-outlook": 1}
    assert stream.letters == [bad.value]


def test_outlooks_do_not_decode_readings_again() -> None:
    records = Topic.of([Event("s0", 0, False), Event("s0", 1, False), Event("s0", 1, True), Event("s0", 2, False)])
    decoded: list[int] = []

    class Counting(ReadingDecoder):
        def decode(self, key: Any, value: Any, headers: Any = (), timestamp: int = 0) -> Reading:
            decoded.append(len(decoded))
            return super().decode(key, value, headers, timestamp)

    found = decode_records(Counting(PLAIN.features), 1, 0, records.records[0], (), make_outlook_decoder(PLAIN))
    assert (len(decoded), found.readings.offsets.tolist()) == (4, [0, 1, 3])


def test_an_outlook_that_was_issued_in_the_future_is_rejected_like_a_reading() -> None:
    """It would make all outlooks after it outdated."""
    topic = Topic.of([Event("s0", 0, False), Event("s0", 20, True), Event("city", 30, True), Event("s0", 1, True)])
    rules = time_rules_from((), PLAIN, 0)
    decoder, outlooks = ReadingDecoder(PLAIN.features), make_outlook_decoder(PLAIN)
    decoded = decode_records(decoder, 1, 0, topic.records[0], rules, outlooks)
    assert [(record.offset, reason.reason) for record, reason in decoded.rejected] == [(2, "implausible-time")]
    (alarm,) = decoded.implausible_times
    assert (alarm.sensor, alarm.offset, alarm.is_outlook) == ("city", 2, True)
    assert "the clock of the outlook's producer may be wrong" in alarm.detail
    assert [each.offset for each in decoded.readings.outlooks] == [1, 3]
    assert len(decoded.readings) == 1
    found = [LoggedOutlook(0, each.offset, START_US // 1_000, each.outlook) for each in decoded.readings.outlooks]
    assert are_implausible(found, {0: rules}) == [False, False]
    late = replace(found[0], outlook=replace(found[0].outlook, issued_us=START_US + 30 * HOUR_US))
    assert are_implausible([late, found[1]], {0: rules}) == [True, False]
    assert are_implausible([late], {}) == [False]


def test_a_state_with_an_outlook_beyond_the_position_is_rebuilt() -> None:
    """A user reset the offset to 2, before the outlook: its readings must not see it."""
    records = Topic.of([Event("s0", 0, False), Event("s0", 1, False), Event("s0", 1, True)]).records[0]
    stream = Stream(records, PLAIN, MODELS)
    stream.take(3)
    value = stream.serving.tag.encode(stream.states["s0"])
    for position, is_usable in ((3, True), (2, False)):
        serving = served()
        logs = {0: PartitionLog(0, 0, 3, None)}
        states = StateRecords(serving, logs, PLAIN, "", {})
        states.add(0, [FetchedRecord(b"s0", value, 0, ())])
        states.load_up_to(0, position)
        assert (serving.table.count(0) == 1) == is_usable
        assert states.unusable[0] == ({} if is_usable else {"s0": None})


def test_explain_names_the_outlook_behind_a_forecast() -> None:
    made = [Event("s0", 0, False), Event("city", 1, True), Event("s0", 1, True), Event("s0", 3, False)]
    stream = Stream(Topic.of(made).records[0], PLAIN, MODELS)
    stream.take(4)
    accepted = accepted_log(evidence(stream).readings, PLAIN)
    found = _outlook(accepted, 0, 1, START_US + HOUR_US, PLAIN.cadence_us)
    assert found == ExplainedOutlook("city", 1, START_US + HOUR_US, 2.0)
    assert _outlook(accepted, 0, 0, NO_ISSUE_US, PLAIN.cadence_us) is None
    readings = evidence(stream).readings
    alone = accepted_log(replace(readings, outlooks=of_sensor(readings.outlooks, "s0")), PLAIN)
    assert _outlook(alone, 0, 1, START_US + HOUR_US, PLAIN.cadence_us) == found
    assert of_sensor(readings.outlooks, "s1") == ()


@given(events, st.randoms())
def test_the_audit_has_the_outlooks_of_each_sensor_in_the_order_of_offsets(
    made: list[Event], chance: random.Random
) -> None:
    logged = []
    for partition, records in Topic.of(made).records.items():
        outlooks = decode_records(ReadingDecoder(("value",)), 1, partition, records, (), make_outlook_decoder(PLAIN))
        logged += [LoggedOutlook(partition, one.offset, 0, one.outlook) for one in outlooks.readings.outlooks]
    chance.shuffle(logged)
    streams = [(1, "s2"), (0, "s1"), (0, "s0")]
    found = StreamOutlooks.of(logged, streams)
    for number, (partition, sensor) in enumerate(streams):
        mine = slice(found.starts[number], found.starts[number + 1])
        given_here = [each for each in logged if each.partition == partition and sensor in each.outlook.sensors]
        expected = sorted(given_here, key=lambda each: each.offset)
        assert found.offset[mine].tolist() == [each.offset for each in expected]
        assert [logged[which] for which in found.which[mine]] == expected


def test_outlooks_do_not_depend_on_the_place_of_a_sensor(tmp_path: Path) -> None:
    assert PARTITION_OF["s2"] == 1
    made = [Event("city", 0, True), Event("s2", 0, False), Event("city", 1, True), Event("s2", 1, False)]
    assert seen_in_stream(Topic.of(made), []) == {("s2", 0): None, ("s2", 1): 1}
