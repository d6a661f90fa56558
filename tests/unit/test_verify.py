"""The audit of readings, forecasts and states: a correct stream has no fault, and every planted fault is named."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import click
import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from deploy.commands.verify import moment_us
from deploy.commands.verify import verify as command
from deploy.context import Context
from model.acceptance import ACCEPTED
from model.forecaster import Forecaster
from model.reorder_buffer import MAX_BUFFERED_OFFSETS
from pipeline.audit.delivery import REJECTED, ForecastLog, ReadingLog, classify_log
from pipeline.audit.explain import explain
from pipeline.audit.lineage import accepted_log, trace_states
from pipeline.audit.scope import LogStarts
from pipeline.audit.state_audit import LastState
from pipeline.audit.topic_logs import read_forecasts
from pipeline.audit.verify import Evidence, audit_evidence
from pipeline.errors import KafkaError, StreamgruError
from pipeline.forecast_encoding import WEIGHT_PARTS, round_to_scale
from pipeline.forecaster.readings import Readings
from pipeline.forecaster.states.store import ServedModel
from pipeline.messages import Forecast, InputPosition, ModelId, StateAge, decode_state, quantile_key
from pipeline.settings import Settings
from tests.integration.stream_rig import HOUR_US, START_US, small_forecaster

SETTINGS = Settings(features=("a",), targets=("a",), horizon_steps=2, max_gap_steps=3)
MODELS = {version: small_forecaster(SETTINGS, seed=version) for version in (1, 2)}
SENSORS = ("s", "t")
# Hours of each sensor's readings: 2 are missing, then 10, which is more than max_gap_steps.
HOURS = [*range(30), *range(32, 40), *range(50, 90)]
START_OF_2016_US = 1_451_606_400_000_000
SWAP_AT = 100  # first offset that version 2 forecasts


def load(version: int) -> Forecaster:
    return MODELS[version]


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    """One partition: both sensors' readings alternate, the last record is poison, and models swap in the middle."""
    n = len(SENSORS) * len(HOURS)
    sensor = np.arange(n) % 2
    timestamp_us = START_US + np.repeat(HOURS, 2) * HOUR_US
    values = np.random.default_rng(0).normal(size=(n, 1)).cumsum(axis=0)
    readings = ReadingLog(
        sensors=SENSORS,
        partition=np.zeros(n + 1, np.int32),
        offset=np.arange(n + 1),
        sensor=np.append(sensor, -1),
        timestamp_us=np.append(timestamp_us, 0),
        values=np.append(values, [[np.nan]], axis=0),
        sent_ms=np.zeros(n + 1, np.int64),
        verdict=np.append(np.full(n, ACCEPTED), REJECTED).astype(np.int8),
    )

    def step(version: int, first: int, last: int) -> tuple[ServedModel, dict[str, Any]]:
        rows = slice(first, last)
        serving = ServedModel(version, MODELS[version], SETTINGS)
        serving.table.add_partition(0)
        names = [SENSORS[code] for code in sensor[rows]]
        batch = Readings.of_sensors(0, names, timestamp_us[rows], values[rows], np.arange(n)[rows])
        stepped = serving.step([batch])
        serving.table.scatter(stepped.rows, stepped.states)
        made = stepped.forecasts
        quantiles = round_to_scale(made.quantiles, made.scale).astype(np.float32)
        return serving, {
            "quantiles": quantiles,
            "weights": np.rint(made.weights * WEIGHT_PARTS) / WEIGHT_PARTS,
            "origin": made.origin,
            "steps": made.steps,
            "warm": made.warm,
        }

    _, before = step(1, 0, SWAP_AT)
    serving, after = step(2, 2 * HOURS.index(50), n)  # the replay begins at the last reset
    skipped = SWAP_AT - 2 * HOURS.index(50)
    made = {name: np.concatenate([before[name], after[name][skipped:]]) for name in before}
    names, rows = serving.table.partition_rows(0)
    states = {
        (0, name): LastState(2, decode_state(serving.tag.encode(state.tobytes()))[1])
        for name, state in zip(names, serving.table.gather(rows), strict=True)
    }
    forecasts = ForecastLog(
        sensors=SENSORS,
        partition=np.zeros(n, np.int32),
        offset=np.arange(n),
        sensor=sensor,
        issued_us=timestamp_us,
        input_offset=np.arange(n),
        input_partition=np.zeros(n, np.int32),
        version=np.where(np.arange(n) < SWAP_AT, 1, 2),
        sent_ms=np.zeros(n, np.int64),
        **made,
    )
    return Evidence(readings, forecasts, states, {(0, n): 1}, {}, {0: n + 1})


