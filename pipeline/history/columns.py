"""Names of columns in the history table and in every frame of readings: features and internal columns never collide.

A feature is stored under its own name, unless an internal column has that name (Delta Lake ignores case) or polars
takes the name as a pattern (``*`` and ``^…$``). Such a feature is stored under ``feature:NAME``.
"""

from typing import Final

from model.feature_columns import FEATURE_PREFIX, feature_column
from pipeline.reading_times import RECORD_TIMESTAMP

# Columns of every history table, around the features.
BEFORE_FEATURES: Final = {"sensor_id": "string", "timestamp": "timestamp"}
AFTER_FEATURES: Final = {"partition": "integer", "offset": "long"}
# Later internal columns begin with this prefix, so that they cannot be features of an existing table.
INTERNAL_PREFIX: Final = "streamgru:"
ADDED_LATER: Final = {RECORD_TIMESTAMP: "timestamp"}  # absent until the first append of a release that knows them
_INTERNAL: Final = frozenset(BEFORE_FEATURES | AFTER_FEATURES)


def is_internal(column: str) -> bool:
    """Whether the column is not a feature; in another case it counts as the same column."""
    folded = column.lower()
    return folded in _INTERNAL or folded.startswith(INTERNAL_PREFIX)


def column_of(feature: str) -> str:
    """The name of a feature's column."""
    return feature_column(feature, _is_taken)


def feature_of(column: str) -> str:
    """The feature whose column this is; the inverse of ``column_of``."""
    bare = column.removeprefix(FEATURE_PREFIX)
    return bare if column_of(bare) == column else column


def _is_taken(name: str) -> bool:
    is_pattern = name == "*" or (name.startswith("^") and name.endswith("$"))
    return is_internal(name) or is_pattern
