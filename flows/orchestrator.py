"""The connection to Prefect. This module does not import Prefect, which reads its settings on import."""

import logging
import os
import urllib.error
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final, TypeVar

import httpx

from pipeline.errors import StackError, StreamgruError
from pipeline.loopback import opener_for, without_proxy
from pipeline.observability.log_format import prefect_variables
from pipeline.settings import Settings

ANSWER_TIMEOUT_S: Final = 5.0

R = TypeVar("R")

_results: ContextVar[list[object] | None] = ContextVar("results", default=None)


def connect(settings: Settings, *, console: bool) -> None:
    """Let this process and its children use the Prefect server at ``settings.prefect_api_url``.

    Args:
        console: whether this process also prints the log of its runs; Prefect's pages always have it.

    Raises:
        StackError: Prefect does not answer.
    """
    url = settings.prefect_api_url.rstrip("/")
    try:
        opener_for(url).open(f"{url}/health", timeout=ANSWER_TIMEOUT_S).close()
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise StackError(
            f"Prefect does not answer at {url} ({reason}); start the local stack with `streamgru up`, or set "
            "STREAMGRU_PREFECT_API_URL to your server's address, with /api at its end"
        ) from error
    os.environ.update(prefect_environment(settings))
    logging.getLogger("prefect").propagate = console


def record_result(result: object) -> None:
    """Store a flow's result or error for ``run_once``, before Prefect learns that the run has ended."""
    results = _results.get()
    if results is not None:
        results.append(result)


def run_once(call: Callable[[], R], settings: Settings) -> R:
    """The result of ``call``, which runs a flow in this process.

    Raises:
        StackError: Prefect stopped answering during the run; the message has the result of the flow, if any.
    """
    results: list[object] = []
    token = _results.set(results)
    try:
        return call()
    except (httpx.HTTPError, RuntimeError) as error:
        if not is_request_failure(error):
            raise
        if not results:
            outcome = "the flow did not finish; run it again"
        elif isinstance(results[-1], StreamgruError):
            outcome = f"the flow failed: {results[-1]}"
        else:
            outcome = f"the flow succeeded nevertheless: {results[-1]}"
        raise StackError(
            f"Prefect at {settings.prefect_api_url} failed during the run ({error}), so the run's page is incomplete; "
            f"{outcome}"
        ) from error
    finally:
        _results.reset(token)


def is_request_failure(error: BaseException | None) -> bool:
    """Whether a failed request caused the error; Prefect's clients raise a ``RuntimeError`` for their first one."""
    return failed_request(error) is not None


def failed_request(error: BaseException | None) -> httpx.HTTPError | None:
    """The failed request that caused the error, or None."""
    while error is not None and not isinstance(error, httpx.HTTPError):
        error = error.__cause__
    return error


def prefect_environment(settings: Settings) -> dict[str, str]:
    """The environment variables that must be set before Prefect is imported."""
    wanted = {
        "PREFECT_API_URL": settings.prefect_api_url.rstrip("/"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
        # An unreachable server must be an error; otherwise Prefect silently starts a second server.
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        # The run's page shows the pipeline's log.
        "PREFECT_LOGGING_EXTRA_LOGGERS": "streamgru",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        **prefect_variables(settings.logging.format),
        **without_proxy(os.environ, settings.prefect_api_url, settings.mlflow_tracking_uri),
    }
    if "PREFECT_HOME" not in os.environ:
        wanted["PREFECT_HOME"] = str(settings.home.resolve() / "prefect-client")
    return wanted
