"""Lines on the terminal: every text is shown as it is, with control characters escaped.

No other module prints lines. ``deploy.literal_console`` does the same for tables, live screens and progress bars.
"""

import io
import sys

import click

from pipeline.text.visible_text import visible, visible_lines


def say(text: object, *, err: bool = False) -> None:
    """Print one line to standard output, or with ``err`` to standard error; a line break in the text is escaped."""
    click.echo(visible(text), err=err)


def say_lines(text: object, *, err: bool = False) -> None:
    """As ``say``, but line breaks stay: for JSON and for messages of several lines."""
    click.echo(visible_lines(text), err=err)


def show_usage_error(error: click.ClickException) -> None:
    """Print an error of click as click does, to standard error."""
    output = io.StringIO()
    error.show(output)
    say_lines(output.getvalue().rstrip("\n"), err=True)


def replace_unencodable() -> None:
    """Let standard output and error escape characters that their encoding lacks, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
