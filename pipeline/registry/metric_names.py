"""Names of MLflow metrics that are built from names of users, such as targets."""

import hashlib
import re
from collections.abc import Sequence
from typing import Final

# MLflow allows 250 characters in the whole name of a metric; ``persistence/coverage/`` stands before.
_LONGEST: Final = 200
_DIGITS: Final = 8  # of the hash that tells changed names apart


def metric_names(names: Sequence[str]) -> dict[str, str]:
    """A part of a metric's name for each of ``names``, all different.

    A name that MLflow accepts stays as it is. In any other name the refused characters become underscores, and a hash
    of the name follows, so that ``a/b`` and ``a?b`` stay apart.
    """
    return {name: _allowed(name) for name in names}


def _allowed(name: str) -> str:
    kept = re.sub(r"[^\w\-. ]", "_", name)
    # MLflow takes names as paths, and refuses ``.`` and ``..`` in them.
    if kept == name and 0 < len(name) <= _LONGEST and name not in (".", ".."):
        return name
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:_DIGITS]
    return f"{kept.strip('.')[:_LONGEST]}_{digest}"