def faults(evidence: Evidence) -> dict[str, int]:
    return audit_evidence(evidence, SETTINGS, load).faults


def with_forecasts(evidence: Evidence, change: Callable[[ForecastLog], ForecastLog]) -> Evidence:
    return replace(evidence, forecasts=change(evidence.forecasts))


def changed(log: ForecastLog, name: str, row: int, value: Any) -> ForecastLog:
    column = getattr(log, name).copy()
    column[row] = value
    return replace(log, **{name: column})


def test_the_records_of_a_correct_stream_have_no_fault(evidence: Evidence) -> None:
    verdict = audit_evidence(evidence, SETTINGS, load)
    assert verdict.faults == {}
    assert verdict.recomputed == len(evidence.forecasts)
    assert verdict.largest_difference == 0.0
    assert verdict.versions == {1: SWAP_AT, 2: len(evidence.forecasts) - SWAP_AT}
    assert (verdict.states, verdict.rebuilt, verdict.out_of_reach, verdict.waiting) == (2, 0, 0, 0)


def test_a_missing_forecast_is_found(evidence: Evidence) -> None:
    def drop(log: ForecastLog) -> ForecastLog:
        return log.take(np.arange(len(log)) != 40)

    assert faults(with_forecasts(evidence, drop)) == {"missing": 1}


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("quantiles", 12.5, {"different": 1}),
        ("weights", np.nan, {"different": 1}),  # the forecast names no weights
        ("steps", 3, {"different": 1}),
        ("warm", False, {"different": 1}),
        ("origin", 1, {"different": 1}),  # the other sensor's origin
        ("version", 1, {"different": 1}),
    ],
)
def test_a_wrong_field_of_one_forecast_is_found(
    evidence: Evidence, name: str, value: Any, found: dict[str, int]
) -> None:
    assert faults(with_forecasts(evidence, lambda log: changed(log, name, 120, value))) == found


def test_a_weight_that_is_one_digit_off_is_found(evidence: Evidence) -> None:
    weights = evidence.forecasts.weights
    assert weights is not None
    for wrong in (weights[120] + 1 / WEIGHT_PARTS, np.roll(weights[120], 1, axis=1)):
        assert faults(with_forecasts(evidence, lambda log, to=wrong: changed(log, "weights", 120, to))) == {
            "different": 1
        }


def test_a_state_that_begins_at_too_late_a_reading_is_found(evidence: Evidence) -> None:
    """The last forecast and state of a sensor come from a blank state and the last reading alone."""
    serving = ServedModel(2, MODELS[2], SETTINGS)
    serving.table.add_partition(0)
    log = evidence.readings
    last = len(log) - 2
    name = SENSORS[int(log.sensor[last])]
    row = slice(last, last + 1)
    batch = Readings.of_sensors(0, [name], log.timestamp_us[row], log.values[row], log.offset[row])
    stepped = serving.step([batch])
    made = evidence.forecasts
    for column, value in (
        ("quantiles", round_to_scale(stepped.forecasts.quantiles, stepped.forecasts.scale)[0]),
        ("weights", np.rint(stepped.forecasts.weights[0] * WEIGHT_PARTS) / WEIGHT_PARTS),
        ("origin", last),
        ("steps", 1),
        ("warm", False),
    ):
        made = changed(made, column, last, value)
    states = {**evidence.states, (0, name): LastState(2, stepped.states.tobytes())}
    assert faults(replace(evidence, forecasts=made, states=states)) == {"begun anew": 1}


