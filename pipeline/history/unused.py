"""Counts the ingested readings of each sensor that training does not use: late ones and implausible times."""

from collections import Counter
from collections.abc import Mapping
from typing import Final

import numpy as np
import polars as pl

from model.acceptance import ACCEPTED, LATE, NEVER_US, classify
from model.reorder_buffer import reorder
from pipeline.history.table import History
from pipeline.reading_times import NAMED_SENSORS, RECORD_TIMESTAMP, TimeRules, implausible_rows
from pipeline.settings import Settings

Stream = tuple[int, str]  # partition and sensor

LATE_REMEDY: Final = 'set `training.late = "train"` to train on them'


class UnusedReadings:
    """Counts unused readings of an ingest, chunk by chunk.

    The verdict needs the latest time of each sensor in the history. The history is searched only for times after the
    earliest time in the chunk: if readings arrive in order, almost no file has any.
    """

    def __init__(self, history: History, settings: Settings, rules_of: Mapping[int, TimeRules]) -> None:
        self.late: Counter[str] = Counter()
        self.implausible: Counter[str] = Counter()
        self._history = history
        self._base = history.version
        self._grace = settings.grace
        self._rules_of = rules_of
        self._last_us: dict[Stream, int] = {}
        self._searched_from_us = np.iinfo(np.int64).max  # the history was searched for times from here on

    def add(self, frame: pl.DataFrame) -> None:
        """Count a chunk: the history's columns without features, in offset order within each partition."""
        frame = frame.select(
            "sensor_id", pl.col("timestamp").dt.timestamp("us"), "partition", "offset", RECORD_TIMESTAMP
        )
        is_implausible = frame.select(implausible_rows(self._rules_of).alias("implausible"))["implausible"]
        self.implausible.update(frame.filter(is_implausible)["sensor_id"].to_list())
        frame = frame.filter(~is_implausible).sort("partition", "offset")
        if frame.is_empty():
            return
        earliest_us = int(frame["timestamp"].min())  # type: ignore[arg-type]
        if earliest_us < self._searched_from_us:
            self._search(earliest_us)
        streams = list(zip(frame["partition"].to_list(), frame["sensor_id"].to_list(), strict=True))
        codes_of = {stream: code for code, stream in enumerate(dict.fromkeys(streams))}
        codes = np.fromiter((codes_of[stream] for stream in streams), np.int64, len(streams))
        last_us = np.array([self._last_us.get(stream, NEVER_US) for stream in codes_of], np.int64)
        timestamp_us, offsets = frame["timestamp"].to_numpy(), frame["offset"].to_numpy()
        if self._grace.is_on:
            verdicts = reorder(codes, timestamp_us, offsets, self._grace, last_us).verdicts
        else:
            verdicts = classify(codes, timestamp_us, last_us)
        self.late.update(frame["sensor_id"].filter(pl.Series(verdicts == LATE)).to_list())
        accepted = verdicts == ACCEPTED
        np.maximum.at(last_us, codes[accepted], timestamp_us[accepted])
        self._last_us.update(zip(codes_of, last_us.tolist(), strict=True))

    def _search(self, earliest_us: int) -> None:
        """Look up the latest time of each sensor in the history as it was before the ingest."""
        self._searched_from_us = earliest_us
        if not self._history.has_offsets():
            return
        rows = self._history.scan(self._base)
        if self._history.has_record_timestamps(self._base):
            rows = rows.filter(~implausible_rows(self._rules_of))
        with self._history.reading(self._base):
            found = (
                rows.filter(pl.col("timestamp").dt.timestamp("us") >= earliest_us)
                .group_by("partition", "sensor_id")
                .agg(pl.col("timestamp").max().dt.timestamp("us"))
                .collect(engine="streaming")
            )
        for partition, sensor, moment_us in found.iter_rows():
            self._last_us[partition, sensor] = max(moment_us, self._last_us.get((partition, sensor), NEVER_US))


def describe_sensors(counts: Mapping[str, int]) -> str:
    """The sensors with the most readings, as text."""
    named = Counter(counts).most_common(NAMED_SENSORS)
    others = sum(counts.values()) - sum(count for _, count in named)
    text = ", ".join(f"{sensor} {count:,}" for sensor, count in named)
    return f"{text}, other sensors {others:,}" if others else text
