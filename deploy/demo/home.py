"""The demo's home: one demo at a time, beginning empty, tidied up however it ends."""

import fcntl
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from pipeline.errors import StackError


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """Hold the demo's home against another demo.

    Raises:
        StackError: another demo runs there, or the folder cannot be written.
    """
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        lock = home.with_name(f"{home.name}.lock").open("w")
    except OSError as error:
        raise StackError(f"the demo needs the folder {home}, which cannot be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StackError(
                f"another demo runs in {home}: let it end, or choose another folder with STREAMGRU_HOME"
            ) from None
        yield


def empty(home: Path) -> None:
    """Remove what an earlier demo left; a folder that is not one's is left alone.

    Raises:
        StackError: there is something else.
    """
    mark = home / "demo"
    if home.exists() and any(home.iterdir()):
        if not mark.is_dir():
            raise StackError(
                f"{home} is not empty and not an earlier demo's: choose another folder with STREAMGRU_HOME"
            )
        shutil.rmtree(home)
    mark.mkdir(parents=True)


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM unwind the stack as Ctrl-C does, so that everything is stopped."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
