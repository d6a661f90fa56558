"""The thread that asks Prefect for the scheduled runs: its errors are logged and end neither it nor the schedules."""

from datetime import UTC, datetime

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.run_statistics import RunWatcher, ScheduleState
from tests.ports import free_port
from tests.waiting import wait_until


class Failing(RunWatcher):
    def __init__(self, error: Exception) -> None:
        super().__init__("pumps", datetime.now(UTC))
        self.error = error

    def check(self, client: SyncPrefectClient) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "warning"),
    [
        (
            ValueError("no field\n'end_time'"),
            r"cannot read the scheduled runs from Prefect: ValueError: no field\n'end_",
        ),
        (httpx.ConnectError("refused"), None),  # `serve` reports outages
    ],
)
def test_an_unexpected_error_is_a_warning(
    error: Exception, warning: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    watcher = Failing(error)
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}), watcher.watching():
        wait_until(lambda: watcher.statistics.state is ScheduleState.WAITING, 10, "the check fails")
        if warning is not None:
            wait_until(lambda: warning in caplog.text, 10, "the error is logged")
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == (warning is not None)
