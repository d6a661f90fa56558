"""What most tests of a forecaster begin with."""

from pathlib import Path

import pytest

from pipeline.settings import Settings
from tests.integration.stream_rig import FolderChampion, small_forecaster


@pytest.fixture
def champion(settings: Settings, tmp_path: Path) -> FolderChampion:
    """Version 1 of a small model serves the stream of the test's own ``settings``."""
    source = FolderChampion(tmp_path / "champion", settings)
    source.promote(1, small_forecaster(settings))
    return source
