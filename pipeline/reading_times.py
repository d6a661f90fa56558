"""The time rule: a reading whose time cannot be true is rejected, with a guess at its unit.

A reading is *implausible* if its time is later than its record's Kafka timestamp by more than ``max_ahead_us``, or
before ``earliest_us``. One accepted reading of the year 2106 would make all later readings of its sensor late.

A forecaster that takes a partition over records the rule with the first offset that it applies to. A change of the
settings adds another rule from the next offset on. So the verdict on a reading is a function of its time, its record's
timestamp, its offset and the recorded rules, and no upgrade and no change of the settings changes an earlier verdict.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.dead_letter_form import IMPLAUSIBLE
from pipeline.messages import LATEST_TIMESTAMP_US, Rejected, iso_timestamp, microseconds
from pipeline.settings import Settings
from pipeline.time_units import guess_cause

if TYPE_CHECKING:
    import polars as pl

logger = logging.getLogger("streamgru.reading_times")

RECORD_TIMESTAMP: Final = "streamgru:record_timestamp"  # the history's column of the records' Kafka timestamps

# A record's timestamp beyond this cannot precede a reading by any ``max_ahead_us``, because readings end in 2200.
_LATEST_SENT_MS: Final = LATEST_TIMESTAMP_US // 1_000
_COUNTED_SENSORS: Final = 1_000
NAMED_SENSORS: Final = 10  # sensors that a report names
_WARNING_INTERVAL_S: Final = 60.0


class TimeRule(msgspec.Struct, frozen=True):
    """The limits that apply to a partition's readings from an offset on."""

    from_offset: int
    max_ahead_us: int
    earliest_us: int


TimeRules = tuple[TimeRule, ...]  # by ascending offset; without a rule every time is plausible


def time_rules_from(known: TimeRules, settings: Settings, offset: int) -> TimeRules:
    """The rules for the readings of a partition, of which those from ``offset`` on are judged by the settings.

    The known rules stay. A rule is added if the settings differ from the last one. With ``times.all_readings`` the
    settings apply from the first reading on; their fingerprint then differs, so that all states are rebuilt.
    """
    max_ahead_us, earliest_us = round(settings.times.max_ahead_s * 1_000_000), microseconds(settings.times.earliest)
    if settings.times.all_readings:
        return (TimeRule(0, max_ahead_us, earliest_us),)
    if known and (known[-1].max_ahead_us, known[-1].earliest_us) == (max_ahead_us, earliest_us):
        return known
    return (*(rule for rule in known if rule.from_offset < offset), TimeRule(offset, max_ahead_us, earliest_us))


def find_implausible(
    timestamp_us: NDArray[np.int64], sent_ms: NDArray[np.int64], offsets: NDArray[np.int64], rules: TimeRules
) -> NDArray[np.bool_]:
    """(n,) whether the time of each reading of a partition is implausible.

    Args:
        timestamp_us: (n,) of the readings; offsets: (n,).
        sent_ms: (n,) timestamp of each record; 0 or less if the producer set none, which allows any later time.
    """
    implausible = np.zeros(len(timestamp_us), np.bool_)
    sent_us = np.minimum(sent_ms, _LATEST_SENT_MS) * 1_000
    for number, rule in enumerate(rules):
        applies = offsets >= rule.from_offset
        if number + 1 < len(rules):
            applies &= offsets < rules[number + 1].from_offset
        is_ahead = (sent_ms > 0) & (timestamp_us - rule.max_ahead_us > sent_us)
        implausible |= applies & (is_ahead | (timestamp_us < rule.earliest_us))
    return implausible


def implausible_rows(rules_of: Mapping[int, TimeRules]) -> "pl.Expr":
    """``find_implausible`` for frames with the history's columns; a row without a record timestamp is plausible.

    The history has no record timestamps of the readings that were ingested before the rule.
    """
    import polars as pl  # only here: forecasters and most commands do without

    timestamp_us = pl.col("timestamp").cast(pl.Datetime("us", "UTC")).to_physical()
    sent_us = pl.col(RECORD_TIMESTAMP).cast(pl.Datetime("us", "UTC")).to_physical()

    def by_partition(values: Mapping[int, int]) -> "pl.Expr":
        return pl.col("partition").replace_strict(values, default=None, return_dtype=pl.Int64)

    implausible = pl.lit(False)
    for number in range(max(map(len, rules_of.values()), default=0)):
        rule_of = {partition: rules[number] for partition, rules in rules_of.items() if number < len(rules)}
        ends = {part: rules[number + 1].from_offset for part, rules in rules_of.items() if number + 1 < len(rules)}
        applies = pl.col("offset") >= by_partition({part: rule.from_offset for part, rule in rule_of.items()})
        if ends:
            end = by_partition(ends)
            applies &= end.is_null() | (pl.col("offset") < end)
        max_ahead_us = by_partition({part: rule.max_ahead_us for part, rule in rule_of.items()})
        is_ahead = (sent_us > 0) & (timestamp_us - max_ahead_us > sent_us)
        earliest_us = by_partition({part: rule.earliest_us for part, rule in rule_of.items()})
        implausible |= (applies & (is_ahead | (timestamp_us < earliest_us))).fill_null(False)
    return implausible & sent_us.is_not_null()