@pytest.mark.parametrize(
    ("within", "steps", "latest"),
    [
        # A sensor's readings lie 2 offsets apart. The last is number 999, and every second one is an anchor.
        (4_000, 100, 900),  # the whole log lies within the limit; 100 steps back are enough
        (1_000, 100, 900),  # half the limit reaches back to number 749; 100 steps back are enough
        (100, 100, 975),  # half the limit reaches back to number 974
        (100, 10, 990),
        (4, 100, 999),
        (1, 100, 999),
    ],
)
def test_the_latest_allowed_origin_of_a_state_does_not_depend_on_the_age_of_its_sensor(
    monkeypatch: pytest.MonkeyPatch, within: int, steps: int, latest: int
) -> None:
    monkeypatch.setattr("model.config.Adaptation.anchor_spacing", 2)
    forecaster = SETTINGS.forecaster.model_copy(update={"rewarm_max_readings": within, "rewarm_steps": steps})
    settings = SETTINGS.model_copy(update={"forecaster": forecaster})
    n = 2_000
    log = ReadingLog(
        sensors=SENSORS,
        partition=np.zeros(n, np.int32),
        offset=np.arange(n),
        sensor=np.arange(n) % 2,
        timestamp_us=START_US + np.arange(n) // 2 * HOUR_US,
        values=np.zeros((n, 1)),
        sent_ms=np.zeros(n, np.int64),
        verdict=np.full(n, ACCEPTED, np.int8),
    )
    accepted = accepted_log(log, settings)

    def begun_anew(origin: int) -> bool:
        ones = np.ones(1, np.int64)
        made = ForecastLog(
            sensors=SENSORS,
            partition=np.zeros(1, np.int32),
            offset=ones,
            sensor=ones,
            issued_us=log.timestamp_us[-1:],
            input_offset=ones * (n - 1),
            input_partition=np.zeros(1, np.int32),
            version=ones,
            warm=np.ones(1, np.bool_),
            sent_ms=ones,
            origin=ones * (2 * origin + 1),
            steps=ones,
        )
        return bool(trace_states(log, made, accepted, settings).begun_anew[0])

    assert not begun_anew(latest)
    assert latest == 999 or begun_anew(latest + 1)


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (None, "the changelog has no record of it"),
        (LastState(fault="not a state record"), "not a state record"),
        (LastState(2, b"\0" * 16), "the size of the state does not match version 2"),
    ],
)
def test_a_missing_or_damaged_state_is_found(evidence: Evidence, state: LastState | None, why: str) -> None:
    states = {key: value for key, value in {**evidence.states, (0, "s"): state}.items() if value is not None}
    verdict = audit_evidence(replace(evidence, states=states), SETTINGS, load)
    assert verdict.faults == {"states different": 1}
    assert verdict.examples["states different"] == [f"sensor s, partition 0: {why}"]


def test_a_missing_or_repeated_dead_letter_is_found(evidence: Evidence) -> None:
    (place,) = evidence.letters
    assert faults(replace(evidence, letters={})) == {"dead letters missing": 1}
    assert faults(replace(evidence, letters={place: 2})) == {"dead letters twice": 1}


def test_forecasts_of_deleted_readings_are_counted_and_not_reported_as_faults(evidence: Evidence) -> None:
    first = 2 * HOURS.index(50) + 10
    cut = replace(
        evidence,
        readings=evidence.readings.take(evidence.readings.offset >= first),
        logs=LogStarts(readings={0: first}),
    )
    verdict = audit_evidence(cut, SETTINGS, load)
    assert verdict.faults == {}
    assert verdict.out_of_reach == verdict.audit.forecasts == len(evidence.forecasts) - first
    assert (verdict.readings_out_of_reach, verdict.forecasts_out_of_reach) == (0, first)
    assert faults(with_forecasts(cut, lambda log: log.take(log.input_offset != first + 4))) == {"missing": 1}
    assert faults(replace(cut, logs=LogStarts())) == {"unexpected": first}, (
        "no reading was deleted, so these forecasts have no reading"
    )


