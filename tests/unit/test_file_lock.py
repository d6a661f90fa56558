"""A file lock admits one process at a time; a lock that cannot be made is named in the error."""

from pathlib import Path

import pytest

from pipeline.errors import Busy, SettingsError
from pipeline.file_lock import hold_lock


def test_a_second_process_is_refused_until_the_first_releases_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "home" / "work.lock"
    with hold_lock(lock, "held"), pytest.raises(Busy, match="held; try again"), hold_lock(lock, "held"):
        pass
    with hold_lock(lock, "held"):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "home"
    with (
        pytest.raises(SettingsError, match=f"make {folder} a writable folder"),
        hold_lock(folder / "work.lock", "held"),
    ):
        pass


def test_a_lock_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    lock = tmp_path / "work.lock"
    lock.mkdir()
    with pytest.raises(SettingsError, match=f"the lock file {lock} cannot be created"), hold_lock(lock, "held"):
        pass
