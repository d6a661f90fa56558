"""Prefect goes away during a run: what was done is told, in words."""

import logging

import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.orchestrator import run_once
from flows.outcome import plain_outcome
from flows.retrain_report import RetrainReport, publish
from pipeline.errors import HistoryError, StackError
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
    assert "the page of version 7 could not be published: Prefect failed" in caplog.text


@pytest.mark.parametrize("fails", [False, True])
def test_what_was_done_is_told_when_prefect_does_not_learn_of_it(settings: Settings, fails: bool) -> None:
    @plain_outcome
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

    told = "work is not done: no table" if fails else "work is done all the same: version 7 is champ"
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
        pytest.raises(StackError, match="the work is not done; run it again"),
    ):
        run_once(work, settings)


def test_an_outcome_is_handed_on(settings: Settings) -> None:
    assert run_once(lambda: 7, settings) == 7
    with pytest.raises(HistoryError):
        run_once(_fail, settings)


def _fail() -> None:
    raise HistoryError("no table")
