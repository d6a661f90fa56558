"""Text in Markdown: pages in Prefect and descriptions in MLflow show a user's text as it is.

The two use different parsers. Prefect's page follows CommonMark with GitHub's extensions, but shows numeric
entities as they are. MLflow's is Showdown, which knows fewer characters that a backslash protects.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from pipeline.text.visible_text import visible

# Characters with a meaning anywhere, and at the beginning of a line. Numbers and words stay readable.
_MARKUP: Final = re.compile(r"([\\`*_\[\]|~]|^[#+\-=])")
_LIST_NUMBER: Final = re.compile(r"^(\d{1,9})([.)])")
# A formula, a mention, an emoji or the scheme of an address, and an address without a scheme.
_EXTRA: Final = re.compile(r"[$@]|:(?=\S)|(?<=www)\.", re.IGNORECASE)
# Showdown also makes three dots one character.
_EXTRA_IN_SHOWDOWN: Final = re.compile(_EXTRA.pattern + r"|\.(?=\.)", re.IGNORECASE)
_HTML: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_URL_UNSAFE: Final = re.compile(r"[^A-Za-z0-9\-._~:/?#@!$&'*+,;=%]")


def markdown(text: object, width: int | None = None) -> str:
    """A user's text for Prefect, in one line of at most ``width`` characters: nothing in it is Markdown or HTML."""
    return _escaped(visible(text, width), _EXTRA, lambda found: f"\\{found.group()}")


def mlflow_markdown(text: object, width: int | None = None) -> str:
    """As ``markdown``, for MLflow."""
    return _escaped(visible(text, width), _EXTRA_IN_SHOWDOWN, lambda found: f"&#{ord(found.group())};")


def markdown_link(words: str, url: str) -> str:
    """A link; characters that could end the address are percent-encoded."""
    return f"[{markdown(words)}]({_encoded(url)})"


def markdown_image(words: str, image_url: str, url: str) -> str:
    """An image that links to another address, with a text for readers who do not see it; see ``markdown_link``."""
    return f"[!{markdown_link(words, image_url)}]({_encoded(url)})"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], gap: str = "") -> str:
    """A table from cells in Markdown; the first column is text, the other columns are numbers.

    Args:
        header: a cell per column.
        rows: cells per column.
        gap: text behind each cell, for pages that leave no room between columns.
    """
    cells = [[f"{cell}{gap}" for cell in line] for line in (header, *rows)]
    cells.insert(1, ["---", *["---:"] * (len(header) - 1)])
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _encoded(url: str) -> str:
    return _URL_UNSAFE.sub(lambda found: "".join(f"%{byte:02X}" for byte in found.group().encode()), visible(url))


def _escaped(shown: str, extra: re.Pattern[str], escape: Callable[[re.Match[str]], str]) -> str:
    """The text with backslashes before markup; ``escape`` replaces the matches of ``extra``."""
    escaped = _MARKUP.sub(r"\\\1", shown.lstrip(" "))  # spaces at the beginning would make code
    escaped = "".join(_HTML.get(letter, letter) for letter in escaped)
    return _LIST_NUMBER.sub(r"\1\\\2", extra.sub(escape, escaped))
