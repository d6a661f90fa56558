"""Names of the features' columns in a frame of readings, where other columns stand beside the features.

The rule is the same in the frame that a registered model takes and in the history table; only the taken names differ.
"""

from collections.abc import Callable
from typing import Final

FEATURE_PREFIX: Final = "feature:"
# The other columns of the frame that a registered model takes.
INPUT_COLUMNS: Final = ("sensor_id", "timestamp")


def input_column(feature: str) -> str:
    """The column of a feature in the frame that a registered model takes: ``feature:timestamp`` for ``timestamp``."""
    return feature_column(feature, INPUT_COLUMNS.__contains__)


def feature_column(feature: str, is_taken: Callable[[str], bool]) -> str:
    """The feature's own name, or ``feature:NAME`` if that name is taken; two features never share a column.

    A feature that is itself called ``feature:NAME`` with a taken name gets the prefix once more. The prefix is found in
    any case, because the columns of some tables ignore case.
    """
    bare = feature
    while bare.lower().startswith(FEATURE_PREFIX):
        bare = bare[len(FEATURE_PREFIX) :]
    return FEATURE_PREFIX + feature if is_taken(bare) else feature
