"""What Delta Lake leaves to the system: that a version is on the disk before the next one builds on it.

It syncs nothing, and systems write within half a minute or so. A power cut meanwhile could leave offsets without their
readings. Here a version is synced once it is made, and looked at before anything is built on it, so that no other than
the newest can be torn.
"""

import errno
import json
import os
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

# What file systems say of folders that cannot be synced, as some over networks cannot.
_NO_SUCH_THING: Final = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)


def commit_path(table: Path, version: int) -> Path:
    """The file that makes a version of a Delta table."""
    return table / "_delta_log" / f"{version:020}.json"


def sync_versions(table: Path, first: int, last: int) -> None:
    """Let the disk have the versions from ``first`` to ``last``: commits, what they added, and their checkpoints.

    Raises:
        OSError: it could not be, as far as the system says.
    """
    log = commit_path(table, 0).parent
    for version in range(first, last + 1):
        commit = commit_path(table, version)
        checkpoints = list(log.glob(f"{version:020}.checkpoint*"))
        if checkpoints:
            checkpoints.append(log / "_last_checkpoint")
        for path in (*(path for path, _ in _added(table, commit)), *checkpoints, commit):
            _sync(path)
    for folder in (table, log, table.parent):
        try:
            _sync(folder)
        except OSError as error:
            if error.errno not in _NO_SUCH_THING:
                raise


def describe_torn_files(table: Path, version: int) -> str:
    """What a version lacks of the readings that it added, or nothing.

    Raises:
        OSError: its files could not be looked at.
    """
    for path, size in _added(table, commit_path(table, version)):
        if not path.exists():
            return f"{path.name} is missing"
        if path.stat().st_size != size:
            return f"{path.name} has {path.stat().st_size:,} bytes and should have {size:,}"
    return ""


def _added(table: Path, commit: Path) -> list[tuple[Path, int]]:
    """The files that a commit added, and what they measure."""
    actions: list[dict[str, Any]] = [json.loads(line) for line in commit.read_text(encoding="utf-8").splitlines()]
    added = [action["add"] for action in actions if "add" in action]
    return [(table / unquote(add["path"]), int(add["size"])) for add in added]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
