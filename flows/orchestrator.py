"""How this project finds Prefect. It imports none of it: Prefect reads its settings when it is imported."""

import logging
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final, TypeVar

import httpx

from pipeline.errors import StackError, StreamgruError
from pipeline.settings import Settings

ANSWER_TIMEOUT_S: Final = 5.0

R = TypeVar("R")

_results: ContextVar[list[object] | None] = ContextVar("results", default=None)


def connect(settings: Settings, *, console: bool) -> None:
    """Let this process and its children talk to the Prefect at ``settings.prefect_api_url``.

    Args:
        console: whether this process also shows its runs' log; their pages have it in any case.

    Raises:
        StackError: Prefect does not answer there.
    """
    url = settings.prefect_api_url.rstrip("/")
    try:
        urllib.request.urlopen(f"{url}/health", timeout=ANSWER_TIMEOUT_S).close()
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise StackError(
            f"Prefect does not answer at {url} ({reason}); start the local stack with `streamgru up`, or set "
            "STREAMGRU_PREFECT_API_URL to your server's address, with /api at its end"
        ) from error
    os.environ.update(prefect_environment(settings))
    logging.getLogger("prefect").propagate = console


def record_result(result: object) -> None:
    """Let ``run_once`` know what a flow's work came to, or the error, before Prefect is told that the run has ended."""
    results = _results.get()
    if results is not None:
        results.append(result)


def run_once(call: Callable[[], R], settings: Settings) -> R:
    """The outcome of ``call``, which calls a flow in this process.

    Raises:
        StackError: Prefect went away meanwhile; the message has what the work came to, if that was done.
    """
    results: list[object] = []
    token = _results.set(results)
    try:
        return call()
    except (httpx.HTTPError, RuntimeError) as error:
        if not is_request_failure(error):
            raise
        if not results:
            came_to = "the work is not done; run it again"
        elif isinstance(results[-1], StreamgruError):
            came_to = f"the work is not done: {results[-1]}"
        else:
            came_to = f"the work is done all the same: {results[-1]}"
        raise StackError(
            f"Prefect at {settings.prefect_api_url} failed during the run ({error}), whose page there is not complete; "
            f"{came_to}"
        ) from error
    finally:
        _results.reset(token)


def is_request_failure(error: BaseException | None) -> bool:
    """Whether a request led to the error; Prefect's clients turn those that they begin with into a ``RuntimeError``."""
    return failed_request(error) is not None


def failed_request(error: BaseException | None) -> httpx.HTTPError | None:
    """The request that led to the error, if one did."""
    while error is not None and not isinstance(error, httpx.HTTPError):
        error = error.__cause__
    return error


def prefect_environment(settings: Settings) -> dict[str, str]:
    """What Prefect has to find in the environment when it is imported."""
    wanted = {
        "PREFECT_API_URL": settings.prefect_api_url.rstrip("/"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
        # A server that goes away must be an error, not a second server started on the quiet.
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        # What the pipeline logs belongs to the run's page.
        "PREFECT_LOGGING_EXTRA_LOGGERS": "streamgru",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    }
    if "PREFECT_HOME" not in os.environ:
        wanted["PREFECT_HOME"] = str(settings.home.resolve() / "prefect-client")
    return wanted
