"""What most tests of a forecaster begin with."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.stack import Stack
from pipeline.settings import Settings
from tests.conftest import SettingsFactory, settings_factory
from tests.integration.stream_rig import FolderChampion, small_forecaster
from tests.ports import steady_port
from tests.stacks import end_stack


@pytest.fixture
def champion(settings: Settings, tmp_path: Path) -> FolderChampion:
    """Version 1 of a small model serves the stream of the test's own ``settings``."""
    source = FolderChampion(tmp_path / "champion", settings)
    source.promote(1, small_forecaster(settings))
    return source


@pytest.fixture(scope="session")
def frail_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A broker that tests may freeze and kill; a test that kills it starts it again."""
    settings = Settings(home=tmp_path_factory.mktemp("frail"), stack={"kafka_port": steady_port()})
    Stack(settings).up(("kafka",))
    yield settings
    end_stack(settings)


@pytest.fixture
def frail_settings(frail_broker: Settings) -> SettingsFactory:
    """Like ``fresh_settings``, on the broker that may be killed."""
    return settings_factory(frail_broker, frail_broker.home)
