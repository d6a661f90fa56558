"""Text for Prefect: pages in Markdown, links, states and logs show a user's text as it is."""

import logging
from typing import Final

from prefect.artifacts import create_link_artifact, create_markdown_artifact

from pipeline.best_effort import best_effort
from pipeline.text.markdown_text import markdown
from pipeline.text.visible_text import escape_message

log = logging.getLogger("streamgru.flows")

# The loggers whose handlers print the records of a run, or send them to its page.
_LOGGERS: Final = (None, "prefect", "prefect.flow_runs", "prefect.task_runs", "streamgru")


def publish_page(page: str, key: str, description: str) -> None:
    """Publish a page of Markdown on the run's page in Prefect; a failure is logged and does not end the run.

    Args:
        page: Markdown whose user text is escaped.
        key: of lower-case letters, digits and dashes; Prefect lists the pages of one key as its history.
        description: a few words as plain text.
    """
    with best_effort(f"the page {key} in Prefect", log):
        create_markdown_artifact(page, key=key, description=markdown(description))


def publish_link(url: str, words: str, key: str, description: str) -> None:
    """Publish a link on the run's page in Prefect; a failure is logged and does not end the run."""
    with best_effort(f"the link {key} in Prefect", log):
        create_link_artifact(url, link_text=markdown(words), key=key, description=markdown(description))


def escape_run_logs() -> None:
    """Let the handlers of a run's log escape control characters and line breaks in messages."""
    for name in _LOGGERS:
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(escape_message)  # a second call changes nothing
