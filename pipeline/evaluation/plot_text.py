"""Text in plots: matplotlib draws a user's text as it is, never as a formula.

``$GPS_1_$`` would otherwise be a formula, ``_name`` would be left out of a legend, and a character that the font lacks
would be drawn as an empty box.
"""

from functools import cache
from typing import Any, Final

from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.text.visible_text import visible

LONGEST_TITLE: Final = 60  # characters; a longer title leaves the plot no room
LONGEST_NAME: Final = 40  # characters of a name in a title, in a legend or at an axis


def drawable(text: object, width: int = LONGEST_TITLE) -> str:
    """The text for a plot: in one line, cut to ``width``, with an escape for each character that the font lacks."""
    return "".join(letter if _is_in_font(letter) else _escape(letter) for letter in visible(text, width))


def set_labels(axes: Axes, title: object, x: object = "", y: object = "", **title_options: Any) -> None:
    """Set the title and the labels of a plot."""
    axes.set_title(drawable(title), parse_math=False, **title_options)
    axes.set_xlabel(drawable(x, LONGEST_NAME), parse_math=False)
    axes.set_ylabel(drawable(y, LONGEST_NAME), parse_math=False)


def legend_name(text: object) -> str:
    """The name of a series for its ``label``; ``draw_legend`` must draw the legend."""
    name = drawable(text, LONGEST_NAME)
    return f" {name}" if name.startswith("_") else name  # matplotlib leaves out names that begin with an underscore


def draw_legend(where: Axes | Figure, *arguments: Any, **options: Any) -> None:
    """Draw the legend of a plot or of a whole figure."""
    legend = where.legend(*arguments, **options)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


@cache
def _characters() -> frozenset[int]:
    """The code points of the font that matplotlib uses for text."""
    path = font_manager.findfont(font_manager.FontProperties())
    return frozenset(font_manager.get_font(path).get_charmap())


def _is_in_font(letter: str) -> bool:
    return letter.isascii() or ord(letter) in _characters()