def test_readings_whose_forecasts_were_deleted_are_counted_and_not_reported_as_missing(evidence: Evidence) -> None:
    cut = with_forecasts(evidence, lambda log: log.take(log.offset >= 20))
    assert faults(cut) == {"missing": 20}
    deleted = replace(cut, logs=LogStarts(forecasts={0: 20}))
    verdict = audit_evidence(deleted, SETTINGS, load)
    assert verdict.faults == {}
    assert (verdict.readings_out_of_reach, verdict.forecasts_out_of_reach) == (20, 0)
    assert faults(with_forecasts(deleted, lambda log: log.take(log.input_offset != 40))) == {"missing": 1}

    none = audit_evidence(with_forecasts(deleted, lambda log: log.take(log.offset < 0)), SETTINGS, load)
    assert none.faults == {}
    assert none.readings_out_of_reach == len(evidence.readings)


def test_records_whose_dead_letters_were_deleted_are_counted_and_not_reported_as_missing(evidence: Evidence) -> None:
    verdict = audit_evidence(replace(evidence, letters={}, logs=LogStarts(letters={0: 1})), SETTINGS, load)
    assert verdict.faults == {}
    assert verdict.letters_out_of_reach == 1


def test_the_copy_of_a_republished_dead_letter_is_due_a_forecast_and_the_original_is_not() -> None:
    """The first two records decode under the present settings, but were dead letters under earlier ones."""
    hours, offsets = np.array([0, 1, 0, 1, 2]), np.arange(5)
    readings, forecasts, states = logs_of_one_batch(SETTINGS, ["s"] * 3, hours[2:], offsets[2:])
    both, *_ = logs_of_one_batch(SETTINGS, ["s"] * 5, hours, offsets)
    values = np.concatenate([readings.values[:2], readings.values])
    readings = replace(both, values=values, verdict=classify_log(both, SETTINGS.grace, {}))
    letters = {(0, 0): 1, (0, 1): 1}
    verdict = audit_evidence(Evidence(readings, forecasts, states, letters, {}, {0: 5}), SETTINGS, load)
    assert verdict.faults == {}
    assert (verdict.audit.accepted, verdict.audit.rejected, verdict.recomputed) == (3, 2, 3)

    unanswered = audit_evidence(
        Evidence(readings, forecasts.take(offsets[:3] > 1), states, letters, {}, {0: 5}), SETTINGS, load
    )
    assert unanswered.audit.lost == 2, "neither a dead letter nor its copy has a forecast"
    never_aside = audit_evidence(Evidence(readings, forecasts, states, {}, {}, {0: 5}), SETTINGS, load)
    assert (never_aside.audit.lost, never_aside.audit.unexpected) == (2, 2)


def with_rejected(*, count: int, release: int = 0) -> Evidence:
    """Five readings of one sensor; the stream rejected ``count`` readings from offset ``release`` on."""
    hours = np.arange(5)
    rejected = (hours >= release) & (hours < release + count)
    kept, forecasts, states = logs_of_one_batch(SETTINGS, ["s"] * (5 - count), hours[~rejected], hours[~rejected])
    readings, *_ = logs_of_one_batch(SETTINGS, ["s"] * 5, hours, hours)
    values = np.zeros((5, 1))
    values[~rejected] = kept.values
    readings = replace(readings, values=values, verdict=classify_log(readings, SETTINGS.grace, {}))
    return Evidence(readings, forecasts, states, {}, {}, {0: 5})


def test_a_reading_that_decodes_only_now_counts_as_rejected_if_it_has_a_dead_letter() -> None:
    """An earlier release rejected it: the dead letter is the record of that verdict."""
    upgraded = replace(with_rejected(count=1, release=1), letters={(0, 1): 1}, unreadable=[(0, 1, 1)])
    verdict = audit_evidence(upgraded, SETTINGS, load)
    assert verdict.faults == {}
    assert (verdict.audit.accepted, verdict.audit.rejected, verdict.rejected_then) == (4, 1, 1)
    assert faults(replace(upgraded, letters={(0, 1): 2})) == {"dead letters twice": 1}
    assert faults(replace(upgraded, letters={}, unreadable=[]))["missing"] == 1


