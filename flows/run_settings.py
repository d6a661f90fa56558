"""The settings of a flow run, which must name places that outlive the run."""

import os
from pathlib import Path

from prefect.context import FlowRunContext

from pipeline.errors import SettingsError
from pipeline.settings import SETTINGS_FILE_VARIABLE, Settings, load_settings


def load_run_settings(settings_file: Path | None) -> Settings:
    """Settings as ``load_settings`` reads them, for the flow run that this is called in.

    Raises:
        SettingsError: as there; or a worker runs this, and a path in them is relative.
    """
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    pool = run.work_pool_name if run else None
    return load_settings(settings_file) if pool is None else load_pool_settings(settings_file, pool)


def load_pool_settings(settings_file: Path | None, pool: str) -> Settings:
    """Settings for a run of a work pool, whose worker starts each run in a folder of its own and deletes that after it.

    A history there would be lost with the folder, though the run went well, and a lock there would keep nobody out.
    """
    named = settings_file or os.environ.get(SETTINGS_FILE_VARIABLE)
    if named:
        _check_absolute(f"the settings file ({SETTINGS_FILE_VARIABLE})", Path(named), pool)
    settings = load_settings(settings_file)
    _check_absolute("home (STREAMGRU_HOME)", settings.home, pool)
    _check_absolute("history (STREAMGRU_HISTORY)", settings.history_path, pool)
    return settings


def _check_absolute(what: str, path: Path, pool: str) -> None:
    if not path.is_absolute():
        raise SettingsError(
            f"{what} is {path}, a relative path: workers of pool {pool} start each run in a temporary folder of its "
            "own, and what is kept there is lost; set an absolute path in the worker's environment"
        )
