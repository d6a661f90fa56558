"""The demo's home: one demo at a time, beginning empty, tidied up however it ends."""

import fcntl
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from pipeline.errors import StackError

_MARK = "demo"  # a folder by which a demo's home is told from any other


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """Hold the demo's home against another demo.

    Raises:
        StackError: another demo runs there, it is no demo's home, or it cannot be written.
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
        if home.exists() and any(home.iterdir()) and not (home / _MARK).is_dir():
            raise StackError(
                f"{home} is neither empty nor an earlier demo's: choose another folder with STREAMGRU_HOME"
            )
        (home / _MARK).mkdir(parents=True, exist_ok=True)
        yield


def emptied(home: Path) -> Path:
    """The folder for the demo's own files, after removing what an earlier demo left."""
    shutil.rmtree(home)
    mark = home / _MARK
    mark.mkdir(parents=True)
    return mark


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM, and a terminal that is closed, unwind the stack as Ctrl-C does, so that everything is stopped."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    heeded = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, interrupt) for number in heeded}  # with nohup, not the terminal's end
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
