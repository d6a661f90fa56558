"""The settings of a flow run, whose folders must outlive the run."""

import os
from pathlib import Path

from prefect.context import FlowRunContext

from pipeline.errors import SettingsError
from pipeline.settings import SETTINGS_FILE_VARIABLE, Settings, load_settings


def load_run_settings(settings_file: Path | None) -> Settings:
    """The settings from ``load_settings`` for the current flow run.

    Raises:
        SettingsError: the settings are invalid, or a path in them is relative and a worker runs the flow.
    """
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    pool = run.work_pool_name if run else None
    return load_settings(settings_file) if pool is None else load_pool_settings(settings_file, pool)


def load_pool_settings(settings_file: Path | None, pool: str) -> Settings:
    """The settings for a run in a work pool, whose worker starts each run in a temporary folder.

    A history in that folder would be lost after the run, and a lock in it would not lock out other runs.
    """
    named = settings_file or os.environ.get(SETTINGS_FILE_VARIABLE)
    if named:
        _check_absolute(f"the settings file ({SETTINGS_FILE_VARIABLE})", Path(named), pool)
    settings = load_settings(settings_file)
    _check_absolute("home (STREAMGRU_HOME)", settings.home, pool)
    _check_absolute("history (STREAMGRU_HISTORY)", settings.history_path, pool)
    return settings


def _check_absolute(name: str, path: Path, pool: str) -> None:
    if not path.is_absolute():
        raise SettingsError(
            f"{name} is {path}, a relative path: workers of pool {pool} start each run in a temporary folder, whose "
            "files are lost after the run; set an absolute path in the worker's environment"
        )
