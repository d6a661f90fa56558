"""Fixtures of the forecaster tests: a champion, and a broker that a test may kill."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deploy.stack import Stack
from pipeline.settings import Settings
from tests.conftest import SettingsFactory, settings_factory
from tests.ports import free_port
from tests.stacks import end_stack

if TYPE_CHECKING:
    from tests.integration.stream_rig import FolderChampion


@pytest.fixture
def champion(settings: Settings, tmp_path: Path) -> "FolderChampion":
    """A champion source whose version 1 is a small model for the ``settings`` of the test."""
    # Imported late, because pytest's main process loads this file before it starts its workers, and needs no PyTorch.
    from tests.integration.stream_rig import FolderChampion, small_forecaster

    source = FolderChampion(tmp_path / "champion", settings)
    source.promote(1, small_forecaster(settings))
    return source


@pytest.fixture(scope="session")
def frail_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A broker that tests may freeze and kill; a test that kills it must start it again."""
    settings = Settings(home=tmp_path_factory.mktemp("frail"), stack={"kafka_port": free_port()})
    Stack(settings).up(("kafka",))
    yield settings
    end_stack(settings)


@pytest.fixture
def frail_settings(frail_broker: Settings) -> SettingsFactory:
    """Like ``fresh_settings``, on the ``frail_broker``."""
    return settings_factory(frail_broker, frail_broker.home)
