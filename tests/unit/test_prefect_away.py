"""Prefect goes away during a run: what was done is told, in words."""

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
from tests.ports import free_ports


@pytest.fixture
def settings() -> Settings:
    """Of a Prefect that nobody answers for."""
    (nobody,) = free_ports(1)
    return Settings(prefect_api_url=f"http://127.0.0.1:{nobody}/api")


def test_a_page_that_cannot_be_published_is_a_warning(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    report = RetrainReport("model", 7, Decision(True, "better"), {}, "cpu", "http://mlflow/run")
    with temporary_settings({PREFECT_API_URL: settings.prefect_api_url}), caplog.at_level(logging.WARNING):
        publish(report, {})
    assert "the page of version 7 could not be published, because Prefect failed" in caplog.text


@pytest.mark.parametrize("fails", [False, True])
def test_what_was_done_is_told_when_prefect_does_not_learn_of_it(settings: Settings, fails: bool) -> None:
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
        """Begins with a request to Prefect, as a run ends with one."""

    told = "the flow failed: no table" if fails else "the flow succeeded nevertheless: version 7 is champ"
    with (
        temporary_settings({PREFECT_API_URL: settings.prefect_api_url}),
        pytest.raises(StackError, match=rf"/api failed during the run .*{told}"),
    ):
        run_once(call, settings)


def test_what_was_not_done_is_to_be_run_again(settings: Settings) -> None:
    @flow
    def work() -> None:
        raise AssertionError("not without Prefect")

    with (
        temporary_settings({PREFECT_API_URL: settings.prefect_api_url}),
        pytest.raises(StackError, match="the flow did not finish; run it again"),
    ):
        run_once(work, settings)


def test_an_outcome_is_handed_on(settings: Settings) -> None:
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
        """Says nothing."""


@contextmanager
def _answering(handler: type[BaseHTTPRequestHandler]) -> Iterator[Settings]:
    """Settings of a Prefect in whose place a handler answers."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = Settings(prefect_api_url=f"http://127.0.0.1:{server.server_port}/api")
        with temporary_settings({PREFECT_API_URL: settings.prefect_api_url}):
            yield settings
        server.shutdown()


def test_who_serves_schedules_asks_again_until_prefect_is_back(
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


def test_a_prefect_that_refuses_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Refusing, "code", 401)
    with _answering(_Refusing) as settings, pytest.raises(StackError, match=r"refuses to serve schedules: .*401"):
        serve(settings)


def test_a_fault_of_our_own_is_no_outage() -> None:
    given_up = RuntimeError("Service exceeded error threshold.")  # as Prefect's runner ends after failed requests
    assert is_outage(ExceptionGroup("", [ExceptionGroup("", [given_up])]))
    assert not is_outage(ExceptionGroup("", [given_up, TypeError("a fault")]))


@pytest.mark.parametrize("schedule", [{"cron": "every day"}, {"cron": ""}, {"interval_s": 1e300}, {"interval_s": 1e-9}])
def test_what_is_no_schedule_is_named(schedule: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=r"schedules\.retrain: .* is not a schedule"):
        scheduled_deployments(Settings(schedules={"retrain": schedule}))
