"""JSON of reports: valid for any numbers and keys in a report."""

import json
import math
from collections.abc import Mapping
from typing import Any


def json_text(content: Any, indent: int | None = 2, *, ascii_only: bool = True) -> str:
    """The content as JSON, with null for NaN and infinity, which JSON does not have, and text for unknown types.

    ``ascii_only`` suits a terminal; without it, write the text with ``errors="backslashreplace"``, because half of a
    surrogate pair has no encoding.
    """
    return json.dumps(_valid(content), indent=indent, ensure_ascii=ascii_only, default=str, allow_nan=False)


def _valid(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {_key(key): _valid(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_valid(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _key(key: object) -> str:
    return ", ".join(map(str, key)) if isinstance(key, tuple) else str(key)
