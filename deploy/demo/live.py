"""The live part of the demo: send readings, watch their forecasts, train a second model that may take over."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from deploy.child_processes import Child, Children
from deploy.live_forecasts import LiveForecast, StreamTail
from pipeline.files.publishing import Publication
from pipeline.files.reading_table import ReadingTable
from pipeline.kafka.clients import close_producer, make_producer
from pipeline.registry.versions import CHAMPION, Registry
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.demo")

POLL_S: Final = 0.1
# Share of the live readings sent before the second training begins, so that the history has new readings.
RETRAIN_AFTER: Final = 0.1
# Share of the live readings sent until the gate decides; the rest shows the model swap.
SENT_BEFORE_GATE: Final = 0.85
TAKEOVER_S: Final = 60.0  # longest wait for the model swap; forecasters see the alias within 2 s, then warm up
AFTER_GATE_S: Final = 6.0  # time to send each half of the readings left after the gate's decision
STALLED_S: Final = 60.0  # time without a forecast after which the live part ends
PIECE_S: Final = 0.1  # time span of readings published at once; short, so that a new pace takes effect soon
# Seconds between two readings of a sensor at the slowest pace: a quarter of the silence that the demo allows.
SLOWEST_CADENCE_S: Final = 0.5
LONGEST_SILENCE_S: Final = 2.0  # the demo's promise for a partition with waiting readings; the report checks it
_AROUND_SWAP_S: Final = 5.0  # a pause within this time before or after a model swap counts as the swap's


@dataclass(frozen=True)
class Arrivals:
    """Forecasts in the order in which a read_committed consumer received them."""

    arrived_s: NDArray[np.float64]  # time of day
    delay_s: NDArray[np.float64]  # time since the reading was sent; NaN if the reading was not seen
    version: NDArray[np.int64]  # model version
    partition: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.arrived_s)


@dataclass(frozen=True)
class Silence:
    """The longest time in which a partition had a waiting reading and no forecast became visible."""

    partition: int
    seconds: float

    @property
    def is_short(self) -> bool:
        """Whether the silence is as short as the demo promises."""
        return self.seconds <= LONGEST_SILENCE_S

    def __str__(self) -> str:
        return (
            f"longest wait of a partition for a forecast while readings arrived: {self.seconds:.2f} s, in partition "
            f"{self.partition} (the demo promises at most {LONGEST_SILENCE_S:g} s)"
        )


@dataclass(frozen=True)
class Swap:
    """A model swap, as a consumer of the forecasts saw it."""

    version_before: int
    version_after: int
    first_s: float  # time of day at which the first partition has a forecast by the new model
    last_s: float  # time of day at which the last partition has one
    pause_s: float  # longest pause of a partition around its swap
    usual_pause_s: float  # 99th percentile of the pauses at other times

    def __str__(self) -> str:
        return (
            f"change from version {self.version_before} to {self.version_after}: all partitions changed within "
            f"{self.last_s - self.first_s:.1f} s; longest pause of a partition around its change {self.pause_s:.2f} s "
            f"(99 % of pauses at other times are shorter than {self.usual_pause_s:.2f} s)"
        )


@dataclass(frozen=True)
class Seconds:
    """Rate and delay of forecasts for each second since the first forecast."""

    start_s: float
    versions: tuple[int, ...]
    rate: NDArray[np.float64]  # (versions, seconds) forecasts
    delay_median_s: NDArray[np.float64]  # (seconds,), NaN for seconds without a forecast
    delay_p99_s: NDArray[np.float64]


def _pauses(arrivals: Arrivals, partition: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Begin and end of each pause: from the last forecast, or the sending of the reading if later, to a forecast."""
    own = arrivals.partition == partition
    ends = arrivals.arrived_s[own]
    sent = ends - arrivals.delay_s[own]
    before = np.concatenate([[-np.inf], ends[:-1]])
    begins = np.minimum(np.fmax(before, sent), ends)  # fmax ignores an unknown time of sending
    begins[:1][np.isinf(begins[:1])] = ends[:1][np.isinf(begins[:1])]
    return begins, ends


def longest_silence(arrivals: Arrivals) -> Silence | None:
    """The longest pause of all partitions; None without forecasts."""
    silences = []
    for partition in np.unique(arrivals.partition).tolist():
        begins, ends = _pauses(arrivals, partition)
        silences.append(Silence(partition, float((ends - begins).max())))
    return max(silences, key=lambda silence: silence.seconds, default=None)


def find_swaps(arrivals: Arrivals) -> list[Swap]:
    """The model swaps, in order of time."""
    versions, firsts = np.unique(arrivals.version, return_index=True)
    order = versions[np.argsort(firsts)].tolist()
    return [swap for before, after in pairwise(order) if (swap := _swap(arrivals, before, after)) is not None]


