"""Records of readings and outlooks, and the outlook that each reading sees by the rule taken literally."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from pipeline.kafka.record_batch import FetchedRecord
from pipeline.messages import encode_reading
from pipeline.outlook_messages import encode_outlook
from pipeline.settings import Settings
from pipeline.settings.outlooks import OutlookSettings

HOUR_US = 3_600_000_000
START_US = 1_456_790_400_000_000  # 2016-03-01
SENSORS = ("s0", "s1", "s2")
PARTITION_OF = {"s0": 0, "s1": 0, "s2": 1}
GROUP = "city"
MEMBERS = ("s0", "s2")
SETTINGS = Settings(
    features=("value",),
    targets=("value",),
    horizon_steps=2,
    max_gap_steps=3,
    outlooks=OutlookSettings(covariates=("TEMP", "WSPM"), steps=4, groups={GROUP: MEMBERS}),
)


class Event(NamedTuple):
    """A reading at an hour, or an outlook issued at it for the hours after it."""

    name: str  # of the sensor or group
    hour: int
    is_outlook: bool


events = st.lists(
    st.one_of(
        st.builds(Event, st.sampled_from(SENSORS), st.integers(0, 20), st.just(False)),
        st.builds(Event, st.sampled_from((*SENSORS, GROUP)), st.integers(0, 20), st.just(True)),
    ),
    max_size=40,
)


def outlook_of(event: Event) -> tuple[bytes, bytes]:
    """Key and value of the record of an outlook."""
    time_us = START_US + event.hour * HOUR_US
    ahead_us = time_us + np.arange(1, 5) * HOUR_US
    values = {"TEMP": event.hour + np.arange(4) / 10, "WSPM": np.array([np.nan, 1.0, np.nan, 2.0])}
    return encode_outlook(event.name, time_us, ahead_us, values, is_group=event.name == GROUP)


@dataclass(frozen=True)
class Stream:
    """The records of each partition, in offset order."""

    records: dict[int, list[FetchedRecord]]

    @classmethod
    def of(cls, given: Sequence[Event]) -> "Stream":
        """The records of the events; a group's outlook is a record on each partition."""
        made = cls({0: [], 1: []})
        for event in given:
            time_us = START_US + event.hour * HOUR_US
            if not event.is_outlook:
                made._add(PARTITION_OF[event.name], *encode_reading(event.name, time_us, {"value": float(event.hour)}))
                continue
            key, value = outlook_of(event)
            for partition in (0, 1) if event.name == GROUP else (PARTITION_OF[event.name],):
                made._add(partition, key, value)
        return made

    def _add(self, partition: int, key: bytes, value: bytes) -> None:
        records = self.records[partition]
        records.append(FetchedRecord(key, value, len(records), (), START_US // 1_000))


def seen_by_hand(given: Sequence[Event], max_gap_steps: int = 3) -> dict[tuple[str, int], int | None]:
    """Sensor and hour of each accepted reading -> hour of issue of the outlook that it sees; without a grace period."""
    last: dict[str, int] = {}  # sensor -> hour of its last reading
    newest: dict[str, int | None] = {}  # sensor with a state -> hour of issue of its outlook
    seen: dict[tuple[str, int], int | None] = {}
    for event in given:
        if event.is_outlook:
            for sensor in MEMBERS if event.name == GROUP else (event.name,):
                if sensor in newest and (newest[sensor] is None or event.hour > (newest[sensor] or 0)):
                    newest[sensor] = event.hour
            continue
        before = last.get(event.name)
        if before is not None and event.hour <= before:
            continue
        if before is None or event.hour - before - 1 > max_gap_steps:
            newest[event.name] = None
        last[event.name] = event.hour
        seen[event.name, event.hour] = newest[event.name]
    return seen
