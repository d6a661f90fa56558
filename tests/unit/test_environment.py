"""The test helper ``environment`` writes settings as variables that load back equal."""

from pathlib import Path

import pytest

from pipeline.settings import Settings, load_settings
from tests.environment import environment


def test_settings_written_as_environment_variables_load_back_equal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = Settings(
        home=tmp_path,
        features=("a", "b"),
        targets=("a",),
        quantiles=(0.05, 0.5, 0.95),
        kafka={"partitions": 3, "topics": {"readings": "r"}},
        stack={"kafka_port": 1234},
        schedules={"ingest": {"cron": "* * * * *"}},
    )
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    assert load_settings() == settings