def test_a_reading_with_both_a_forecast_and_a_dead_letter_is_accepted() -> None:
    verdict = audit_evidence(replace(with_rejected(count=0), unreadable=[(0, 1, 1)]), SETTINGS, load)
    assert (verdict.faults, verdict.audit.accepted) == ({}, 5)


def test_all_records_of_a_batch_with_a_dead_letter_count_as_rejected_after_the_limit_was_raised() -> None:
    raised = replace(with_rejected(count=3, release=1), letters={(0, 1): 1}, unreadable=[(0, 1, 3)])
    verdict = audit_evidence(raised, SETTINGS, load)
    assert verdict.faults == {}
    assert (verdict.audit.accepted, verdict.audit.rejected, verdict.rejected_then) == (2, 3, 3)
    assert faults(replace(raised, letters={(0, 1): 2})) == {"dead letters twice": 1}


@pytest.mark.parametrize(("start", "faults_found"), [("latest", {}), ("earliest", {"missing": 4})])
def test_refused_readings_of_a_group_that_started_at_the_latest_reading_are_not_missing(
    start: str, faults_found: dict[str, int]
) -> None:
    """Sensors t and u are older than the group; s takes the only place, so that two readings are refused correctly."""
    forecaster = SETTINGS.forecaster.model_copy(update={"start": start, "max_sensors_per_partition": 1})
    settings = SETTINGS.model_copy(update={"forecaster": forecaster})
    _, forecasts, states = logs_of_one_batch(settings, ["s"], np.array([2]), np.array([2]))
    readings, *_ = logs_of_one_batch(SETTINGS, ["t", "u", "s", "t", "u"], np.arange(5), np.arange(5))
    letters = {(0, 3): 1, (0, 4): 1}
    found = Evidence(readings, forecasts, states, letters, {}, {0: 5}, beyond_limit=letters)
    assert {
        kind: count for kind, count in audit_evidence(found, settings, load).faults.items() if kind == "missing"
    } == (faults_found)


@pytest.mark.parametrize(("start", "missing"), [("earliest", 30), ("latest", 0)])
def test_a_stream_started_at_the_latest_reading_owes_no_forecast_of_the_readings_before_it(
    evidence: Evidence, start: str, missing: int
) -> None:
    """Partition 1 has readings from before the start of the stream only."""
    settings = SETTINGS.model_copy(update={"forecaster": SETTINGS.forecaster.model_copy(update={"start": start})})
    old = evidence.readings.take(evidence.readings.offset < 30)
    readings = evidence.readings
    both = replace(
        readings,
        **{
            name: np.concatenate([column, getattr(old, name) + (name == "partition")])
            for name, column in vars(readings).items()
            if isinstance(column, np.ndarray)
        },
    )
    waiting = replace(evidence, readings=both, ends={**evidence.ends, 1: 30})
    assert audit_evidence(waiting, settings, load).audit.lost == missing


# --- settings that were changed ---------------------------------------------------------------------------------------


def with_foreign(log: ForecastLog, mask: NDArray[np.bool_]) -> ForecastLog:
    """The log, with the forecasts of ``mask`` made under other settings."""
    foreign = replace(log.take(mask), quantiles=None, weights=None, fingerprints={"0123456789ab": int(mask.sum())})
    return replace(log.take(~mask), foreign=foreign)


def test_the_audit_of_a_partition_begins_at_its_first_forecast_under_the_present_settings(evidence: Evidence) -> None:
    since = 2 * HOURS.index(50)
    n = len(evidence.forecasts)
    changed = with_forecasts(evidence, lambda log: with_foreign(log, np.arange(n) < since))
    verdict = audit_evidence(changed, SETTINGS, load)
    assert verdict.faults == {}
    assert verdict.foreign == {"0123456789ab": since}
    assert (verdict.audit.readings, verdict.audit.accepted, verdict.recomputed) == (n + 1 - since, n - since, n - since)

    lost = with_forecasts(changed, lambda log: log.take(log.input_offset != since + 5))
    assert faults(lost) == {"missing": 1}


