"""Readings with implausible times are rejected, by one rule in the stream, the history and the audit."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.forecaster.readings import decode_records
from pipeline.history.table import History
from pipeline.kafka.batch_consumer import FetchedRecord
from pipeline.messages import ReadingDecoder, encode_reading, iso_timestamp, microseconds
from pipeline.reading_times import (
    RECORD_TIMESTAMP,
    ImplausibleTime,
    TimeAlarms,
    TimeRule,
    TimeRules,
    find_implausible,
    implausible_rows,
    sent_us,
    time_rules_from,
)
from pipeline.settings import Settings
from pipeline.time_units import guess_cause
from pipeline.windows import load_sequences

SENT_MS = microseconds(datetime(2026, 3, 1, 12, tzinfo=UTC)) // 1_000
DAY_US = 86_400_000_000
DEFAULT = time_rules_from((), Settings(), 0)
DECODER = ReadingDecoder(("value",))


def record(timestamp: str | int, offset: int = 0, sent_ms: int = SENT_MS) -> FetchedRecord:
    moment = f'"{timestamp}"' if isinstance(timestamp, str) else timestamp
    value = f'{{"sensor_id": "s", "timestamp": {moment}, "values": {{"value": 1.0}}}}'
    return FetchedRecord(b"s", value.encode(), offset, [], sent_ms)


def reasons(*records: FetchedRecord, rules: TimeRules = DEFAULT) -> list[str]:
    decoded = decode_records(DECODER, 1, 0, records, rules)
    return [f"{reason.reason}: {reason.detail}" for _, reason in decoded.rejected]


@pytest.mark.parametrize(
    ("timestamp", "guess"),
    [
        (SENT_MS // 1_000, "it looks like epoch seconds (2026-03-01T12:00:00Z)"),
        (1_361_404_800, "it looks like epoch seconds (2013-02-21T00:00:00Z)"),
        (SENT_MS // 60_000, "it looks like epoch minutes (2026-03-01T12:00:00Z)"),
        (20260301, "it looks like the digits YYYYMMDD (2026-03-01T00:00:00Z)"),
        (202603011200, "it looks like the digits YYYYMMDDHHMM (2026-03-01T12:00:00Z)"),
        ("1970-01-01T00:00:17Z", "the clock of the sensor may not be set"),
        ("2106-02-07T06:28:15Z", "the clock of the sensor may be wrong"),
    ],
)
def test_a_reading_with_an_implausible_time_is_rejected_with_a_guess_at_the_cause(
    timestamp: str | int, guess: str
) -> None:
    [reason] = reasons(record(timestamp))
    assert reason.startswith("implausible-time: the time ")
    assert guess in reason


@pytest.mark.parametrize("timestamp", [SENT_MS * 1_000, SENT_MS * 1_000_000, 20260301120000])
def test_times_beyond_the_year_2199_are_rejected_with_a_guess_at_the_cause(timestamp: int) -> None:
    [reason] = reasons(record(timestamp))
    assert reason.startswith("bad-timestamp: ")
    assert "it looks like" in reason
    assert "2026-03-01T12:00:00Z" in reason


@pytest.mark.parametrize("timestamp", ["1981-01-01T00:00:00Z", "2026-03-01T12:00:00Z", "2026-03-02T12:00:00Z"])
def test_old_readings_and_clocks_in_a_wrong_time_zone_are_accepted(timestamp: str) -> None:
    assert reasons(record(timestamp)) == []


def test_without_a_record_timestamp_any_later_time_is_plausible() -> None:
    assert reasons(record("2106-02-07T06:28:15Z", sent_ms=-1)) == []
    assert len(reasons(record(1_700_000_000, sent_ms=-1))) == 1


def test_rejected_records_are_in_the_order_of_their_offsets() -> None:
    records = [record("2106-02-07T06:28:15Z", 3), FetchedRecord(b"s", b"{", 4, [], SENT_MS), record(1_700_000_000, 5)]
    decoded = decode_records(DECODER, 1, 0, records, DEFAULT)
    assert [rejected.offset for rejected, _ in decoded.rejected] == [3, 4, 5]
    assert [(one.sensor, one.offset) for one in decoded.implausible_times] == [("s", 3), ("s", 5)]
    assert not len(decoded.readings)


def test_a_rule_applies_from_its_offset_on_so_earlier_verdicts_stay() -> None:
    upgraded = time_rules_from((), Settings(), 10)
    assert reasons(record("2106-02-07T06:28:15Z", 9), rules=upgraded) == []
    assert len(reasons(record("2106-02-07T06:28:15Z", 10), rules=upgraded)) == 1


def test_changed_settings_add_a_rule_and_equal_ones_add_none() -> None:
    wide = Settings(times={"max_ahead_s": 1e9})
    assert time_rules_from(DEFAULT, Settings(), 50) == DEFAULT
    changed = time_rules_from(DEFAULT, wide, 50)
    assert [rule.from_offset for rule in changed] == [0, 50]
    assert len(reasons(record("2040-01-01T00:00:00Z", 49), rules=changed)) == 1
    assert reasons(record("2040-01-01T00:00:00Z", 50), rules=changed) == []
    back = time_rules_from(changed, Settings(), 50)  # nothing was processed under the second rule
    assert [(rule.from_offset, rule.max_ahead_us) for rule in back] == [(0, DAY_US), (50, DAY_US)]


def test_the_limits_apply_to_all_readings_and_change_the_fingerprint_if_the_settings_say_so() -> None:
    rescue = Settings(times={"all_readings": True})
    assert time_rules_from(time_rules_from((), Settings(), 10), rescue, 50) == DEFAULT
    assert rescue.fingerprint != Settings().fingerprint
    assert Settings(times={"max_ahead_s": 1.0}).fingerprint == Settings().fingerprint


def test_the_earliest_time_is_in_utc_unless_it_has_a_zone() -> None:
    assert Settings(times={"earliest": "1950-01-01"}).times.earliest == datetime(1950, 1, 1, tzinfo=UTC)
    assert Settings(times={"earliest": "1950-01-01T01:00:00+01:00"}).times.earliest == datetime(1950, 1, 1, tzinfo=UTC)


limits = st.builds(TimeRule, st.just(0), st.integers(0, 10**16), st.integers(-(10**15), 10**15))
moments = st.one_of(st.integers(-(10**15), 7 * 10**15), st.integers(1_700_000_000_000_000, 1_700_000_100_000_000))
stamps = st.one_of(st.integers(-1, 2**62), st.integers(1_700_000_000_000, 1_700_000_100_000))


@given(
    st.lists(st.tuples(st.integers(0, 2), moments, stamps), max_size=30),
    st.dictionaries(st.integers(0, 2), st.lists(st.tuples(st.integers(0, 30), limits), max_size=3)),
)
def test_stream_history_and_audit_give_the_same_verdicts(
    stream: list[tuple[int, int, int]], drawn: dict[int, list[tuple[int, TimeRule]]]
) -> None:
    rules_of: dict[int, TimeRules] = {}
    for partition, found in drawn.items():
        by_offset = {start: TimeRule(start, rule.max_ahead_us, rule.earliest_us) for start, rule in found}
        rules_of[partition] = tuple(by_offset[start] for start in sorted(by_offset))
    partition, timestamp_us, sent_ms = np.array(stream, np.int64).reshape(-1, 3).T
    offsets = np.arange(len(stream))
    frame = pl.DataFrame(
        {
            "timestamp": timestamp_us,
            "partition": pl.Series(partition, dtype=pl.Int32),
            "offset": offsets,
            RECORD_TIMESTAMP: sent_us(sent_ms),
        }
    )
    by_rows = frame.select(implausible_rows(rules_of).alias("it"))["it"].to_numpy()
    for number in range(3):
        rows = partition == number
        rules = rules_of.get(number, ())
        verdicts = find_implausible(timestamp_us[rows], sent_ms[rows], offsets[rows], rules)
        assert by_rows[rows].tolist() == verdicts.tolist()
        records = [
            FetchedRecord(*encode_reading("s", *reading), offset, [], stamp)
            for reading, offset, stamp in zip(
                ((moment, {"value": 1.0}) for moment in timestamp_us[rows].tolist()),
                offsets[rows].tolist(),
                sent_ms[rows].tolist(),
                strict=True,
            )
        ]
        kept = decode_records(DECODER, 1, number, records, rules).readings.offsets
        assert kept.tolist() == offsets[rows][~verdicts].tolist()


# --- the history ------------------------------------------------------------------------------------------------------


def rows(offsets: range, *, ahead_us: int = 0) -> pl.DataFrame:
    moments = [SENT_MS * 1_000 + offset * 3_600_000_000 for offset in offsets]
    moments[-1] += ahead_us
    return pl.DataFrame(
        {
            "sensor_id": ["s"] * len(offsets),
            "timestamp": moments,
            "value": [float(offset) for offset in offsets],
            "partition": [0] * len(offsets),
            "offset": list(offsets),
        }
    )


def test_a_history_of_an_earlier_release_keeps_its_readings_and_gains_the_record_timestamps(tmp_path: Path) -> None:
    settings = Settings(history=tmp_path / "history")
    history = History(settings.history_path, settings.features)
    history.create()
    from_before = rows(range(3), ahead_us=80 * 365 * DAY_US)
    history.append(from_before, {0: 3}, "readings")
    assert load_sequences(history, settings).observed.sum() == 3

    since = rows(range(3, 6), ahead_us=80 * 365 * DAY_US)
    sent = pl.Series([SENT_MS * 1_000 + offset * 3_600_000_000 for offset in range(3, 6)])
    history.append(since.with_columns(sent.alias(RECORD_TIMESTAMP)), {0: 6}, "readings", time_rules={0: DEFAULT})
    stored = history.scan().sort("offset").collect()
    assert stored[RECORD_TIMESTAMP].is_null().to_list() == [True] * 3 + [False] * 3
    assert history.columns() == ("value",)
    # The reading of 2106 that was accepted before the rule stays accepted, and so the later readings are late.
    assert load_sequences(history, settings).offset.tolist()[-1] == 2


def test_training_leaves_out_implausible_times_and_keeps_the_readings_after_them(tmp_path: Path) -> None:
    settings = Settings(history=tmp_path / "history")
    history = History(settings.history_path, settings.features)
    history.create()
    for offsets, ahead_us in ((range(3), 80 * 365 * DAY_US), (range(3, 6), 0)):
        frame = rows(offsets, ahead_us=ahead_us)
        sent = pl.Series([SENT_MS * 1_000 + offset * 3_600_000_000 for offset in offsets])
        frame = frame.with_columns(sent.alias(RECORD_TIMESTAMP))
        history.append(frame, {0: offsets.stop}, "readings", time_rules={0: DEFAULT})
    sequences = load_sequences(history, settings)
    assert sequences.offset[sequences.observed].tolist() == [0, 1, 3, 4, 5]
    assert History(settings.history_path, ()).time_rules("readings") == {0: DEFAULT}


# --- the alarms -------------------------------------------------------------------------------------------------------


def test_each_sensor_has_a_warning_a_minute_and_the_memory_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    now_s = 0.0
    alarms = TimeAlarms(lambda: now_s)
    for offset in range(5):
        alarms.add([ImplausibleTime("roof", 3, offset, "the time is wrong")])
    assert [entry.getMessage() for entry in caplog.records] == [
        "sensor roof, partition 3, offset 0: the time is wrong. The reading is a dead letter; 1 of this sensor so far"
    ]
    now_s = 61.0
    alarms.add([ImplausibleTime("roof", 3, 7, "the time is wrong")] * 2)
    assert "offset 7" in caplog.messages[-1]
    assert "7 of this sensor" in caplog.messages[-1]
    alarms.add([ImplausibleTime(f"sensor-{number}", 0, number, "flood") for number in range(5_000)])
    assert len(caplog.messages) <= 11
    assert alarms.most()["roof"] == 7
    assert len(alarms.most()) == 10


def test_the_guess_prefers_the_unit_that_gives_a_time_near_the_record() -> None:
    seconds_us = SENT_MS  # the number of seconds, taken as milliseconds, in microseconds
    assert "epoch seconds" in guess_cause(seconds_us, SENT_MS)
    assert iso_timestamp(SENT_MS * 1_000) in guess_cause(seconds_us, SENT_MS)