def find_implausible_now(timestamp_us: NDArray[np.int64], settings: Settings) -> tuple[NDArray[np.intp], str]:
    """The places of the times that would be implausible if sent now, and a description of the first one."""
    now_ms, rules = time.time_ns() // 1_000_000, time_rules_from((), settings, 0)
    zeros = np.zeros(len(timestamp_us), np.int64)
    places = np.flatnonzero(find_implausible(timestamp_us, zeros + now_ms, zeros, rules))
    first = reject_implausible(int(timestamp_us[places[0]]), now_ms, 0, rules).detail if len(places) else ""
    return places, first


def sent_us(sent_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) the timestamps of records as the history stores them, in microseconds; at most those of the year 2200."""
    return np.clip(sent_ms, -1, _LATEST_SENT_MS) * 1_000


def reject_implausible(
    timestamp_us: int, sent_ms: int, offset: int, rules: TimeRules, *, is_outlook: bool = False
) -> Rejected:
    """The rejection of a reading, or of an outlook, whose time is implausible."""
    rule = next(rule for rule in reversed(rules) if rule.from_offset <= offset)
    if timestamp_us < rule.earliest_us:
        detail = f"the time {iso_timestamp(timestamp_us)} is before {iso_timestamp(rule.earliest_us)} (times.earliest)"
    else:
        ahead_s = timestamp_us / 1e6 - sent_ms / 1e3
        detail = (
            f"the time {iso_timestamp(timestamp_us)} is {_duration(ahead_s)} later than the record's timestamp, "
            f"{iso_timestamp(sent_ms * 1_000)}; at most {_duration(rule.max_ahead_us / 1e6)} is allowed "
            "(times.max_ahead_s)"
        )
    clock = "the clock of the outlook's producer" if is_outlook else "the clock of the sensor"
    return Rejected(IMPLAUSIBLE, f"{detail}; {guess_cause(timestamp_us, sent_ms, clock)}")


class ImplausibleTime(NamedTuple):
    """A reading or an outlook that was rejected because of its time."""

    sensor: str  # or the group of an outlook
    partition: int
    offset: int
    detail: str
    is_outlook: bool = False


class TimeAlarms:
    """Counts implausible times by sensor, and logs a warning for each sensor at most once a minute.

    The memory is bounded: if there are more than ``_COUNTED_SENSORS`` sensors, the half with the fewest readings is
    forgotten.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._counts: Counter[str] = Counter()
        self._warned_s: dict[str, float] = {}  # sensor -> time of its last warning; sensors in ``_counts`` only
        self._warnings: deque[float] = deque(maxlen=NAMED_SENSORS)  # times of the last warnings

    def add(self, found: Sequence[ImplausibleTime]) -> None:
        """Count readings of one transaction."""
        if not found:
            return
        latest = {reading.sensor: reading for reading in found}
        for sensor, count in Counter(reading.sensor for reading in found).items():
            self._counts[sensor] += count
            self._warn(latest[sensor])
        if len(self._counts) > _COUNTED_SENSORS:
            self._counts = Counter(dict(self._counts.most_common(_COUNTED_SENSORS // 2)))
            self._warned_s = {sensor: moment for sensor, moment in self._warned_s.items() if sensor in self._counts}

    def most(self) -> dict[str, int]:
        """The sensors with the most implausible times, and their numbers."""
        return dict(self._counts.most_common(NAMED_SENSORS))

    def _warn(self, reading: ImplausibleTime) -> None:
        """Log a warning unless this sensor, or too many sensors, had one in the last minute."""
        now = self._now_s()
        last = self._warned_s.get(reading.sensor)
        if last is not None and now - last < _WARNING_INTERVAL_S:
            return
        if len(self._warnings) == NAMED_SENSORS and now - self._warnings[0] < _WARNING_INTERVAL_S:
            return
        self._warned_s[reading.sensor] = now
        self._warnings.append(now)
        logger.warning(
            "%s %s, partition %d, offset %d: %s. The %s is a dead letter; %d of this %s so far",
            "outlook of" if reading.is_outlook else "sensor",
            reading.sensor,
            reading.partition,
            reading.offset,
            reading.detail,
            "outlook" if reading.is_outlook else "reading",
            self._counts[reading.sensor],
            "name" if reading.is_outlook else "sensor",
        )


def _duration(seconds: float) -> str:
    for name, size in (("years", 365.25 * 86_400), ("days", 86_400.0), ("hours", 3_600.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {name}"
    return f"{seconds:,.0f} s"
