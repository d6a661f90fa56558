"""The rules for names in the settings, and their form in messages."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Final

from pydantic import AfterValidator

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


def _check_model_name(name: str) -> str:
    """The name of a registered model, an experiment, a folder and a deployment."""
    if not name.strip() or len(name) > 200 or name in (".", "..") or re.search(r"[/\\:\x00-\x1f\x7f]", name):
        raise ValueError(
            "model_name has 1 to 200 characters, without slashes, colons and control characters, and is not . or .."
        )
    return name


ModelName = Annotated[str, AfterValidator(_check_model_name)]


def first_repeated(names: Sequence[str]) -> str | None:
    """The first name that occurs more than once; None if all differ."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def listed(names: Sequence[str]) -> str:
    """The first names of a list, with the number of the other names."""
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return ", ".join(name if name.isprintable() else repr(name) for name in names[:5]) + more
