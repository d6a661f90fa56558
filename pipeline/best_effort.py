"""Work that may fail without harm to a result: plots, pages and progress."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec

P = ParamSpec("P")


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


def until_it_fails(work: str, log: logging.Logger, report: Callable[P, None]) -> Callable[P, None]:
    """A callback for progress that calls ``report`` until its first error, which is one warning."""
    has_failed = False

    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        nonlocal has_failed
        if has_failed:
            return
        has_failed = True
        with best_effort(work, log):
            report(*args, **kwargs)
            has_failed = False

    return call
