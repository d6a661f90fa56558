"""Forecasts beside the readings that they follow, as both come in: the reader and table behind `watch` and `demo`."""

import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from kafka import TopicPartition
from rich.markup import escape
from rich.table import Table

from pipeline.kafka.batch_consumer import FetchedRecord, read_fast
from pipeline.kafka.clients import make_consumer, partition_count, translate_errors
from pipeline.messages import Forecast, ReadingDecoder, Rejected, decode_forecast
from pipeline.settings import Settings

SHOWN_STEPS: Final = (1, 6, 24)
# Readings kept until their forecast comes; duplicates and late ones wait in vain, so there is a limit (about 50 MB).
_MAX_PENDING_READINGS: Final = 100_000
_ROWS_WITHOUT_TERMINAL: Final = 50


@dataclass(frozen=True)
class LiveForecast:
    """A forecast and the reading it follows, seen by a reader of committed records."""

    forecast: Forecast
    values: dict[str, float] | None  # of the reading, by feature, NaN where missing; None where it was not seen
    sent_s: float | None  # time of day at which the reading was sent
    arrived_s: float  # time of day at which this reader had the forecast
    live: bool  # came in after the reader started, not from its look back

    @property
    def delay_s(self) -> float | None:
        """From the sending of the reading until this reader had the forecast; none for what lay there already."""
        return self.arrived_s - self.sent_s if self.live and self.sent_s is not None else None


@dataclass(frozen=True)
class _PendingReading:
    values: tuple[float, ...]
    sent_ms: int