def _swap(arrivals: Arrivals, before: int, after: int) -> Swap | None:
    changes: list[float] = []
    near: list[float] = []
    far: list[NDArray[np.float64]] = []
    for partition in np.unique(arrivals.partition).tolist():
        versions = arrivals.version[arrivals.partition == partition]
        if after not in versions or before not in versions:
            continue
        begins, ends = _pauses(arrivals, partition)
        change = float(ends[versions == after].min())
        changes.append(change)
        around = (ends >= change - _AROUND_SWAP_S) & (begins <= change + _AROUND_SWAP_S)
        pauses = ends - begins
        near.append(float(pauses[around].max(initial=0.0)))
        far.append(pauses[~around & (pauses > 0)])
    if not changes:
        return None
    usual = np.concatenate(far)
    return Swap(
        version_before=before,
        version_after=after,
        first_s=min(changes),
        last_s=max(changes),
        pause_s=max(near),
        usual_pause_s=float(np.percentile(usual, 99)) if len(usual) else 0.0,
    )


def by_second(arrivals: Arrivals) -> Seconds:
    """Rates by model version, and delays, in bins of a second."""
    start_s = float(np.floor(arrivals.arrived_s[0])) if len(arrivals) else 0.0
    second = (arrivals.arrived_s - start_s).astype(np.int64)
    length = int(second.max(initial=-1)) + 1
    versions = tuple(np.unique(arrivals.version).tolist())
    rate = [np.bincount(second[arrivals.version == version], minlength=length) for version in versions]
    median, p99 = np.full((2, length), np.nan)
    known = ~np.isnan(arrivals.delay_s)
    bounds = np.searchsorted(second[known], np.arange(length + 1))
    delays = arrivals.delay_s[known]
    for number, (lo, hi) in enumerate(pairwise(bounds)):
        if hi > lo:
            median[number], p99[number] = np.percentile(delays[lo:hi], [50, 99])
    return Seconds(start_s, versions, np.array(rate, np.float64).reshape(len(versions), length), median, p99)


def pace(rows: int, left_s: float, slowest: float, fastest: float) -> float:
    """Readings per second that send ``rows`` within ``left_s``, between the limits."""
    rate = rows / max(left_s, PIECE_S) if rows > 0 else 0.0
    return min(max(rate, slowest), fastest)


class Sender:
    """Publishes the rows of a table in order, in a thread of its own, at a pace that can change.

    It never pauses: ahead of its aim it sends at the slowest pace, so that no partition falls silent.
    """

    def __init__(self, settings: Settings, table: ReadingTable, fastest: float) -> None:
        self.sent = 0
        self._settings = settings
        self._table = table
        self._fastest = fastest  # readings per second
        self._slowest = min(fastest, len(table.sensors) / SLOWEST_CADENCE_S)
        self._aim = (0, 0.0)  # row, time of the monotonic clock
        self._stopping = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)

    def aim(self, row: int, within_s: float) -> None:
        """Send the readings before ``row`` evenly over ``within_s``, and later ones at the slowest pace."""
        self._aim = (row, time.monotonic() + within_s)

    def start(self) -> None:
        """Begin sending."""
        self._thread.start()

    def is_sending(self) -> bool:
        """Whether readings are left.

        Raises:
            KafkaError: the brokers did not take a reading.
        """
        if self._error is not None:
            raise self._error
        return self._thread.is_alive()

    def stop(self) -> None:
        """Stop sending."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STALLED_S)

    def _run(self) -> None:
        try:
            producer = make_producer(self._settings, linger_ms=5)
            try:
                while self.sent < len(self._table) and not self._stopping.is_set():
                    began, rate = time.monotonic(), self._rate()
                    stop = min(len(self._table), self.sent + max(1, round(rate * PIECE_S)))
                    Publication(self._settings, producer, self._table, self.sent, stop).run()
                    pause_s = began + (stop - self.sent) / rate - time.monotonic()
                    self.sent = stop
                    self._stopping.wait(max(0.0, pause_s))
            finally:
                close_producer(producer)
        except Exception as error:
            logger.debug("sending failed", exc_info=error)
            self._error = error

    def _rate(self) -> float:
        row, moment = self._aim
        return pace(row - self.sent, moment - time.monotonic(), self._slowest, self._fastest)


@dataclass(frozen=True)
class LivePlan:
    """The readings to send, their pace, and how the second model is trained."""

    table: ReadingTable
    accepted: int  # readings that the forecasters will accept
    fastest: float  # readings per second
    retrain_s: float  # expected time of ingest and retraining
    retrain_options: tuple[str, ...]


@dataclass(frozen=True)
class Decision:
    """The gate's decision about the second model."""

    version: int
    promoted: bool
    reason: str  # in the gate's words

    @property
    def standing(self) -> str:
        """The decision in words, for the terminal and the report."""
        if self.promoted:
            return f"champion. The gate {self.reason}"
        return (
            f"not champion; the first model stays. The gate {self.reason}. The gate exists for this case: the demo "
            "does not promote a worse model to show a model swap"
        )


