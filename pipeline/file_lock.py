"""One process at a time: a lock on a file, which the kernel lets go of when its holder ends, also by kill -9."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import Busy, SettingsError


@contextmanager
def hold_lock(path: Path, taken: str) -> Iterator[None]:
    """Hold the lock ``path`` for the block. It holds on this machine only.

    Raises:
        Busy: it is held; the message begins with ``taken`` and goes on with what to do.
        SettingsError: its folder cannot be made or written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("w")
    except OSError as error:
        raise SettingsError(
            f"the lock {path} cannot be made: {error.strerror}; make {path.parent} a folder that can be written to, or "
            "set another place (STREAMGRU_HOME, STREAMGRU_HISTORY)"
        ) from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"{taken}; run this again when that has ended (it holds {path})") from None
        yield
