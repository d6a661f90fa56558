"""Durability of the history table: a version is on the disk before the next version builds on it.

Delta Lake does not sync, and operating systems write files to disk up to half a minute later. A power cut in between
could leave offsets without their readings. Here each new version is synced, and its files are checked before the next
version. So only the newest version can be torn.
"""

import errno
import json
import os
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

# Errors of file systems that cannot sync a folder, such as some network file systems.
_SYNC_UNSUPPORTED: Final = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)


def commit_path(table: Path, version: int) -> Path:
    """The commit file of a version of a Delta table."""
    return table / "_delta_log" / f"{version:020}.json"


def sync_versions(table: Path, first: int, last: int) -> None:
    """Sync the versions from ``first`` to ``last`` to disk: commits, the files that they added, and checkpoints.

    Raises:
        OSError: a file could not be synced.
    """
    log = commit_path(table, 0).parent
    for version in range(first, last + 1):
        commit = commit_path(table, version)
        checkpoints = list(log.glob(f"{version:020}.checkpoint*"))
        if checkpoints:
            checkpoints.append(log / "_last_checkpoint")
        for path in (*(path for path, _ in _added(table, commit)), *checkpoints, commit):
            sync_path(path)
    for folder in (table, log, table.parent):
        sync_path(folder)


def describe_torn_files(table: Path, version: int) -> str:
    """The first missing or truncated file among those that a version added; empty if all are intact.

    Raises:
        OSError: a file could not be checked.
    """
    for path, size in _added(table, commit_path(table, version)):
        if not path.exists():
            return f"{path.name} is missing"
        if path.stat().st_size != size:
            return f"{path.name} has {path.stat().st_size:,} bytes and should have {size:,}"
    return ""


def _added(table: Path, commit: Path) -> list[tuple[Path, int]]:
    """The files that a commit added, with their sizes in bytes."""
    actions: list[dict[str, Any]] = [json.loads(line) for line in commit.read_text(encoding="utf-8").splitlines()]
    added = [action["add"] for action in actions if "add" in action]
    return [(table / unquote(add["path"]), int(add["size"])) for add in added]


def sync_path(path: Path) -> None:
    """Sync a file or a folder to disk; file systems that cannot sync a folder are left alone.

    Raises:
        OSError: it could not be synced.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in _SYNC_UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)
