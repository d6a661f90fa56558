"""Outlooks on a real broker: files, forecasters that are killed, the audit, and the history agree about them."""

import signal
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

from deploy.commands.publish import publish as publish_command
from deploy.commands.verify import explain as explain_command
from deploy.commands.verify import verify as verify_command
from deploy.context import Context
from pipeline.audit.verify import verify
from pipeline.dead_letters import read_letters, republish_letters
from pipeline.errors import DataFileError
from pipeline.export.export import export
from pipeline.forecaster.group_limit import GroupLimit
from pipeline.history.ingest import ingest
from pipeline.history.table import History
from pipeline.kafka.topics import ensure_topics
from pipeline.messages import iso_timestamp
from pipeline.outlook_messages import OutlookMessage, encode_outlook
from pipeline.settings import Settings
from pipeline.windows import load_sequences
from tests.conftest import SettingsFactory
from tests.integration.stream_rig import (
    HOUR_US,
    START_US,
    FolderChampion,
    ForecasterProcess,
    Message,
    assert_same,
    expected_forecasts,
    partition_of,
    publish,
    read_all,
    reading,
    running,
    small_forecaster,
    wait_for_forecasts,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

SENSORS = [f"sensor-{number}" for number in range(6)]
GROUPS = {"city": SENSORS[:4]}
COVARIATES = ("TEMP", "WSPM")


@pytest.fixture
def settings(broker: Settings, fresh_settings: SettingsFactory) -> Settings:
    made = fresh_settings(
        features=["a"],
        targets=["a"],
        horizon_steps=2,
        max_gap_steps=4,
        outlooks={"covariates": COVARIATES, "steps": 8, "groups": GROUPS},
        forecaster={"poll_alias_s": 0.1, "max_batch_readings": 50, "rewarm_steps": 30},
    )
    ensure_topics(made)
    return made


def outlook(settings: Settings, name: str, step: int) -> list[Message]:
    """The outlook of a sensor or group issued at a step, as records for each partition that it goes to."""
    ahead = np.arange(1, 9)
    values = {"TEMP": np.sin((step + ahead) / 4), "WSPM": np.where(ahead % 3 == 0, np.nan, 1.0 * step + ahead)}
    times = START_US + (step + ahead) * HOUR_US
    key, value = encode_outlook(name, START_US + step * HOUR_US, times, values, is_group=name in GROUPS)
    partitions = range(settings.kafka.partitions) if name in GROUPS else [partition_of(settings, name)]
    return [Message(key, value, partition) for partition in partitions]


def interleaved(settings: Settings, steps: range) -> list[Message]:
    """One reading of each sensor per step; the city's outlook every six steps, and one of a sensor every five."""
    messages = []
    for step in steps:
        if step % 6 == 3:
            messages += outlook(settings, "city", step)
        if step % 5 == 4:
            messages += outlook(settings, SENSORS[step % len(SENSORS)], step - step % 3)
        messages += [reading(settings, sensor, step) for sensor in SENSORS]
    return messages


def invoke(settings: Settings, command: Any, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(each) for each in arguments], obj=Context(lambda: settings))