@dataclass(frozen=True)
class LiveOutcome:
    """The forecasts of the live part, and the gate's decision about the second model."""

    arrivals: Arrivals
    retraining: tuple[float, float]  # time of day at which the second training began and ended
    decision: Decision


Watcher = Callable[[StreamTail, str, list[LiveForecast]], None]


class LivePart:
    """Sends the plan's readings to running forecasters and watches the forecasts."""

    def __init__(
        self, settings: Settings, children: Children, forecasters: Sequence[Child], registry: Registry, plan: LivePlan
    ) -> None:
        self._settings = settings
        self._children = children
        self._forecasters = forecasters
        self._registry = registry
        self._plan = plan
        self._sender = Sender(settings, plan.table, plan.fastest)
        self._jobs: list[Child] = []
        self._arrivals: list[tuple[float, float, int, int]] = []
        self._seen: Counter[int] = Counter()  # forecasts by model version
        self._retraining = (0.0, 0.0)
        self._decision = Decision(0, False, "")

    def run(self, watch: Watcher) -> LiveOutcome:
        """Return when every accepted reading has its forecast, or after a minute without any forecast.

        Raises:
            StreamgruError: a forecaster ended, a command failed, or a reading could not be sent.
        """
        try:
            with StreamTail(self._settings) as tail:
                progressed_s, forecasts = time.monotonic(), 0
                for doing in self._script(tail):
                    live_forecasts = tail.poll(POLL_S)
                    self._record(live_forecasts)
                    watch(tail, doing, live_forecasts)
                    self._children.require_running(self._forecasters)
                    if tail.forecasts > forecasts or any(job.is_running() for job in self._jobs):
                        progressed_s, forecasts = time.monotonic(), tail.forecasts
                    if time.monotonic() - progressed_s > STALLED_S:
                        break  # the audit names the missing forecasts
        finally:
            self._sender.stop()
        table = np.array(self._arrivals, dtype=np.float64).reshape(-1, 4)
        arrivals = Arrivals(table[:, 0], table[:, 1], table[:, 2].astype(np.int64), table[:, 3].astype(np.int64))
        return LiveOutcome(arrivals, self._retraining, self._decision)

    def _script(self, tail: StreamTail) -> Iterator[str]:
        """The live part from begin to end; while a piece of work lasts, yields a note of it."""
        plan, sender = self._plan, self._sender
        rows = len(plan.table)
        new = round(RETRAIN_AFTER * rows)
        sender.aim(new, 0.0)
        sender.start()
        while sender.sent < new and sender.is_sending():
            yield "sending readings"
        sender.aim(round(SENT_BEFORE_GATE * rows), plan.retrain_s)
        began_s = time.time()
        yield from self._run("ingest-live", "ingest", doing="ingesting the new readings")
        yield from self._run("retrain-live", "-v", "retrain", *plan.retrain_options, doing="training a second model")
        self._retraining = (began_s, time.time())
        sender.aim(sender.sent + (rows - sender.sent) // 2, AFTER_GATE_S)
        yield from self._follow_gate()
        sender.aim(rows, AFTER_GATE_S)
        while sender.is_sending():
            yield "sending the last readings"
        while tail.forecasts < plan.accepted:
            yield "waiting for the last forecasts"

    def _follow_gate(self) -> Iterator[str]:
        """Note the gate's decision; if the second model is champion, wait until it forecasts all sensors."""
        newest = self._registry.versions()[0]
        promoted = self._registry.resolve(CHAMPION) == newest.version
        self._decision = Decision(newest.version, promoted, newest.tags.get("gate.reason", ""))
        deadline = time.monotonic() + TAKEOVER_S
        sensors = len(self._plan.table.sensors)
        while promoted and self._seen[newest.version] < sensors and time.monotonic() < deadline:
            yield f"version {newest.version} is champion and warms up"
            if not self._sender.is_sending():
                return

    def _run(self, name: str, *arguments: str, doing: str) -> Iterator[str]:
        job = self._children.start(name, *arguments)
        self._jobs.append(job)
        while job.is_running():
            yield f"{doing}: {note}" if (note := job.doing()) else doing
            self._sender.is_sending()
        job.require_success()

    def _record(self, live_forecasts: list[LiveForecast]) -> None:
        for live_forecast in live_forecasts:
            forecast, delay_s = live_forecast.forecast, live_forecast.delay_s
            self._seen[forecast.model.version] += 1
            delay_s = float("nan") if delay_s is None else delay_s
            self._arrivals.append((live_forecast.arrived_s, delay_s, forecast.model.version, forecast.input.partition))