def test_readings_forecast_under_other_settings_in_between_are_not_reported_as_missing(evidence: Evidence) -> None:
    n = len(evidence.forecasts)
    between = (np.arange(n) >= 90) & (np.arange(n) < SWAP_AT)
    changed = with_forecasts(evidence, lambda log: with_foreign(log, between))
    verdict = audit_evidence(changed, SETTINGS, load)
    assert verdict.faults == {}
    assert verdict.audit.accepted == n - (SWAP_AT - 90)
    assert faults(with_forecasts(changed, lambda log: log.take(log.input_offset != 50))) == {"missing": 1}


def test_no_forecast_is_due_in_a_partition_without_forecasts_under_the_present_settings(evidence: Evidence) -> None:
    n = len(evidence.forecasts)
    verdict = audit_evidence(with_forecasts(evidence, lambda log: with_foreign(log, np.ones(n, bool))), SETTINGS, load)
    assert verdict.faults == {}
    assert (verdict.audit.accepted, verdict.audit.forecasts) == (0, 0)


def test_missing_and_repeated_forecasts_at_a_change_of_settings_are_found(evidence: Evidence) -> None:
    n, since = len(evidence.forecasts), 2 * HOURS.index(50)
    before = np.arange(n) < since
    lost = with_forecasts(evidence, lambda log: with_foreign(log, before).take(np.arange(n - since) >= 6))
    assert faults(lost)["missing"] == 6

    foreign = with_foreign(evidence.forecasts, np.arange(n) < since + 4).foreign
    twice = with_forecasts(evidence, lambda log: replace(with_foreign(log, before), foreign=foreign))
    assert faults(twice) == {"twice": 4}


def test_dead_letters_at_a_change_of_settings_are_not_reported_as_missing_forecasts(evidence: Evidence) -> None:
    n, since = len(evidence.forecasts), 2 * HOURS.index(50)
    changed = with_forecasts(
        evidence, lambda log: with_foreign(log, np.arange(n) < since).take(np.arange(n - since) >= 2)
    )
    aside = replace(changed, letters={**evidence.letters, (0, since): 1, (0, since + 1): 1})
    assert "missing" in faults(changed)
    assert "missing" not in faults(aside)


def test_a_reading_before_the_first_remaining_forecast_of_its_sensor_is_not_reported_as_missing(
    evidence: Evidence,
) -> None:
    """This reading may be late: the newer reading before it may have been deleted."""
    cut = replace(
        evidence, readings=evidence.readings.take(evidence.readings.offset >= 20), logs=LogStarts(readings={0: 20})
    )
    late = with_forecasts(cut, lambda log: log.take((log.offset >= 20) & (log.input_offset != 20)))
    verdict = audit_evidence(late, SETTINGS, load)
    assert "missing" not in verdict.faults
    assert verdict.readings_out_of_reach == 1
    assert faults(with_forecasts(late, lambda log: log.take(log.input_offset != 30)))["missing"] == 1


def forecast_of(settings: Settings, offset: int) -> Forecast:
    return Forecast(
        sensor_id="s",
        issued_at=datetime(2016, 1, 1, offset, tzinfo=UTC),
        cadence_s=settings.cadence_s,
        quantiles={
            target: {quantile_key(level): [1.0] * settings.horizon_steps for level in settings.quantiles}
            for target in settings.targets
        },
        model=ModelId("streamgru", 1),
        settings=settings.fingerprint,
        input=InputPosition("readings", 0, offset),
        state=StateAge(0, offset + 1, warm=False),
    )


@pytest.fixture
def forecasts_topic(monkeypatch: pytest.MonkeyPatch) -> list[Forecast]:
    """The forecasts topic: a test appends forecasts to this list."""
    forecasts: list[Forecast] = []

    def read(*_: object) -> Iterator[SimpleNamespace]:
        for offset, forecast in enumerate(forecasts):
            yield SimpleNamespace(
                topic="forecasts",
                partition=0,
                offset=offset,
                key=b"s",
                value=msgspec.json.encode(forecast),
                timestamp=0,
            )

    monkeypatch.setattr("pipeline.audit.topic_logs.read_topic", read)
    monkeypatch.setattr("pipeline.audit.explain.read_topic", read)
    return forecasts


