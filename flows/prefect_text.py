"""Text for Prefect: pages in Markdown, states and logs show a user's text as it is."""

import logging
import re
from typing import Final

from prefect.artifacts import create_markdown_artifact

from pipeline.best_effort import best_effort
from pipeline.visible_text import escape_message, visible

log = logging.getLogger("streamgru.flows")

# The loggers whose handlers print the records of a run, or send them to its page.
_LOGGERS: Final = (None, "prefect", "prefect.flow_runs", "prefect.task_runs", "streamgru")
# Characters with a meaning anywhere, in an address, and at the beginning of a line. Numbers and words stay readable.
_MARKDOWN: Final = re.compile(r"([\\`*_\[\]|~$@]|:(?=\S)|^[#+\-=](?=.)|(?<=^\d)[.)]|(?<=^\d\d)[.)])")
_HTML: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_URL_UNSAFE: Final = re.compile(r"[^A-Za-z0-9\-._~:/?#@!$&'*+,;=%]")
_LONGEST_DESCRIPTION: Final = 1_000


def markdown(text: object) -> str:
    """A user's text for a page, in one line: no character in it is taken as Markdown or HTML."""
    shown = _MARKDOWN.sub(r"\\\1", visible(text))
    return "".join(_HTML.get(letter, letter) for letter in shown)


def markdown_link(words: str, url: str) -> str:
    """A link; characters that could end the address are percent-encoded."""
    encoded = _URL_UNSAFE.sub(lambda found: "".join(f"%{byte:02X}" for byte in found.group().encode()), visible(url))
    return f"[{markdown(words)}]({encoded})"


def publish_page(page: str, key: str, description: str) -> None:
    """Publish a page of Markdown on the run's page in Prefect; a failure is logged and does not end the run."""
    with best_effort(f"the page {key} in Prefect", log):
        create_markdown_artifact(page, key=key, description=visible(description, _LONGEST_DESCRIPTION))


def escape_run_logs() -> None:
    """Let the handlers of a run's log escape control characters and line breaks in messages."""
    for name in _LOGGERS:
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(escape_message)  # a second call changes nothing
