"""One Kafka, one MLflow and one Prefect per test run, each started only if a collected test needs it."""

import gc
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

from deploy.stack import Stack
from pipeline.settings import SETTINGS_FILE_VARIABLE, Settings
from tests.ports import free_ports
from tests.stacks import end_stack

SERVICE_OF_FIXTURE = {"broker": "kafka", "mlflow_server": "mlflow", "prefect_server": "prefect"}

# Shared costly fixture -> seconds that all its tests take, one after the other in one process.
SECONDS_OF_SHARED = {
    "frail_broker": 80,
    "secured": 30,
    "letters": 10,
    "filled": 15,
    "forecast_stream": 12,
    "live_page": 45,
}

SettingsFactory = Callable[..., Settings]


class Servers:
    """The stack of this test run, in a temporary folder and on free ports.

    All workers of pytest-xdist share the stack. The first worker that needs a service starts it, and the other workers
    wait. The main process passes the settings of the stack to the workers and stops it at the end.
    """

    def __init__(self, settings: Settings, *, shared: bool) -> None:
        self.settings = settings
        self._shared = shared
        self._stack = Stack(settings)
        self._pool = ThreadPoolExecutor(len(SERVICE_OF_FIXTURE))
        self._starts: dict[str, Future[None]] = {}

    @classmethod
    def own(cls) -> "Servers":
        """A new stack, which this process stops at the end."""
        kafka, mlflow, prefect = free_ports(3)
        return cls(
            Settings(
                home=Path(tempfile.mkdtemp(prefix="streamgru-tests-")),
                stack={"kafka_port": kafka, "mlflow_port": mlflow, "prefect_port": prefect},
            ),
            shared=False,
        )

    @classmethod
    def of(cls, description: str) -> "Servers":
        """The stack of the main process, from its ``description``."""
        return cls(Settings(**json.loads(description)), shared=True)

    @property
    def description(self) -> str:
        return self.settings.model_dump_json(exclude_unset=True)

    def start(self, service: str) -> None:
        """Start a service in the background; ``wait_for`` waits until it answers."""
        if service not in self._starts:
            self._starts[service] = self._pool.submit(self._stack.up, (service,))

    def wait_for(self, service: str) -> None:
        self.start(service)
        self._starts[service].result()

    def stop(self) -> None:
        """Kill all servers, including servers of a failed start, and remove the folder."""
        self._pool.shutdown(wait=True)
        if not self._shared:
            end_stack(self.settings)
            shutil.rmtree(self.settings.home, ignore_errors=True)


SERVERS = pytest.StashKey[Servers]()


def pytest_configure(config: pytest.Config) -> None:
    # A developer's STREAMGRU_ variables must not lead the tests to other servers.
    for variable in [name for name in os.environ if name.startswith("STREAMGRU_")]:
        del os.environ[variable]
    workerinput = getattr(config, "workerinput", None)  # present in workers of pytest-xdist only
    config.stash[SERVERS] = Servers.own() if workerinput is None else Servers.of(workerinput["servers"])


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Pass the settings of the servers to a new worker of pytest-xdist."""
    node.workerinput["servers"] = node.config.stash[SERVERS].description


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Pause the garbage collector while the test modules and all that they import are loaded.

    These are 700,000 objects, none of which is garbage. The collector would visit them again and again, which takes a
    fifth of the time, and once more in every full collection during the tests.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Group the tests that share a costly fixture, and begin with the longest groups and tests.

    Each worker of pytest-xdist queues one test or group behind the running one. Long and short ones alternate, so that
    no long one waits behind another long one.
    """
    units: dict[str, list[pytest.Item]] = {}  # group, or the name of a test outside any group -> its tests
    seconds: dict[str, float] = {}  # group or test -> duration; long ones only
    for item in items:
        fixtures = [name for name in SECONDS_OF_SHARED if name in getattr(item, "fixturenames", ())]
        for name in fixtures:
            item.add_marker(pytest.mark.xdist_group(name))
        group = item.get_closest_marker("xdist_group")
        unit = group.args[0] if group else item.nodeid
        units.setdefault(unit, []).append(item)
        mark = item.get_closest_marker("long")
        if fixtures or mark:
            seconds[unit] = mark.args[0] if mark else SECONDS_OF_SHARED[fixtures[0]]
    long = sorted(seconds, key=seconds.__getitem__, reverse=True)
    short = [unit for unit in units if unit not in seconds]
    processes = getattr(config, "workerinput", {}).get("workercount", 1)
    first, rest = long[:processes] + short[:processes], zip_longest(long[processes:], short[processes:])
    order = first + [unit for pair in rest for unit in pair if unit is not None]
    items[:] = [item for unit in order for item in units[unit]]
    if config.getoption("loadgroup", False):
        for unit, tests in units.items():
            for item in tests:
                if item.get_closest_marker("xdist_group"):
                    # pytest-xdist 3.8 sets an attribute that pytest 9.2 no longer reads, so it would split the groups.
                    item._id = type(item._id).parse(f"{item.nodeid}@{unit}")  # type: ignore[attr-defined]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the servers of the collected tests in the background, while the first tests run."""
    if session.config.option.collectonly:
        return
    wanted = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    for fixture, service in SERVICE_OF_FIXTURE.items():
        if fixture in wanted:
            session.config.stash[SERVERS].start(service)


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[SERVERS].stop()