@pytest.mark.parametrize(
    "change",
    [
        {"horizon_steps": 3},
        {"features": ("a", "b"), "targets": ("a", "b")},
        {"quantiles": (0.1, 0.5, 0.75, 0.9)},
        {"max_gap_steps": 5},
        {"forecaster": {"calibration": False}},
    ],
)
def test_forecasts_under_other_settings_are_read_apart(forecasts_topic: list[Forecast], change: dict[str, Any]) -> None:
    before = Settings(**{"features": ("a",), "targets": ("a",), "horizon_steps": 2, "max_gap_steps": 3, **change})
    forecasts_topic += [*(forecast_of(before, offset) for offset in range(4)), forecast_of(SETTINGS, 4)]
    log = read_forecasts(SETTINGS, numbers=True)
    assert log.input_offset.tolist() == [4]
    assert log.quantiles is not None
    assert log.quantiles.shape == (1, 1, 3, 2)
    assert log.foreign is not None
    assert log.foreign.input_offset.tolist() == [0, 1, 2, 3]
    assert log.foreign.fingerprints == {before.fingerprint: 4}

    with pytest.raises(StreamgruError, match=f"under settings {before.fingerprint}, not under the present ones"):
        explain(SETTINGS, load, "s", START_OF_2016_US)


def test_a_forecast_whose_shape_contradicts_its_settings_is_refused(forecasts_topic: list[Forecast]) -> None:
    longer = {"a": {quantile_key(level): [1.0] * 3 for level in SETTINGS.quantiles}}
    forecasts_topic.append(msgspec.structs.replace(forecast_of(SETTINGS, 0), quantiles=longer))
    with pytest.raises(KafkaError, match="is not a forecast of these settings"):
        read_forecasts(SETTINGS, numbers=True)


def logs_of_one_batch(
    settings: Settings, names: list[str], hours: NDArray[np.int64], offsets: NDArray[np.int64]
) -> tuple[ReadingLog, ForecastLog, dict[tuple[int, str], LastState]]:
    """Readings, forecasts and states of partition 0 after one batch of these readings."""
    n, sensors = len(hours), tuple(sorted(set(names)))
    timestamp_us, values = START_US + hours * HOUR_US, np.arange(n, dtype=float)[:, None]
    serving = ServedModel(1, MODELS[1], settings)
    serving.table.add_partition(0)
    accepted = serving.classify(
        Readings.of_sensors(0, names, timestamp_us, values, offsets), end=int(offsets[-1]) + 1
    ).accepted
    stepped = serving.step([accepted])
    made, m = stepped.forecasts, len(accepted)
    forecasts = ForecastLog(
        sensors=sensors,
        partition=np.zeros(m, np.int32),
        offset=np.arange(m),
        sensor=np.array([sensors.index(name) for name in accepted.sensors]),
        issued_us=accepted.timestamp_us,
        input_offset=accepted.offsets,
        input_partition=np.zeros(m, np.int32),
        version=np.ones(m, np.int64),
        warm=made.warm,
        sent_ms=np.zeros(m, np.int64),
        origin=made.origin,
        steps=made.steps,
        quantiles=round_to_scale(made.quantiles, made.scale).astype(np.float32),
        weights=np.rint(made.weights * WEIGHT_PARTS) / WEIGHT_PARTS,
    )
    codes, zeros = np.array([sensors.index(name) for name in names]), np.zeros(n, np.int64)
    readings = ReadingLog(
        sensors, zeros.astype(np.int32), offsets, codes, timestamp_us, values, zeros, np.zeros(n, np.int8)
    )
    found = serving.table.sensors_by_partition(stepped.rows)[0]
    states = {(0, name): LastState(1, state.tobytes()) for name, state in zip(found, stepped.states, strict=True)}
    return readings, forecasts, states


