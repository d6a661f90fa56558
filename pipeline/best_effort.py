"""Work that may fail without harm to a result: plots, pages and progress."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def best_effort(work: str, log: logging.Logger, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Log one warning instead of raising an error of the block, and go on after the block.

    Use it for reports only: a score, a model or a commit must never depend on the block.

    Args:
        work: a noun phrase for the warning, such as "the plot scores.png".
        log: the logger for the warning; the traceback is logged at level DEBUG.
        but: errors that are raised nevertheless.
    """
    try:
        yield
    except but:
        raise
    except Exception as error:
        log.debug("%s failed", work, exc_info=error)
        log.warning("%s failed, and everything else continues: %s: %s", work, type(error).__name__, error)
