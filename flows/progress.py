"""Progress reports of a flow to a watcher in the same process; without a watcher they are discarded."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from pipeline.best_effort import until_it_fails

log = logging.getLogger("streamgru.flows")


@dataclass(frozen=True)
class Progress:
    """``done`` of ``total`` units of the current step; ``total`` is None if unknown."""

    doing: str
    done: float
    total: float | None = None
    detail: str = ""


Watcher = Callable[[Progress], None]

_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


def report_progress(progress: Progress) -> None:
    """Pass the progress to the watcher, if any; a watcher that fails is not called again."""
    watcher = _watcher.get()
    if watcher is not None:
        watcher(progress)


@contextmanager
def watch_progress(watcher: Watcher) -> Iterator[None]:
    """Let flows that the block calls report their progress to ``watcher``."""
    # A progress bar must not end an ingest or a retraining.
    token = _watcher.set(until_it_fails("the progress of the flow", log, watcher))
    try:
        yield
    finally:
        _watcher.reset(token)
