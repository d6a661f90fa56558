"""A file lock for one process at a time. The kernel releases the lock when its holder ends, even by kill -9."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import Busy, SettingsError


@contextmanager
def hold_lock(path: Path, taken: str) -> Iterator[None]:
    """Hold the lock ``path`` for the block. Processes on other machines do not see the lock.

    Raises:
        Busy: another process holds the lock; the message is ``taken`` with the next step.
        SettingsError: the folder of the lock cannot be created or written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("w")
    except OSError as error:
        raise SettingsError(
            f"the lock file {path} cannot be created: {error.strerror}; make {path.parent} a writable folder, or set "
            "another one (STREAMGRU_HOME, STREAMGRU_HISTORY)"
        ) from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"{taken}; try again after it has ended (it holds the lock {path})") from None
        yield
