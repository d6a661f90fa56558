"""User errors in flow runs: the message becomes the state of the run, without a traceback."""

import functools
import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.states import Cancelled, Failed

from flows.orchestrator import record_result
from flows.prefect_text import escape_run_logs
from pipeline.errors import Busy, StreamgruError
from pipeline.text.visible_text import visible_lines

P = ParamSpec("P")
R = TypeVar("R")


def user_errors_as_state(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a flow so that a ``StreamgruError`` becomes the run's state; other errors keep their traceback.

    ``Busy`` cancels the run instead of failing it. A direct call of the flow raises the error.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        logging.getLogger("prefect.flow_runs").addFilter(_has_new_traceback)
        escape_run_logs()
        try:
            result = function(*args, **kwargs)
            record_result(result)
            return result
        except Busy as error:
            record_result(error)
            return Cancelled(message=visible_lines(error), data=error)  # type: ignore[return-value]  # Prefect unwraps a state
        except StreamgruError as error:
            record_result(error)
            return Failed(message=visible_lines(error), data=error)  # type: ignore[return-value]  # as above

    return run


def _has_new_traceback(record: logging.LogRecord) -> bool:
    """False for log records with the traceback of a user error, which the run's state already shows."""
    return not (record.exc_info and isinstance(record.exc_info[1], StreamgruError))


def run_as_task(name: str, work: Callable[[], R]) -> R:
    """The result of ``work``, run as a task so that the run's page shows the step and its duration.

    A ``StreamgruError`` becomes the task's state, without a traceback, and is raised again for the flow.
    """
    errors: list[StreamgruError] = []

    @task(name=name, cache_policy=NO_CACHE, persist_result=False)
    def run() -> R:
        try:
            return work()
        except StreamgruError as error:
            errors.append(error)
            return Failed(message=visible_lines(error))  # type: ignore[return-value]  # as above

    result = run()
    if errors:
        raise errors[0]
    return result
