r"""Text and bytes of users as people may see them: every character that a terminal or a log could obey is escaped.

Sensor ids, feature names, bytes of records, tags, file names and messages of libraries can contain any character. An
escape sequence would change the terminal, a line break would forge a log line, and a bidirectional override would
reorder the text around it. ``visible`` shows each of them as Python writes it: ``\x1b``, ``\n``, ``\u202e``.
"""

import codecs
import logging


def visible(text: object, width: int | None = None) -> str:
    """The text in one line, with an escape for each non-printable character; at most ``width`` characters.

    Printable is meant as in ``str.isprintable``: control and format characters, surrogates, unassigned characters and
    separators other than the space are not printable. Escapes in the text stay as they are.
    """
    shown = str(text)
    if width is not None:
        shown = shown[: width + 1]  # enough to see that it is too long: an escape is longer than its character
    if not shown.isprintable():
        shown = "".join(letter if letter.isprintable() else _escape(letter) for letter in shown)
    if width is not None and len(shown) > width:
        shown = shown[: max(width - 1, 0)] + "…"
    return shown


def visible_lines(text: object) -> str:
    """As ``visible``, but line breaks stay: for messages of several lines, such as a list of invalid settings."""
    return "\n".join(map(visible, str(text).split("\n")))


def visible_bytes(content: bytes | None, width: int | None = None) -> str:
    """Bytes as ``visible`` text; bytes that are not UTF-8 as Python writes them; ``(none)`` for None."""
    if content is None:
        return "(none)"
    # Four bytes per character are enough, and a large record is not decoded for its beginning.
    beginning = content if width is None else content[: 4 * (width + 1)]
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(beginning, final=len(beginning) == len(content))
    except UnicodeDecodeError:
        text = repr(beginning)
    return visible(text, width)


class VisibleFormatter(logging.Formatter):
    """Formats each log record as one escaped line; only tracebacks have several."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of the record, then its traceback, if any."""
        escape_message(record)
        return visible_lines(super().format(record))


def escape_message(record: logging.LogRecord) -> bool:
    """Escape the record's message to one line; a filter for handlers, which accepts every record."""
    message = record.getMessage()
    if not message.isprintable():
        record.msg, record.args = visible(message), None
    return True


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
