"""Tables, live screens and progress bars of rich: every string is shown as it is, never taken as markup.

A string such as ``[/plant/line1]`` would otherwise be a tag, and ``:warning:`` an emoji. A style needs a
``rich.text.Text``: ``styled`` makes one. No other module makes consoles, or text columns of progress bars.
"""

from typing import Any

from rich.console import Console
from rich.progress import Task, TextColumn
from rich.text import Text

from pipeline.text.visible_text import visible, visible_lines


class _LiteralConsole(Console):
    """A console that escapes control characters in strings, and takes nothing in them as markup or emoji."""

    def render_str(self, text: str, **options: Any) -> Text:
        """The string as text without styles of its own."""
        return super().render_str(visible_lines(text), **(options | {"markup": False, "emoji": False}))


def make_console(*, stderr: bool = False, width: int | None = None) -> Console:
    """A console for tables and live screens; ``width`` in characters, by default the terminal's."""
    return _LiteralConsole(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)


def styled(text: object, style: str) -> Text:
    """Text in one line with a style, such as ``bold green``."""
    return Text(visible(text), style=style)


class TaskText(TextColumn):
    """A column of a progress bar, with a format such as ``{task.description}``."""

    def render(self, task: Task) -> Text:
        """The column's text for one task."""
        return Text(visible(self.text_format.format(task=task)), style=self.style, justify=self.justify)
