"""A file whose timestamps jump back, published in row order: no timestamp is stepped twice.

The synthetic file resembles machine_temperature_system_failure.csv of the Numenta Anomaly Benchmark: it has one reading
every five minutes, and in the middle a jump back by 55 minutes, so that 12 timestamps repeat. To publish the original:

    streamgru publish machine_temperature_system_failure.csv --order file --timezone UTC
"""

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from deploy.commands.publish import publish
from deploy.context import Context
from pipeline.forecaster.counters import Counters
from pipeline.forecaster.states.store import ServedModel
from pipeline.kafka.topics import ensure_topics
from pipeline.messages import Forecast, decode_state
from pipeline.settings import Settings
from tests.conftest import SettingsFactory
from tests.integration.stream_rig import (
    FolderChampion,
    assert_same,
    expected_forecasts,
    read_forecasts,
    read_states,
    running,
    small_forecaster,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

FIVE_MINUTES = timedelta(minutes=5)
REPEATED = 12


@pytest.fixture(params=[0, 12], ids="grace {}".format)
def settings(broker: Settings, fresh_settings: SettingsFactory, request: pytest.FixtureRequest) -> Settings:
    made = fresh_settings(cadence_s=300, horizon_steps=3, grace_steps=request.param)
    ensure_topics(made)
    return made


def machine_temperatures(path: Path, before: int = 250, after: int = 400) -> int:
    """Write the synthetic file and return its number of rows."""
    start = datetime(2014, 1, 6, 6, 10)  # noqa: DTZ001 - the file's times have no zone
    rows = [start + FIVE_MINUTES * row for row in range(before)]
    rows += [rows[-1] - timedelta(minutes=55) + FIVE_MINUTES * row for row in range(REPEATED + after)]
    values = 80 + 10 * np.sin(np.arange(len(rows)) / 40)
    lines = [f"{moment},{value:.6f}" for moment, value in zip(rows, values, strict=True)]
    path.write_text("timestamp,value\n" + "\n".join(lines) + "\n")
    return len(rows)


def forecast_file(settings: Settings, path: Path, rows: int, models: Path) -> tuple[Counters, list[Forecast]]:
    """Publish a file in the order of its rows, and compare the forecasts with those of an offline pass."""
    champion = FolderChampion(models, settings)
    champion.promote(1, small_forecaster(settings))
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.restore_s > 0, 60, "the forecaster serves")
        done = CliRunner().invoke(
            publish, [str(path), "--order", "file", "--timezone", "UTC"], obj=Context(lambda: settings)
        )
        assert done.exit_code == 0, done.output
        wait_until(lambda: forecaster.counters.readings == rows, 240, "all readings were processed")
    found = read_forecasts(settings)
    assert_same(found, expected_forecasts(settings, small_forecaster(settings)))
    return forecaster.counters, found


def double_updates(settings: Settings, accepted: int) -> int:
    """The number of steps of the final state beyond one per accepted reading."""
    dtype = ServedModel(1, small_forecaster(settings), settings).table.dtype
    newest = read_states(settings)[-1]
    (state,) = np.frombuffer(decode_state(newest.value)[1], dtype)
    assert state["accepted"] == accepted
    return int(state["steps"]) - accepted


def test_a_jump_back_in_a_file_steps_no_timestamp_twice(settings: Settings, tmp_path: Path) -> None:
    """The reorder buffer changes nothing, because the repeated readings fill no gap."""
    path = tmp_path / "machine_temperature.csv"
    rows = machine_temperatures(path)
    counters, found = forecast_file(settings, path, rows, tmp_path / "champion")
    assert (counters.readings, counters.accepted, counters.forecasts) == (rows, rows - REPEATED, rows - REPEATED)
    # The last repeated reading has the newest accepted timestamp; all repeated readings before it are older.
    assert (counters.duplicates, counters.late) == (1, REPEATED - 1)
    assert double_updates(settings, counters.accepted) == 0
    assert len({forecast.issued_at for forecast in found}) == len(found)
