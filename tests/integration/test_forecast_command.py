"""``streamgru forecast`` as a user runs it, and its messages if broker, topics or MLflow are missing."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from model.artefact import save_artefact
from pipeline.kafka.topics import ensure_topics
from pipeline.registry.training_run import training_run
from pipeline.registry.versions import CHAMPION, Registry
from pipeline.settings import Settings
from tests.conftest import SettingsFactory
from tests.environment import environment
from tests.integration.stream_rig import publish, rounds, small_forecaster, wait_for_forecasts
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

SENSORS = [f"sensor-{number}" for number in range(5)]


@pytest.fixture
def settings(broker: Settings, mlflow_server: Settings, fresh_settings: SettingsFactory) -> Settings:
    made = fresh_settings(features=["a"], targets=["a"], horizon_steps=1, forecaster={"poll_alias_s": 0.5})
    ensure_topics(made)
    return made


def register(settings: Settings, folder: Path, seed: int) -> int:
    artefact = folder / f"artefact-{seed}"
    save_artefact(small_forecaster(settings, seed), artefact)
    with training_run(settings, "test", {}) as run:
        return run.register(artefact, {}, {})


class Command:
    """``streamgru forecast``, its log and its counts."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path, stats: Path) -> None:
        self.process = process
        self._log = log
        self._stats = stats

    @property
    def said(self) -> str:
        return self._log.read_text()

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)

    def counts(self) -> dict[str, int]:
        found: dict[str, int] = json.loads(self._stats.read_text())
        return found


@contextmanager
def forecasting(settings: Settings, folder: Path, *arguments: str) -> Iterator[Command]:
    log, stats = folder / "forecast.log", folder / "stats.json"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy.cli", "forecast", "--stats", str(stats), *arguments],
            env=environment(settings),
            stderr=stderr,
        )
    try:
        yield Command(process, log, stats)
    finally:
        process.kill()
        process.wait()


@pytest.mark.xdist_group("mlflow")  # see test_registry
@pytest.mark.long(150)
def test_the_command_waits_for_a_champion_swaps_models_and_restarts_without_mlflow(
    settings: Settings, tmp_path: Path
) -> None:
    count = publish(settings, rounds(settings, SENSORS, range(3)))
    first, second = register(settings, tmp_path, 1), register(settings, tmp_path, 2)
    with forecasting(settings, tmp_path) as command:
        wait_until(lambda: "there is no champion" in command.said, 60, "the forecaster said what it waits for")
        Registry(settings).set_alias(CHAMPION, first)
        assert {forecast.model.version for forecast in wait_for_forecasts(settings, count)} == {first}
        Registry(settings).set_alias(CHAMPION, second)
        wait_until(lambda: f"version {second} serves" in command.said, 30, "the promotion went live")
        count += publish(settings, rounds(settings, SENSORS, range(3, 4)))
        wait_for_forecasts(settings, count)
        assert command.end() == 0, command.said
        counts = command.counts()
    assert counts["forecasts"] == count
    assert counts["swaps"] == 1
    away = settings.model_copy(update={"mlflow_tracking_uri": "http://127.0.0.1:9"})
    count += publish(settings, rounds(settings, SENSORS, range(4, 6)))
    with forecasting(away, tmp_path) as command:
        found = wait_for_forecasts(settings, count)
        wait_until(lambda: "MLflow does not answer" in command.said, 60, "the forecaster said that MLflow is away")
        assert command.end(signal.SIGINT) == 0, command.said
    assert len(found) == count
    assert {forecast.model.version for forecast in found if forecast.input.offset > 0} == {first, second}


def test_the_command_says_what_to_do_if_no_broker_answers(fresh_settings: SettingsFactory, tmp_path: Path) -> None:
    settings = fresh_settings(kafka={"bootstrap_servers": "127.0.0.1:9"})
    with forecasting(settings, tmp_path) as command:
        assert command.process.wait(60) == 1
        assert "streamgru up" in command.said
        assert "Traceback" not in command.said


def test_the_command_says_what_to_do_if_topics_are_missing(
    broker: Settings, fresh_settings: SettingsFactory, tmp_path: Path
) -> None:
    with forecasting(fresh_settings(), tmp_path) as command:
        assert command.process.wait(60) == 1
        assert "streamgru topics create" in command.said
        assert "Traceback" not in command.said
