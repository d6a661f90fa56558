"""The form of log lines: text for people, or one JSON object per line for programs that collect logs.

An object has the keys ``time`` (ISO 8601, UTC), ``level``, ``logger`` and ``message``, and ``exception`` with the
traceback if there is one. It is always one line in ASCII, regardless of the text in it.
"""

import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

from pipeline.text.json_text import json_text
from pipeline.text.visible_text import VisibleFormatter, visible_lines

LogFormat = Literal["text", "json"]

TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class JsonFormatter(logging.Formatter):
    """Formats each log record as a JSON object; the arguments that ``logging.config`` passes are unused."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()

    def format(self, record: logging.LogRecord) -> str:
        """The line of the record, its traceback included."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        elif record.exc_text:
            line["exception"] = record.exc_text
        return json_text(line, None)


class JsonHandler(logging.StreamHandler[TextIO]):
    """Writes JSON lines for Prefect in the process of a run, instead of Prefect's handler with its styles."""

    def __init__(self, stream: TextIO | None = None, styles: Mapping[str, str] | None = None) -> None:
        super().__init__(stream)

    def setFormatter(self, fmt: logging.Formatter | None) -> None:  # noqa: N802 - logging's name
        """Set a ``JsonFormatter``, regardless of the formatter in Prefect's configuration."""
        super().setFormatter(JsonFormatter())


def formatter(form: LogFormat) -> logging.Formatter:
    """A formatter for a handler of the root logger."""
    return JsonFormatter() if form == "json" else VisibleFormatter(TEXT)


def use_format(form: LogFormat) -> None:
    """Let the handler that this project gave to the root logger write this form."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, VisibleFormatter | JsonFormatter):
            handler.setFormatter(formatter(form))


def is_json() -> bool:
    """Whether this process logs JSON."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)


def final_line(message: str, logger: str) -> str:
    """A message for standard error that ends a process: text, or JSON if the process logs JSON.

    It needs no handler, whose lock a thread that hangs may hold.
    """
    if not is_json():
        return visible_lines(f"error: {message}")
    fields: dict[str, Any] = {"name": logger, "levelname": "ERROR", "levelno": logging.ERROR, "msg": message}
    return JsonFormatter().format(logging.makeLogRecord(fields))


def prefect_variables(form: LogFormat) -> dict[str, str]:
    """Environment variables with which Prefect logs in this form in the process of a run, where it sets up the log."""
    if form == "text":
        return {}
    return {"PREFECT_LOGGING_HANDLERS_CONSOLE_CLASS": f"{JsonHandler.__module__}.{JsonHandler.__name__}"}


def write_final_line(message: str, logger: str) -> None:
    """Write ``final_line`` to standard error."""
    sys.stderr.write(final_line(message, logger) + "\n")
    sys.stderr.flush()
