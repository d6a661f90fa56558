"""How this project finds Prefect. It imports none of it: Prefect reads its settings when it is imported."""

import logging
import os
import urllib.error
import urllib.request
from typing import Final

from pipeline.errors import StackError
from pipeline.settings import Settings

ANSWER_TIMEOUT_S: Final = 5.0


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