class StreamTail:
    """Follows readings and forecasts from now on; reads without a group, so that it never moves anybody's offsets.

    ``look_back`` records of each partition are read first, for what is known already; None goes back to the beginning.
    Use it as a context manager.

    Raises:
        KafkaError: no broker answers, or a topic is missing.
    """

    def __init__(self, settings: Settings, *, sensors: Iterable[str] = (), look_back: int | None = 0) -> None:
        self.readings = 0
        self.forecasts = 0
        self.known_sensors: set[str] = set()
        self._settings = settings
        self._wanted = frozenset(sensor.encode() for sensor in sensors)
        self._decoder = ReadingDecoder(settings.features)
        self._pending: OrderedDict[tuple[int, int], _PendingReading] = OrderedDict()
        self._consumer = read_fast(make_consumer(settings))
        try:
            with translate_errors("following readings and forecasts", settings):
                topics = settings.kafka.topics
                # The readings' end first: whatever is forecast after that has its reading in sight, or lies before it.
                self._first_readings, _ = self._positions(topics.readings, look_back)
                first_forecasts, self._live_from = self._positions(topics.forecasts, look_back)
                if look_back is None:
                    self._live_from = first_forecasts
                self._consumer.assign([*self._first_readings, *first_forecasts])
                for partition, offset in {**self._first_readings, **first_forecasts}.items():
                    self._consumer.seek(partition, offset)
        except BaseException:
            self.close()
            raise

    def _positions(self, topic: str, look_back: int | None) -> tuple[dict[Any, int], dict[Any, int]]:
        """Where to start reading each partition, and where it ends now."""
        partitions = [TopicPartition(topic, number) for number in range(partition_count(self._consumer, topic))]
        begins, ends = self._consumer.beginning_offsets(partitions), self._consumer.end_offsets(partitions)
        if look_back is None:
            return begins, ends
        return {tp: max(begins[tp], ends[tp] - look_back) for tp in partitions}, ends

    def poll(self, timeout_s: float) -> list[LiveForecast]:
        """The forecasts that came in, each with its reading, waiting up to ``timeout_s`` for the first."""
        with translate_errors("following readings and forecasts", self._settings):
            batches = self._consumer.poll(timeout_ms=round(timeout_s * 1_000))
        # Readings first: a forecast that came with its reading in one poll then finds it.
        forecasts = []
        for partition, records in batches.items():
            if partition.topic == self._settings.kafka.topics.readings:
                for record in records:
                    self._add_reading(partition.partition, record)
            else:
                forecasts += [(record, partition) for record in records]
        arrived_s = time.time()
        return [
            self._join_reading(record, arrived_s, record.offset >= self._live_from[partition])
            for record, partition in forecasts
            if self._is_wanted(record.key)
        ]

    def _add_reading(self, partition: int, record: FetchedRecord) -> None:
        if not self._is_wanted(record.key):
            return
        try:
            reading = self._decoder.decode(record.key, record.value)
        except Rejected:
            return  # the forecaster sets it aside, with the reason
        self.readings += 1
        self._pending[partition, record.offset] = _PendingReading(reading.values, record.timestamp)
        if len(self._pending) > _MAX_PENDING_READINGS:
            self._pending.popitem(last=False)

    def _join_reading(self, record: Any, arrived_s: float, live: bool) -> LiveForecast:
        self.forecasts += live
        forecast = decode_forecast(record.value)
        reading = self._pending.pop((forecast.input.partition, forecast.input.offset), None)
        if reading is None:
            return LiveForecast(forecast, None, None, arrived_s, live)
        values = dict(zip(self._settings.features, reading.values, strict=True))
        return LiveForecast(forecast, values, reading.sent_ms / 1_000, arrived_s, live)

    def _is_wanted(self, key: bytes | None) -> bool:
        if key is None:
            return False
        self.known_sensors.add(key.decode(errors="replace"))
        return not self._wanted or key in self._wanted

    def close(self) -> None:
        """Leave the broker."""
        self._consumer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class LatestForecasts:
    """The latest forecast of each sensor, as a table."""

    def __init__(self) -> None:
        self._latest: OrderedDict[str, LiveForecast] = OrderedDict()  # the sensor seen last stands last

    def update(self, live_forecasts: Iterable[LiveForecast]) -> None:
        """Take in what ``StreamTail.poll`` returned."""
        for live_forecast in live_forecasts:
            sensor = live_forecast.forecast.sensor_id
            self._latest[sensor] = live_forecast
            self._latest.move_to_end(sensor)

    def table(self, caption: str, rows: int = _ROWS_WITHOUT_TERMINAL) -> Table:
        """One row per sensor and target, the ``rows`` freshest at most, in the order of the sensors' names."""
        steps = shown_steps(
            max((_horizon(live_forecast.forecast) for live_forecast in self._latest.values()), default=24)
        )
        table = Table(caption=caption, caption_justify="left", expand=False, pad_edge=False)
        table.add_column("sensor", style="bold", no_wrap=True)
        table.add_column("issued at (UTC)", no_wrap=True)
        table.add_column("target", no_wrap=True)
        table.add_column("now", justify="right", no_wrap=True)
        for step in steps:
            table.add_column(f"+{step}", justify="right", no_wrap=True)
        table.add_column("model", no_wrap=True)
        table.add_column("state", no_wrap=True)
        table.add_column("delay", justify="right", no_wrap=True)
        for sensor in sorted(self._freshest(rows)):
            live_forecast = self._latest[sensor]
            forecast = live_forecast.forecast
            for number, target in enumerate(forecast.quantiles):
                first = number == 0
                table.add_row(
                    escape(sensor) if first else "",
                    f"{forecast.issued_at:%Y-%m-%d %H:%M}" if first else "",
                    escape(target),
                    _now(live_forecast, target),
                    *(interval(forecast, target, step) for step in steps),
                    f"v{forecast.model.version}" if first else "",
                    ("warm" if forecast.state.warm else "[yellow]cold[/]") if first else "",
                    (f"{live_forecast.delay_s * 1_000:.0f} ms" if live_forecast.delay_s is not None else "-")
                    if first
                    else "",
                )
        return table

    def _freshest(self, rows: int) -> list[str]:
        names = list(self._latest)
        per_sensor = max((len(live_forecast.forecast.quantiles) for live_forecast in self._latest.values()), default=1)
        return names[-max(1, rows // per_sensor) :]


def format_line(live_forecast: LiveForecast) -> str:
    """A forecast in one line, for output that is not a terminal."""
    forecast = live_forecast.forecast
    targets = "; ".join(
        f"{target} {_now(live_forecast, target)}, "
        + " ".join(f"+{step}: {interval(forecast, target, step)}" for step in shown_steps(_horizon(forecast)))
        for target in forecast.quantiles
    )
    state = "warm" if forecast.state.warm else "cold"
    return f"{forecast.issued_at:%Y-%m-%dT%H:%MZ} {forecast.sensor_id}: {targets} (v{forecast.model.version}, {state})"


def shown_steps(horizon_steps: int) -> list[int]:
    """The steps ahead that a table has room for."""
    return sorted({min(step, horizon_steps) for step in SHOWN_STEPS})


def interval(forecast: Forecast, target: str, step: int) -> str:
    """Median, and between brackets the outermost quantiles, of a forecast ``step`` cadences ahead."""
    levels = sorted(forecast.quantiles[target], key=float)
    low, median, high = (forecast.quantiles[target][level][step - 1] for level in (levels[0], "0.5", levels[-1]))
    return f"{median:.4g} ({low:.3g} … {high:.3g})"


def _now(live_forecast: LiveForecast, target: str) -> str:
    value = live_forecast.values.get(target) if live_forecast.values is not None else None
    return f"{value:.4g}" if value is not None and value == value else "-"


def _horizon(forecast: Forecast) -> int:
    return len(next(iter(next(iter(forecast.quantiles.values())).values())))