def test_a_backlog_of_outlooks_is_forecast_in_small_transactions(
    settings: Settings, champion: FolderChampion, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(settings, [*interleaved(settings, range(40)), *outlook(settings, "city", 40)])
    for place in ("loop", "rebuild"):
        limit = partial(GroupLimit, most_entries=4, most_bytes=1)
        monkeypatch.setattr(f"pipeline.forecaster.{place}.GroupLimit", limit)
    with running(settings, champion) as forecaster:
        found = wait_for_forecasts(settings, 40 * len(SENSORS))
        assert_same(found, expected_forecasts(settings, small_forecaster(settings)))
        wait_until(lambda: forecaster.counters.outlooks + forecaster.counters.unused_outlooks > 12, 10, "all outlooks")
        assert forecaster.counters.aborted == 0
        assert forecaster.counters.transactions > 12
    verdict = verify(settings, champion.load)
    assert verdict.faults == {}, verdict.examples


@pytest.mark.long(15)
def test_kills_and_a_swap_between_outlooks_change_no_forecast_and_the_audit_finds_no_fault(
    settings: Settings, champion: FolderChampion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    static = {"static_membership": True}
    settings = settings.model_copy(update={"forecaster": settings.forecaster.model_copy(update=static)})
    for number, point in enumerate(("flushed", "committed")):
        publish(settings, interleaved(settings, range(number * 20, number * 20 + 20)))
        with ForecasterProcess(settings, tmp_path / "champion", die_at=point, times=2) as process:
            assert process.exit_code(60) == -signal.SIGKILL, process.said
    known = outlook(settings, "city", 40)[0]
    town = Message(b"town", (known.value or b"").replace(b'"city"', b'"town"'), 0)
    publish(settings, [town, *interleaved(settings, range(40, 60))])
    with running(settings, champion) as forecaster:
        found = wait_for_forecasts(settings, 60 * len(SENSORS))
        assert_same(found, expected_forecasts(settings, small_forecaster(settings)))
        champion.promote(2, small_forecaster(settings, seed=2))
        wait_until(lambda: forecaster.counters.model_version == 2, 30, "version 2 serves")
        publish(settings, interleaved(settings, range(60, 75)))
        wait_for_forecasts(settings, 75 * len(SENSORS))
        assert forecaster.counters.rebuilt_sensors == 0
        assert forecaster.counters.outlooks > 5
    assert [(letter.reason, letter.value) for letter in read_letters(settings)] == [("bad-outlook", town.value)]

    verdict = verify(settings, champion.load)
    assert verdict.faults == {}, verdict.examples
    assert (verdict.recomputed, verdict.audit.rejected, verdict.states) == (75 * len(SENSORS), 1, len(SENSORS))
    records = read_all(settings, settings.kafka.topics.readings)
    sent = [record for record in records if b'"outlook"' in record.value and record.value != town.value]
    assert verdict.outlooks == len(sent)

    monkeypatch.setattr("deploy.commands.verify._loader", lambda settings: champion.load)
    last = invoke(settings, explain_command, SENSORS[0], iso_timestamp(START_US + 74 * HOUR_US))
    issued = iso_timestamp(START_US + 69 * HOUR_US)
    assert f"outlook    of city, issued at {issued} (5 cadences before the time of the reading)" in last.output, (
        last.output
    )
    assert f"outlooks, which have no forecasts of their own: {len(sent)}" in invoke(settings, verify_command).output

    report = ingest(settings)
    assert (report.readings, report.outlooks, report.rejected) == (75 * len(SENSORS), len(sent), {"bad-outlook": 1})
    sequences = load_sequences(History(settings.history_path, settings.features), settings)
    assert sequences.outlooks is not None
    assert sequences.outlook is not None
    lo, hi = sequences.span(sequences.sensors.index(SENSORS[0]))
    row = sequences.outlook[hi - 1]
    assert hi - lo == 75
    assert sequences.outlooks.issued_us[row] == START_US + 69 * HOUR_US
    exported = export(settings, "readings", tmp_path / "exported")
    assert (exported.rows, exported.left_out) == (75 * len(SENSORS), {"bad-outlook": 1})


def test_an_outlook_of_a_group_that_was_added_later_can_be_republished(settings: Settings) -> None:
    """The dead letter is an outlook under the new settings."""
    known = outlook(settings, "city", 0)[0]
    value = (known.value or b"").replace(b'"city"', b'"town"')
    producer_message = Message(b"town", value, 0)
    publish(settings, [producer_message, reading(settings, SENSORS[0], 0)])
    champion = FolderChampion(settings.home / "models", settings)
    champion.promote(1, small_forecaster(settings))
    with running(settings, champion):
        wait_until(lambda: len(list(read_letters(settings))) == 1, 30, "the outlook became a dead letter")
    outlooks = settings.outlooks.model_copy(update={"groups": {**settings.outlooks.groups, "town": (SENSORS[0],)}})
    later = settings.model_copy(update={"outlooks": outlooks})
    assert republish_letters(settings, lambda: read_letters(settings)).still_rejected == {"bad-outlook": 1}
    assert republish_letters(later, lambda: read_letters(later)).published == 1
    assert sum(record.value == value for record in read_all(settings, settings.kafka.topics.readings)) == 2


# --- files ------------------------------------------------------------------------------------------------------------


def write_files(folder: Path) -> tuple[Path, Path]:
    """Readings of two sensors over ten hours, and outlooks of the city and of a sensor at the hours 0, 3 and 6."""
    stamp = [f"2024-03-01T{hour:02}:00:00Z" for hour in range(24)]
    readings, outlooks = folder / "readings.csv", folder / "outlooks.csv"
    rows = [f"{stamp[hour]},{sensor},{hour}" for sensor in SENSORS[:2] for hour in range(10)]
    readings.write_text("time,sensor,a\n" + "\n".join(rows), encoding="utf-8")
    rows = [
        f"{stamp[issued]},{stamp[issued + ahead]},{name},{issued + ahead / 10},{ahead if ahead != 2 else ''}"
        for issued in (6, 0, 3)
        for name in ("city", SENSORS[1])
        for ahead in range(1, 4)
    ]
    outlooks.write_text("issued_at,time,sensor,TEMP,WSPM\n" + "\n".join(rows), encoding="utf-8")
    return readings, outlooks


COLUMNS = ("--time-column", "time", "--sensor-column", "sensor")


def published(settings: Settings) -> dict[int, list[tuple[str, str]]]:
    """Partition -> name and hour of each record in order; the hour of an outlook has an exclamation mark."""
    found: dict[int, list[tuple[str, str]]] = {number: [] for number in range(settings.kafka.partitions)}
    for record in read_all(settings, settings.kafka.topics.readings):
        content = msgspec.json.decode(record.value)
        time = content.get("issued_at", content.get("timestamp"))
        mark = "!" if "outlook" in content else ""
        found[record.partition].append((record.key.decode(), time[11:13] + mark))
    return found


def test_outlooks_from_files_come_before_the_readings_from_their_time_of_issue_on(
    settings: Settings, tmp_path: Path
) -> None:
    readings, outlooks = write_files(tmp_path)
    done = invoke(settings, publish_command, readings, *COLUMNS, "--outlooks", outlooks)
    assert done.exit_code == 0, done.output
    assert "20 readings of 2 sensors and 6 outlooks published" in done.output
    assert "warning" not in done.output
    found = published(settings)
    for records in found.values():
        issues = [time for name, time in records if name == "city"]
        assert issues == ["00!", "03!", "06!"], "a group's outlook goes to every partition"
        hours = [time for _, time in records]
        assert hours == sorted(hours, key=lambda time: (time[:2], "!" not in time))
    (message,) = (
        msgspec.json.decode(record.value, type=OutlookMessage)
        for record in read_all(settings, settings.kafka.topics.readings)
        if record.key == SENSORS[1].encode() and b'"issued_at":"2024-03-01T03' in record.value
    )
    assert message.outlook.values == {"TEMP": [3.1, 3.2, 3.3], "WSPM": [1.0, None, 3.0]}
    assert len(message.outlook.timestamps) == 3


def test_outlooks_alone_are_published_in_the_order_of_their_issue(settings: Settings, tmp_path: Path) -> None:
    _, outlooks = write_files(tmp_path)
    done = invoke(settings, publish_command, outlooks, *COLUMNS, "--issued-column", "issued_at")
    assert done.exit_code == 0, done.output
    assert "6 outlooks published to" in done.output
    assert f"as sensors {SENSORS[1]}; as groups city" in done.output
    assert "0/0" not in done.output, "the bar counts readings"
    for records in published(settings).values():
        assert [time for name, time in records if name == "city"] == ["00!", "03!", "06!"]
    refused = invoke(settings, publish_command, outlooks, *COLUMNS, "--issued-column", "issued_at", "--limit", 3)
    assert refused.exit_code == 2


def test_a_misspelt_group_is_pointed_out(settings: Settings, tmp_path: Path) -> None:
    readings, outlooks = write_files(tmp_path)
    outlooks.write_text(outlooks.read_text(encoding="utf-8").replace("city", "ctiy"), encoding="utf-8")
    done = invoke(settings, publish_command, readings, *COLUMNS, "--outlooks", outlooks)
    assert "warning: the files have outlooks of ctiy: neither a group" in done.output, done.output


def test_a_part_of_the_readings_comes_with_the_outlooks_of_its_time(settings: Settings, tmp_path: Path) -> None:
    readings, outlooks = write_files(tmp_path)
    span = ("--from", "2024-03-01T02:00:00Z", "--until", "2024-03-01T05:00:00Z")
    done = invoke(settings, publish_command, readings, *COLUMNS, "--outlooks", outlooks, *span)
    assert "6 readings of 2 sensors and 2 outlooks published" in done.output, done.output


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"TEMP,WSPM": "temp,wind"}, "has none of the covariates in the settings (TEMP, WSPM)"),
        ({"issued_at": "made_at"}, "has no column 'issued_at' of times of issue"),
        ({"issued_at": "made_at"}, "Name the column with --issued-column"),
        ({"2024-03-01T06": "2099-03-01T06"}, "outlooks have implausible times of issue"),
    ],
)
def test_a_file_that_holds_no_outlooks_is_refused(
    settings: Settings, tmp_path: Path, change: dict[str, str], expected: str
) -> None:
    _, outlooks = write_files(tmp_path)
    text = outlooks.read_text(encoding="utf-8")
    for before, after in change.items():
        text = text.replace(before, after)
    outlooks.write_text(text, encoding="utf-8")
    refused = invoke(settings, publish_command, outlooks, *COLUMNS, "--issued-column", "issued_at").exception
    assert isinstance(refused, DataFileError)
    assert expected in str(refused)
    assert all(not records for records in published(settings).values())
