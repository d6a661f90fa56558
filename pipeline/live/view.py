"""The state of ``streamgru serve``: one thread reads the topics into it, and other threads show it.

Every method takes the lock for microseconds. ``follower`` and ``lag_watch`` write, the HTTP answers read.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.dead_letter_form import DeadLetter
from pipeline.live.events import Swap
from pipeline.live.forecast_head import MOST_TARGETS, ForecastHead
from pipeline.live.index import Indexed, LiveIndex
from pipeline.live.rates import RateSeries
from pipeline.live.scores import ScoreSeries
from pipeline.observability.exposition import DELAY_BOUNDS_S, Distribution
from pipeline.settings import Settings

# Seconds without an answer of a broker, or without a follower, after which the view is stale. A check takes up to 3 s
# more.
STALE_AFTER_S: Final = 5.0
# The threads that read the topics. Without the follower the view does not change, even if the other one gets answers.
FOLLOWER: Final = "follower"
LAG_WATCH: Final = "lag-watch"
_MOST_SWAPS: Final = 200
_MOST_LETTERS: Final = 50
_MOST_REASONS: Final = 100  # reasons of dead letters; this program has some ten


@dataclass
class CatchUp:
    """Progress of the first look back, in records."""

    done: int = 0
    total: int = 0


@dataclass
class Log:
    """The known offsets of the topics, by partition."""

    readings_end: dict[int, int] = field(default_factory=dict)
    committed: dict[int, int] = field(default_factory=dict)
    forecasts_end: dict[int, int] = field(default_factory=dict)
    seen: dict[int, int] = field(default_factory=dict)  # next forecast to read

    @property
    def lag(self) -> dict[int, int]:
        """Readings that the forecasters have not processed; partitions without a committed offset are absent."""
        return {
            number: max(0, end - self.committed[number])
            for number, end in sorted(self.readings_end.items())
            if number in self.committed
        }


class LiveView:
    """Everything that this process has seen. Thread-safe: use the fields within ``locked``.

    Args:
        settings: with the section ``serve``.
        now_s: the clock, time of day in seconds.
    """

    def __init__(self, settings: Settings, now_s: Callable[[], float]) -> None:
        self.targets = settings.targets[:MOST_TARGETS]
        self._columns = [settings.features.index(target) for target in self.targets]  # places in a reading's values
        self.started_s = now_s()
        self._settings = settings
        self.log = Log()
        self.has_shrunk = False  # an end moved back since the follower looked: a topic may have been recreated
        self.rates = RateSeries()
        self.readings = 0  # records that arrived on the topic since the start
        self.champion: tuple[int, int] | None = None  # version of the newest forecast, and ms since when it serves
        self.list_version = 0  # grows with each change of a sensor's row
        self.unreadable_forecasts = 0  # records on the forecasts topic that are not forecasts
        self._troubles: dict[str, tuple[float, str]] = {}  # thread -> since when, in seconds, and why
        self._now_s = now_s
        self._seen_s: float | None = None  # last answer of a broker
        self._lock = threading.Lock()
        self.begin(settings.kafka.partitions)

    def begin(self, partitions: int) -> None:
        """Prepare for a look back on topics with this number of partitions; forget an earlier one."""
        serve = self._settings.serve
        with self._lock:
            self.partitions = partitions  # of the readings topic
            self.index = LiveIndex(
                targets=len(self.targets),
                partitions=partitions,
                cadence_us=self._settings.cadence_us,
                places=serve.history_records,
                readings=serve.recent_readings,
            )
            self.scores = ScoreSeries(len(self.targets), serve.score_bucket_s)
            self.delays = Distribution(DELAY_BOUNDS_S)  # since the start
            self.swaps: deque[Swap] = deque(maxlen=_MOST_SWAPS)  # newest first
            self.letters: deque[DeadLetter] = deque(maxlen=_MOST_LETTERS)  # newest first
            self.letters_by_reason: Counter[str] = Counter()
            self.forecasts = 0
            self.swaps_seen = 0
            self.catch_up: CatchUp | None = CatchUp()  # None: the look back is done

    @contextmanager
    def locked(self) -> Iterator["LiveView"]:
        """Keep other threads out. Do nothing slow within."""
        with self._lock:
            yield self

    @property
    def broker_seen_ms(self) -> int | None:
        """The last answer of a broker, in ms since the epoch."""
        return None if self._seen_s is None else round(self._seen_s * 1_000)

    @property
    def trouble(self) -> str:
        """Why a thread cannot read the topics; empty if all can."""
        return next((why for _, why in list(self._troubles.values())), "")

    @property
    def stale_since_ms(self) -> int | None:
        """Since when no broker has answered or the topics cannot be followed; None while all is well."""
        seen_s = self.started_s if self._seen_s is None else self._seen_s
        since_s = min(seen_s, self._troubles.get(FOLLOWER, (seen_s, ""))[0])
        return round(since_s * 1_000) if self._now_s() - since_s > STALE_AFTER_S else None

    def broker_answered(self, thread: str) -> None:
        """Note the time of an answer, which ends the thread's trouble."""
        with self._lock:
            self._seen_s = self._now_s()
            self._troubles.pop(thread, None)

    def broker_failed(self, thread: str, trouble: str) -> None:
        """Note why a thread gets no answer of a broker, or cannot read a topic."""
        with self._lock:
            since_s, _ = self._troubles.get(thread, (self._now_s(), ""))
            self._troubles[thread] = since_s, trouble

    def set_ends(self, readings: Mapping[int, int], forecasts: Mapping[int, int], committed: Mapping[int, int]) -> None:
        """Take over the present ends of the topics and the group's offsets; count the readings that arrived."""
        with self._lock:
            before = self.log.readings_end
            self.has_shrunk |= any(
                end < known.get(number, 0)
                for known, found in ((before, readings), (self.log.forecasts_end, forecasts))
                for number, end in found.items()
            )
            arrived = sum(max(0, end - before[number]) for number, end in readings.items() if number in before)
            self.log.readings_end, self.log.forecasts_end = dict(readings), dict(forecasts)
            self.log.committed = dict(committed)
            self.readings += arrived
            lag = self.log.lag
            self.rates.count(self._now_s(), readings=arrived, lag=sum(lag.values()) if lag else None)

    def add_reading(self, partition: int, offset: int, sent_ms: int, values: tuple[float, ...]) -> None:
        """Keep a decoded reading until its forecast arrives; ``values`` are those of all features of the settings."""
        with self._lock:
            self.index.readings.add(partition, offset, sent_ms, tuple(values[column] for column in self._columns))

    def add_forecasts(self, heads: Sequence[ForecastHead], live_from: NDArray[np.int64]) -> Indexed:
        """Add forecasts in offset order per partition, and return their numbers."""
        now_s = self._now_s()
        with self._lock:
            indexed = self.index.add(heads, round(now_s * 1_000), live_from)
            self.scores.add(now_s, indexed.judged)
            live = sum(head.offset >= live_from[head.partition] for head in heads)
            self.rates.count(now_s, forecasts=live, delays_ms=indexed.delay_ms)
            self.delays.add_all(indexed.delay_ms[~np.isnan(indexed.delay_ms)] / 1_000)
            self.forecasts += len(heads)
            self.list_version += 1
            for head in heads:
                self.log.seen[head.partition] = head.offset + 1
            last = heads[-1]
            if self.champion is None or self.champion[0] != last.model:
                self.champion = last.model, last.sent_ms
        return indexed

    def add_swaps(self, swaps: Sequence[Swap]) -> None:
        """Keep model swaps, oldest first."""
        with self._lock:
            self.swaps.extendleft(swaps)
            self.swaps_seen += len(swaps)

    def add_letters(self, letters: Sequence[DeadLetter]) -> None:
        """Count dead letters, and keep the latest."""
        with self._lock:
            for letter in letters:
                known = letter.reason in self.letters_by_reason or len(self.letters_by_reason) < _MOST_REASONS
                self.letters_by_reason[letter.reason if known else "other"] += letter.records
                self.letters.appendleft(letter)
