"""Notices a number that a column uses in place of a missing value, such as -200 or 9999."""

from typing import Final

import numpy as np
import polars as pl

# Least share of a column's values that one extreme value makes up before a note points it out.
NOTED_SHARE: Final = 0.01
_LEAST_COUNT: Final = 2
_LEAST_OTHERS: Final = 5  # distinct other values; a column of few states has none that stand apart
# Numbers that loggers write for a missing value. Other numbers must lie farther from the rest.
_SENTINELS: Final = frozenset(
    (
        *(-1.0, -99.0, -99.9, -999.0, -999.9, -999.99, -9999.0, -9999.9, -99999.0, -100.0, -200.0, -888.0, -8888.0),
        *(99.0, 99.9, 99.99, 999.0, 999.9, 999.99, 9999.0, 9999.9, 9999.99, 99999.0, -6999.0, -7999.0),
        *(255.0, 32767.0, -32767.0, -32768.0, 65535.0, 1e20, -1e20, 1e30, -1e30),
    )
)
_SENTINEL_GAP: Final = 0.1  # of the range of the other values, from their 5 % to their 95 % quantile
_OTHER_GAP: Final = 1.0


def extreme_value(values: pl.Series) -> tuple[float, float] | None:
    """The smallest or largest value and its share of the values, if it is repeated and stands apart from the rest."""
    known = values.drop_nulls()
    if len(known) < _LEAST_OTHERS + _LEAST_COUNT:
        return None
    for extreme in (known.min(), known.max()):
        assert isinstance(extreme, (int, float))
        share = int((known == extreme).sum()) / len(known)
        others = known.filter(known != extreme)
        if share < NOTED_SHARE or share * len(known) < _LEAST_COUNT or others.n_unique() < _LEAST_OTHERS:
            continue
        array = others.to_numpy().astype(np.float64)
        gap = float(np.abs(array - extreme).min())
        low, high = np.quantile(array, (0.05, 0.95))
        if gap >= (high - low) * (_SENTINEL_GAP if round(extreme, 2) in _SENTINELS else _OTHER_GAP):
            return float(extreme), share
    return None


def extreme_note(column: str, values: pl.Series) -> str | None:
    """A note about the column's extreme value, with the option that makes it missing."""
    found = extreme_value(values)
    if found is None:
        return None
    value, share = found
    return (
        f"column {column}: the extreme value {value:g} makes up {share:.0%} of its values; if it stands for a missing "
        f"value, add --missing {value:g}"
    )
