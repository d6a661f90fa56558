"""Names that a user gives to lists of days and to attributes."""

from collections.abc import Iterable
from typing import Final

_LONGEST: Final = 100  # characters


def check_names(kind: str, names: Iterable[str]) -> None:
    """Refuse names that would be unreadable in a log or on a page.

    Args:
        kind: the kind of thing that the names are for, with its article.

    Raises:
        ValueError: a name is empty, too long, or has characters that cannot be printed.
    """
    for name in names:
        if not name.isprintable() or not 0 < len(name) <= _LONGEST:
            raise ValueError(f"the name of {kind} has 1 to {_LONGEST} printable characters: {name[:120]!r}")
