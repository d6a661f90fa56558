"""The settings of flow runs: a worker's run refuses paths relative to its temporary working directory."""

from pathlib import Path

import pytest

from flows.run_settings import load_pool_settings, load_run_settings
from pipeline.errors import SettingsError


@pytest.fixture(autouse=True)
def _temporary_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("SETTINGS", "HOME", "HISTORY"):
        monkeypatch.delenv(f"STREAMGRU_{name}", raising=False)


def test_a_run_of_a_worker_refuses_the_default_home() -> None:
    with pytest.raises(SettingsError, match=r"STREAMGRU_HOME\) is \.streamgru, a relative path: workers of pool gpus"):
        load_pool_settings(None, "gpus")


def test_a_run_of_a_worker_refuses_a_relative_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMGRU_HOME", str(tmp_path))
    monkeypatch.setenv("STREAMGRU_HISTORY", "history")
    with pytest.raises(SettingsError, match="STREAMGRU_HISTORY"):
        load_pool_settings(None, "gpus")


def test_a_run_of_a_worker_refuses_a_relative_settings_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMGRU_SETTINGS", "deploy/beijing.toml")
    with pytest.raises(SettingsError, match=r"deploy/beijing\.toml, a relative path"):
        load_pool_settings(None, "gpus")


def test_a_run_of_a_worker_takes_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMGRU_HOME", str(tmp_path))
    assert load_pool_settings(None, "gpus").history_path == tmp_path / "history"


def test_a_run_without_a_worker_takes_paths_relative_to_the_working_directory() -> None:
    assert load_run_settings(None).home == Path(".streamgru")
