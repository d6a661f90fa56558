"""Prefect fails during a run: the error says whether the work was done."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.orchestrator import run_once
from flows.retrain_report import RetrainReport, publish
from flows.schedules import RETRY_S, is_outage, scheduled_deployments, serve
from flows.user_errors import user_errors_as_state
from pipeline.errors import HistoryError, SettingsError, StackError
from pipeline.evaluation.gate import Decision
from pipeline.settings import Settings
from tests.ports import free_port


@pytest.fixture
def settings() -> Settings:
    """Settings with a Prefect address on which no server listens."""
    unused_port = free_port()
    return Settings(prefect_api_url=f"http://127.0.0.1:{unused_port}/api")


def test_a_page_that_cannot_be_published_is_a_warning(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    report = RetrainReport("model", 7, Decision(True, "better"), {}, "cpu", "http://mlflow/run")
    with temporary_settings({PREFECT_API_URL: settings.prefect_api_url}), caplog.at_level(logging.WARNING):
        publish(report, {})
    assert "the page retrain-gate in Prefect failed, and everything else continues" in caplog.text


@pytest.mark.parametrize("fails", [False, True])
def test_an_outcome_that_prefect_does_not_receive_is_in_the_error(settings: Settings, fails: bool) -> None:
    @user_errors_as_state
    def work() -> str:
        if fails:
            _fail()
        return "version 7 is champion"

    def call() -> None:
        work()
        report_the_end()

    @flow
    def report_the_end() -> None:
        """Send a request to Prefect, as the end of a run does."""

    told = "the flow failed: no table" if fails else "the flow succeeded nevertheless: version 7 is champ"
    with (
        temporary_settings({PREFECT_API_URL: settings.prefect_api_url}),
        pytest.raises(StackError, match=rf"/api failed during the run .*{told}"),
    ):
        run_once(call, settings)


def test_an_error_before_the_work_asks_to_run_it_again(settings: Settings) -> None:
    @flow
    def work() -> None:
        raise AssertionError("work must not run without Prefect")

    with (
        temporary_settings({PREFECT_API_URL: settings.prefect_api_url}),
        pytest.raises(StackError, match="the flow did not finish; run it again"),
    ):
        run_once(work, settings)


def test_the_result_or_error_of_the_work_is_passed_on(settings: Settings) -> None:
    assert run_once(lambda: 7, settings) == 7
    with pytest.raises(HistoryError):
        run_once(_fail, settings)


def _fail() -> None:
    raise HistoryError("no table")


class _Refusing(BaseHTTPRequestHandler):
    code = 404

    def do_GET(self) -> None:
        self.send_error(self.code)

    def do_POST(self) -> None:
        self.send_error(self.code)

    def log_message(self, format: str, *args: object) -> None:
        """Log no request."""


@contextmanager
def _answering(handler: type[BaseHTTPRequestHandler]) -> Iterator[Settings]:
    """Settings with the address of a server that answers with ``handler`` instead of Prefect."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = Settings(prefect_api_url=f"http://127.0.0.1:{server.server_port}/api")
        with temporary_settings({PREFECT_API_URL: settings.prefect_api_url}):
            yield settings
        server.shutdown()


def test_serving_schedules_is_retried_until_prefect_answers(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("flows.schedules.time", SimpleNamespace(sleep=wait))
    with _answering(_Refusing) as settings, pytest.raises(KeyboardInterrupt):
        serve(settings)
    assert waits == [RETRY_S, RETRY_S]
    assert caplog.text.count(f"Prefect at {settings.prefect_api_url} does not answer correctly") == 2


def test_serving_schedules_ends_when_prefect_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Refusing, "code", 401)
    with _answering(_Refusing) as settings, pytest.raises(StackError, match=r"refuses to serve schedules: .*401"):
        serve(settings)


def test_an_error_in_our_code_is_not_taken_for_an_outage() -> None:
    given_up = RuntimeError("Service exceeded error threshold.")  # raised by Prefect's runner after failed requests
    assert is_outage(ExceptionGroup("", [ExceptionGroup("", [given_up])]))
    assert not is_outage(ExceptionGroup("", [given_up, TypeError("a fault")]))


@pytest.mark.parametrize("schedule", [{"cron": "every day"}, {"cron": ""}, {"interval_s": 1e-9}])
def test_an_invalid_schedule_is_named(schedule: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=r"schedules\.retrain: .* is not a schedule"):
        scheduled_deployments(Settings(schedules={"retrain": schedule}))
