"""Export against a real broker: each record once, in both formats, even after kills."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner

from deploy.cli import streamgru
from pipeline.errors import Busy, ExportError
from pipeline.export.export import TableFormat, export
from pipeline.file_lock import hold_lock
from pipeline.kafka.topics import ensure_topics
from pipeline.settings import Settings
from tests.conftest import settings_factory
from tests.environment import environment
from tests.integration.stream_rig import (
    FolderChampion,
    Message,
    publish,
    read_all,
    read_forecasts,
    rounds,
    running,
    small_forecaster,
    wait_for_forecasts,
)

pytestmark = pytest.mark.integration

SENSORS = [f"sensor-{number}" for number in range(10)]
FORMATS = pytest.mark.parametrize("table_format", ["delta", "parquet"])


@pytest.fixture(scope="module")
def forecast_stream(broker: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Topics with 400 readings, one malformed record, and the forecasts of a real forecaster."""
    make = settings_factory(broker, tmp_path_factory.mktemp("export"))
    settings = make(features=["a", "b"], targets=["a"], horizon_steps=3)
    ensure_topics(settings)
    champion = FolderChampion(tmp_path_factory.mktemp("champion"), settings)
    champion.promote(1, small_forecaster(settings))
    publish(settings, [*rounds(settings, SENSORS, range(40)), Message(b"sensor-1", b"not json", 0)])
    with running(settings, champion):
        wait_for_forecasts(settings, 400)
    return settings


def read_table(folder: Path, content: str, table_format: TableFormat) -> pl.DataFrame:
    path = folder / content
    return pl.read_delta(str(path)) if table_format == "delta" else pl.read_parquet(path / "*.parquet")


def expected_rows(settings: Settings) -> list[tuple[Any, ...]]:
    """Sensor, target, step, input offset and quantiles of each row, from the forecasts on the topic."""
    return sorted(
        (forecast.sensor_id, target, step, forecast.input.partition, forecast.input.offset, *numbers)
        for forecast in read_forecasts(settings)
        for target, levels in forecast.quantiles.items()
        for step, numbers in enumerate(zip(*levels.values(), strict=True), start=1)
    )


@FORMATS
def test_forecasts_are_exported_once_with_their_numbers(
    forecast_stream: Settings, tmp_path: Path, table_format: TableFormat
) -> None:
    done = export(forecast_stream, "forecasts", tmp_path, table_format, chunk_rows=500)
    assert done.rows == 1_200
    assert export(forecast_stream, "forecasts", tmp_path, table_format).total_offsets == 0
    table = read_table(tmp_path, "forecasts", table_format)
    found = table.select("sensor_id", "target", "step", "input_partition", "input_offset", "q10", "q50", "q90")
    assert sorted(found.rows()) == expected_rows(forecast_stream)
    hours = (table["forecast_for"] - table["issued_at"]).dt.total_hours()
    assert (hours == table["step"]).all()


@FORMATS
def test_readings_are_exported_once_and_malformed_records_are_counted(
    forecast_stream: Settings, tmp_path: Path, table_format: TableFormat
) -> None:
    done = export(forecast_stream, "readings", tmp_path, table_format)
    assert (done.rows, dict(done.left_out)) == (400, {"malformed": 1})
    assert "left out: malformed 1" in str(done)
    table = read_table(tmp_path, "readings", table_format)
    records = [
        record
        for record in read_all(forecast_stream, forecast_stream.kafka.topics.readings)
        if record.value != b"not json"
    ]
    assert sorted(table.select("partition", "offset").rows()) == sorted(
        (each.partition, each.offset) for each in records
    )
    assert table.schema["timestamp"] == pl.Datetime("us", "UTC")


KILLED_RUN = """
import os, signal, sys
from pathlib import Path
from pipeline.export.export import export
from pipeline.settings import load_settings

left = int(sys.argv[3])
def report(done):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

export(load_settings(), "forecasts", Path(sys.argv[1]), sys.argv[2], chunk_rows=1, report=report)
"""


@FORMATS
def test_a_kill_during_an_export_loses_and_repeats_no_row(
    forecast_stream: Settings, tmp_path: Path, table_format: TableFormat
) -> None:
    for at_report in (1, 2):  # after a poll, and after a commit
        arguments = [str(tmp_path), table_format, str(at_report)]
        run = subprocess.run(
            [sys.executable, "-c", KILLED_RUN, *arguments], env=environment(forecast_stream), timeout=60, check=False
        )
        assert run.returncode == -signal.SIGKILL
    export(forecast_stream, "forecasts", tmp_path, table_format)
    table = read_table(tmp_path, "forecasts", table_format)
    assert len(table) == 1_200
    assert not table.select("partition", "offset", "target", "step").is_duplicated().any()


def test_an_export_to_a_table_of_the_other_format_is_refused(forecast_stream: Settings, tmp_path: Path) -> None:
    export(forecast_stream, "readings", tmp_path, "delta")
    with pytest.raises(ExportError, match="use --format delta"):
        export(forecast_stream, "readings", tmp_path, "parquet")


def test_a_second_export_at_the_same_time_is_refused(forecast_stream: Settings, tmp_path: Path) -> None:
    with hold_lock(tmp_path / ".readings.lock", "held"), pytest.raises(Busy, match="another export"):
        export(forecast_stream, "readings", tmp_path)


def test_the_command_exports_both_and_says_what_it_wrote(forecast_stream: Settings, tmp_path: Path) -> None:
    done = CliRunner().invoke(streamgru, ["export", "--to", str(tmp_path)], env=environment(forecast_stream))
    assert done.exit_code == 0, done.output
    assert "1,200 rows of forecasts" in done.output
    assert "400 rows of readings" in done.output
