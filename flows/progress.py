"""How far a flow is, told to whoever watches it in the same process; a run without a watcher tells nobody."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """``done`` of ``total`` units of what is being done; no total where it is not known."""

    doing: str
    done: float
    total: float | None = None
    detail: str = ""


Watcher = Callable[[Progress], None]

_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


def report_progress(progress: Progress) -> None:
    """Let the watcher know."""
    watcher = _watcher.get()
    if watcher is not None:
        watcher(progress)


@contextmanager
def watch_progress(watcher: Watcher) -> Iterator[None]:
    """Flows called in the block tell ``watcher`` how far they are."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)