@pytest.fixture(autouse=True)
def _settings_file_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo `streamgru --settings`, which puts the file's name into the environment for child processes."""
    monkeypatch.setenv(SETTINGS_FILE_VARIABLE, "")


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out plots, which take a third of a short back-test or retraining. An error of a plot is only a warning."""
    monkeypatch.setattr("pipeline.evaluation.report.plots", lambda done, epochs: {})


@pytest.fixture(scope="session")
def stack_settings(pytestconfig: pytest.Config) -> Settings:
    """Settings of the stack of this test run: free ports, a temporary home. This fixture starts no server."""
    return pytestconfig.stash[SERVERS].settings


@pytest.fixture(scope="session")
def broker(pytestconfig: pytest.Config, stack_settings: Settings) -> Settings:
    """Settings with the address of the running Kafka."""
    pytestconfig.stash[SERVERS].wait_for("kafka")
    return stack_settings


@pytest.fixture(scope="session")
def mlflow_server(pytestconfig: pytest.Config, stack_settings: Settings) -> Settings:
    """Settings with the address of the running MLflow."""
    pytestconfig.stash[SERVERS].wait_for("mlflow")
    return stack_settings


@pytest.fixture(scope="session")
def prefect_server(pytestconfig: pytest.Config, stack_settings: Settings) -> Settings:
    """Settings with the address of the running Prefect."""
    pytestconfig.stash[SERVERS].wait_for("prefect")
    return stack_settings


@pytest.fixture
def fresh_settings(stack_settings: Settings, tmp_path: Path) -> SettingsFactory:
    """A function that makes settings with new topics, group, model and history on the shared servers.

    Keyword arguments go to ``Settings``; a dict for a section is merged into it:
    ``fresh_settings(horizon_steps=2, kafka={"partitions": 3})``.
    """
    return settings_factory(stack_settings, tmp_path)


def settings_factory(servers: Settings, home: Path) -> SettingsFactory:
    """The function that the fixture ``fresh_settings`` returns, for any servers."""

    def make(**overrides: Any) -> Settings:
        name = uuid.uuid4().hex[:8]
        base: dict[str, Any] = {
            "home": home,
            "history": home / f"history-{name}",
            "model_name": f"model-{name}",
            "stack": servers.stack.model_dump(),
            "kafka": {
                "topics": {
                    "readings": f"readings-{name}",
                    "forecasts": f"forecasts-{name}",
                    "state": f"state-{name}",
                    "dead_letters": f"readings-{name}.dlq",
                },
                # Only two, because a test run creates hundreds of topics on one small broker.
                "partitions": 2,
            },
            "forecaster": {"group_id": f"group-{name}", "instance": f"instance-{name}"},
        }
        return Settings(**_merged(base, overrides))

    return make


def _merged(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in overrides.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged
