"""Outlooks in the history table: rows beside those of the readings, with columns that only they fill.

``sensor_id`` is the sensor or the group, ``timestamp`` the time of issue, and every feature is null. A table has these
columns from its first outlook on. The names of the covariates are in each row, because the settings may change.
"""

from collections.abc import Sequence
from typing import Any, Final, TypeVar

import polars as pl

from pipeline.history.columns import INTERNAL_PREFIX
from pipeline.outlook_messages import Outlook
from pipeline.reading_times import RECORD_TIMESTAMP

OUTLOOK_GROUP: Final = f"{INTERNAL_PREFIX}outlook_group"  # whether ``sensor_id`` is a group; null for a reading
OUTLOOK_TIMES: Final = f"{INTERNAL_PREFIX}outlook_times"  # microseconds; null for a reading
OUTLOOK_COVARIATES: Final = f"{INTERNAL_PREFIX}outlook_covariates"
OUTLOOK_VALUES: Final = f"{INTERNAL_PREFIX}outlook_values"  # of all covariates at the first time, at the second, ...
OUTLOOK_COLUMNS: Final = {
    OUTLOOK_GROUP: pl.Boolean(),
    OUTLOOK_TIMES: pl.List(pl.Int64),
    OUTLOOK_COVARIATES: pl.List(pl.String),
    OUTLOOK_VALUES: pl.List(pl.Float32),
}

Frame = TypeVar("Frame", pl.DataFrame, pl.LazyFrame)


def only_readings(frame: Frame) -> Frame:
    """The rows of readings, without the columns of outlooks."""
    names = frame.collect_schema().names()
    if OUTLOOK_TIMES not in names:
        return frame
    present = [name for name in OUTLOOK_COLUMNS if name in names]
    return frame.filter(pl.col(OUTLOOK_TIMES).is_null()).drop(present)


def outlook_rows(
    outlooks: Sequence[tuple[int, int, Outlook]], covariates: Sequence[str], sent_us: Sequence[int]
) -> pl.DataFrame:
    """The rows of some outlooks, without columns of features.

    Args:
        outlooks: partition and offset of each outlook, and the outlook.
        covariates: C names, those of the outlooks' values.
        sent_us: timestamps of the records.
    """
    found = [each for _, _, each in outlooks]
    rows: dict[str, Any] = {
        "sensor_id": pl.Series([each.name for each in found], dtype=pl.String),
        "timestamp": pl.Series([each.issued_us for each in found], dtype=pl.Int64).cast(pl.Datetime("us", "UTC")),
        "partition": pl.Series([partition for partition, _, _ in outlooks], dtype=pl.Int32),
        "offset": pl.Series([offset for _, offset, _ in outlooks], dtype=pl.Int64),
        RECORD_TIMESTAMP: pl.Series(sent_us, dtype=pl.Int64).cast(pl.Datetime("us", "UTC")),
        OUTLOOK_GROUP: pl.Series([each.is_group for each in found], dtype=pl.Boolean),
        OUTLOOK_TIMES: pl.Series([each.timestamp_us.tolist() for each in found], dtype=pl.List(pl.Int64)),
        OUTLOOK_COVARIATES: pl.Series([list(covariates)] * len(found), dtype=pl.List(pl.String)),
        OUTLOOK_VALUES: pl.Series([each.values.ravel().tolist() for each in found], dtype=pl.List(pl.Float32)),
    }
    return pl.DataFrame(rows)