def test_a_reading_buffered_at_the_end_of_the_audit_may_be_released_by_age_behind_it() -> None:
    """Offsets after the audited readings, here one of ``t``, show that the reading of ``s`` was released by age."""
    settings = SETTINGS.model_copy(update={"grace_steps": 2.0})
    hours, offsets = np.array([0, 2, 0, 1]), np.array([0, 1, 2, 2 + MAX_BUFFERED_OFFSETS])
    readings, forecasts, states = logs_of_one_batch(settings, ["s", "s", "t", "t"], hours, offsets)
    assert sorted(forecasts.input_offset.tolist()) == offsets.tolist()
    outcome = audit_evidence(Evidence(readings, forecasts, states, {}, {}, {0: 3}), settings, load)
    assert outcome.faults == {}
    assert (outcome.audit.accepted, outcome.audit.held) == (2, 1)


def test_readings_buffered_at_the_end_of_the_audit_are_due_no_forecast_and_may_have_one() -> None:
    """The stream continues during its audit, so a buffered reading may be released and forecast after its end."""
    settings = SETTINGS.model_copy(update={"grace_steps": 2.0})
    hours = np.array([0, 1, 3, 4, 2, 5, 7])  # 3 and 4 are buffered until 2 arrives; 7 stays buffered
    n = len(hours)
    readings, forecasts, states = logs_of_one_batch(settings, ["s"] * n, hours, np.arange(n))
    m = len(forecasts)
    for end, due, held in ((n, 6, 1), (5, 5, 0), (4, 2, 2)):
        outcome = audit_evidence(Evidence(readings, forecasts, states, {}, {}, {0: end}), settings, load)
        assert outcome.faults == {}
        assert (outcome.audit.accepted, outcome.audit.held, outcome.recomputed) == (due, held, due)

    swapped = forecasts.take(np.ones(m, bool))
    swapped.offset[[2, 3]] = swapped.offset[[3, 2]]
    found = audit_evidence(Evidence(readings, swapped, states, {}, {}, {0: n}), settings, load)
    assert found.faults == {"out of order": 1}
    lost = audit_evidence(Evidence(readings, forecasts.take(np.arange(m) != 3), states, {}, {}, {0: n}), settings, load)
    assert lost.faults == {"missing": 1}


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2016-03-01T08:00:00+08:00", 1_456_790_400_000_000),
        ("1456790400000", 1_456_790_400_000_000),
        ("20160229 24:00 UTC", 1_456_790_400_000_000),
        ("2016-03-01t02:00:00,0000004+02", 1_456_790_400_000_000),
        ("1900-01-01T00:00:00Z", -2_208_988_800_000_000),
        ("7258118399999", 7_258_118_399_999_000),
    ],
)
def test_a_moment_is_iso_8601_or_epoch_milliseconds(text: str, moment: int) -> None:
    assert moment_us(text) == moment


@pytest.mark.parametrize("text", ["1456833600000000", "-2208988800001", "7258118400000", "0001-01-01T00:00:00Z"])
def test_a_moment_outside_the_years_of_readings_is_refused_with_the_unit(text: str) -> None:
    with pytest.raises(click.BadParameter, match="outside the years 1900 to 2199; a number is taken as milliseconds"):
        moment_us(text)


@pytest.mark.parametrize("text", ["yesterday", "2016-03-01T08:00:00", "2016-W09-2T08Z", "--5", "²", "9" * 5_000])
def test_an_invalid_moment_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is neither a time with a zone"):
        moment_us(text)


def test_an_audit_of_no_reading_does_not_report_success(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    audited = {"all": evidence, "none": replace(evidence, starts=evidence.ends)}
    told = {}
    monkeypatch.setattr("deploy.commands.verify._loader", lambda settings: load)
    for name, found in audited.items():
        monkeypatch.setattr("pipeline.audit.verify.gather", lambda settings, span, found=found: found)
        result = CliRunner().invoke(command, [], obj=Context(lambda: SETTINGS), catch_exceptions=False)
        assert result.exit_code == 0
        told[name] = result.output
    assert "every accepted reading has one forecast" in told["all"]
    assert "no accepted reading was audited: the forecasters have committed none in this span" in told["none"]
    assert "every accepted reading" not in told["none"]
