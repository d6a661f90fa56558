"""The champion watcher: the candidates that it offers, and the errors that it logs."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.errors import ModelUnusable, RegistryUnreachable
from pipeline.forecaster.champion import Candidate, ChampionWatcher
from tests.waiting import wait_until


class FakeSource:
    """A registry in memory; an exception stored as the champion or as a model is raised."""

    def __init__(self) -> None:
        self.champion: Any = None
        self.models: dict[int, Any] = {1: "one", 2: "two"}
        self.loads: list[int] = []
        self.polls = 0

    def resolve(self) -> int | None:
        self.polls += 1
        if isinstance(self.champion, Exception):
            raise self.champion
        return self.champion

    def load(self, version: int) -> Any:
        self.loads.append(version)
        if isinstance(self.models[version], Exception):
            raise self.models[version]
        return self.models[version]

    def last_served(self) -> Candidate | None:
        return None

    def save_last_served(self, version: int) -> None:
        pass


@pytest.fixture
def source() -> FakeSource:
    return FakeSource()


@pytest.fixture
def watcher(source: FakeSource) -> Iterator[ChampionWatcher]:
    made = ChampionWatcher(source, 0.01)
    yield made
    made.close()


def wait_for_polls(source: FakeSource) -> None:
    before = source.polls
    wait_until(lambda: source.polls > before + 2, 5, "the watcher polled again")


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_promotion_becomes_the_candidate(source: FakeSource, watcher: ChampionWatcher) -> None:
    watcher.start()
    assert watcher.wait(0.05) is None
    source.champion = 1
    assert watcher.wait(5) == Candidate(1, "one")  # type: ignore[arg-type]
    source.champion = 2
    wait_until(lambda: watcher.candidate() == Candidate(2, "two"), 5, "version 2 is the candidate")  # type: ignore[arg-type]
    wait_for_polls(source)
    assert source.loads == [1, 2]


@pytest.mark.parametrize(
    "trouble", [RegistryUnreachable("MLflow does not answer"), None], ids=["unreachable", "alias deleted"]
)
def test_trouble_is_logged_once_and_keeps_the_candidate(
    source: FakeSource, watcher: ChampionWatcher, caplog: pytest.LogCaptureFixture, trouble: Any
) -> None:
    serving = Candidate(1, "one")  # type: ignore[arg-type]
    source.champion = trouble
    watcher.start(serving)
    watcher.allow_polls()
    wait_for_polls(source)
    assert watcher.candidate() == serving
    assert len(errors(caplog)) == 1
    assert "version 1 goes on serving" in errors(caplog)[0]
    source.champion = 2
    wait_until(lambda: watcher.candidate() != serving, 5, "version 2 is the candidate")


def test_an_unusable_model_is_refused_until_the_alias_moves(
    source: FakeSource, watcher: ChampionWatcher, caplog: pytest.LogCaptureFixture
) -> None:
    source.models[2] = ModelUnusable("made for other features")
    source.champion = 2
    serving = Candidate(1, "one")  # type: ignore[arg-type]
    watcher.start(serving)
    watcher.allow_polls()
    wait_for_polls(source)
    assert source.loads == [2]
    assert watcher.candidate() == serving
    assert len(errors(caplog)) == 1
    source.champion = 1
    wait_for_polls(source)
    source.models[2] = "two, repaired"
    source.champion = 2
    wait_until(lambda: watcher.candidate() != serving, 5, "version 2 is the candidate")


def test_a_bug_in_the_thread_is_raised_by_the_next_call_of_candidate(
    source: FakeSource, watcher: ChampionWatcher
) -> None:
    source.champion = ZeroDivisionError("bug")
    watcher.start()

    def fails() -> bool:
        try:
            watcher.candidate()
        except ZeroDivisionError:
            return True
        return False

    wait_until(fails, 5, "the bug was raised")


def test_the_registry_is_not_polled_before_a_forecaster_with_a_model_has_restored(
    source: FakeSource, watcher: ChampionWatcher
) -> None:
    source.champion = 2
    serving = Candidate(1, "one")  # type: ignore[arg-type]
    watcher.start(serving)
    assert watcher.wait(0.2) == serving
    assert source.polls == 0
    watcher.allow_polls()
    wait_until(lambda: watcher.candidate() != serving, 5, "version 2 is the candidate")
