"""Live readings joined with their forecasts: the consumer and the table of `watch` and `demo`."""

import time
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from deploy.literal_console import styled
from pipeline.kafka.batch_consumer import read_fast
from pipeline.kafka.clients import make_consumer, translate_errors
from pipeline.kafka.look_back import look_back as begin_at
from pipeline.kafka.record_batch import FetchedRecord
from pipeline.messages import Forecast, Rejected, decode_forecast
from pipeline.readings_format.decoder import make_decoder
from pipeline.settings import Settings
from pipeline.text.visible_text import visible

SHOWN_STEPS: Final = (1, 6, 24)
# Readings kept until their forecast arrives, about 50 MB. The limit drops duplicates and late readings, which get none.
_MAX_PENDING_READINGS: Final = 100_000
_ROWS_WITHOUT_TERMINAL: Final = 50


@dataclass(frozen=True)
class LiveForecast:
    """A committed forecast and its reading."""

    forecast: Forecast
    values: dict[str, float] | None  # feature -> value of the reading, NaN if missing; None if the reading was not seen
    sent_s: float | None  # time of day at which the reading was sent
    arrived_s: float  # time of day at which this consumer received the forecast
    live: bool  # was published after this consumer started

    @property
    def delay_s(self) -> float | None:
        """Seconds from the sending of the reading to the arrival of its forecast; None for one of the look back."""
        return self.arrived_s - self.sent_s if self.live and self.sent_s is not None else None


@dataclass(frozen=True)
class _PendingReading:
    values: tuple[float, ...]
    sent_ms: int


class StreamTail(AbstractContextManager["StreamTail"]):
    """Consumes readings and forecasts from now on, without a consumer group, so that it commits no offsets.

    It first reads the last ``look_back`` records of each partition, or all for None. Use it as a context manager.

    Raises:
        KafkaError: no broker answers, or a topic is missing.
    """

    def __init__(self, settings: Settings, *, sensors: Iterable[str] = (), look_back: int | None = 0) -> None:
        self.readings = 0
        self.forecasts = 0
        self.known_sensors: set[str] = set()
        self._settings = settings
        # An argument that is not UTF-8 stands for its bytes, which are the id of no sensor.
        self._wanted = frozenset(sensor.encode(errors="surrogateescape") for sensor in sensors)
        self._decoder = make_decoder(settings)
        self._pending: OrderedDict[tuple[int, int], _PendingReading] = OrderedDict()
        self._consumer = read_fast(make_consumer(settings), settings.kafka)
        try:
            with translate_errors("following readings and forecasts", settings):
                topics = settings.kafka.topics
                # Readings first: after the forecasts, a reading sent in between would be skipped, and its forecast
                # would arrive without it.
                first_readings, _ = begin_at(self._consumer, topics.readings, look_back)
                first_forecasts, self._live_from = begin_at(self._consumer, topics.forecasts, look_back)
                if look_back is None:
                    self._live_from = first_forecasts
                self._consumer.assign([*first_readings, *first_forecasts])
                for partition, offset in {**first_readings, **first_forecasts}.items():
                    self._consumer.seek(partition, offset)
        except BaseException:
            self.close()
            raise

    def poll(self, timeout_s: float) -> list[LiveForecast]:
        """New forecasts with their readings; waits up to ``timeout_s`` for the first."""
        with translate_errors("following readings and forecasts", self._settings):
            batches = self._consumer.poll(timeout_ms=round(timeout_s * 1_000))
        # Readings first: one poll may return a forecast together with its reading.
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
        if self._decoder.is_keyed_by_sensor and not self._is_wanted(record.key):
            return
        try:
            reading = self._decoder.decode(record.key, record.value, record.headers, record.timestamp)
        except Rejected:
            return  # the forecaster writes a dead letter
        if not self._decoder.is_keyed_by_sensor and not self._is_wanted(reading.sensor_id.encode()):
            return
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

    def __exit__(self, *error: object) -> None:
        self.close()


class LatestForecasts:
    """The latest forecast of each sensor, as a table."""

    def __init__(self) -> None:
        self._latest: OrderedDict[str, LiveForecast] = OrderedDict()  # in order of arrival

    def update(self, live_forecasts: Iterable[LiveForecast]) -> None:
        """Add the forecasts of a ``StreamTail.poll``."""
        for live_forecast in live_forecasts:
            sensor = live_forecast.forecast.sensor_id
            self._latest[sensor] = live_forecast
            self._latest.move_to_end(sensor)

    def table(self, caption: str, rows: int = _ROWS_WITHOUT_TERMINAL) -> Table:
        """A row per sensor with a line per target: the latest sensors that fit into ``rows`` lines, by name."""
        steps = shown_steps(max((_horizon(latest.forecast) for latest in self._latest.values()), default=24))
        table = Table(caption=caption, caption_justify="left", expand=False, pad_edge=False)
        for column in ("sensor", "issued at (UTC)", "target", "now", *(f"+{step}" for step in steps)):
            table.add_column(column, justify="right" if column.startswith(("now", "+")) else "left", no_wrap=True)
        for column in ("model", "state", "delay"):
            table.add_column(column, justify="right" if column == "delay" else "left", no_wrap=True)
        for sensor in sorted(self._freshest(rows)):
            latest = self._latest[sensor]
            forecast, targets = latest.forecast, list(latest.forecast.quantiles)
            table.add_row(
                styled(sensor, "bold"),
                f"{forecast.issued_at:%Y-%m-%d %H:%M}",
                Text("\n".join(map(visible, targets))),
                "\n".join(_now(latest, target) for target in targets),
                *("\n".join(interval(forecast, target, step) for target in targets) for step in steps),
                f"v{forecast.model.version}",
                Text("warm") if forecast.state.warm else Text("cold", style="yellow"),
                "-" if latest.delay_s is None else f"{latest.delay_s * 1_000:.0f} ms",
            )
        return table

    def _freshest(self, rows: int) -> list[str]:
        per_sensor = max((len(latest.forecast.quantiles) for latest in self._latest.values()), default=1)
        return list(self._latest)[-max(1, rows // per_sensor) :]


def format_line(live_forecast: LiveForecast) -> str:
    """A forecast in one line, for an output that is not a terminal."""
    forecast = live_forecast.forecast
    targets = "; ".join(
        f"{visible(target)} {_now(live_forecast, target)}, "
        + " ".join(f"+{step}: {interval(forecast, target, step)}" for step in shown_steps(_horizon(forecast)))
        for target in forecast.quantiles
    )
    state = "warm" if forecast.state.warm else "cold"
    sensor = visible(forecast.sensor_id)
    return f"{forecast.issued_at:%Y-%m-%dT%H:%MZ} {sensor}: {targets} (v{forecast.model.version}, {state})"


def shown_steps(horizon_steps: int) -> list[int]:
    """The steps ahead that tables show."""
    return sorted({min(step, horizon_steps) for step in SHOWN_STEPS})


def interval(forecast: Forecast, target: str, step: int) -> str:
    """The forecast ``step`` cadences ahead: its median, and its outermost quantiles in brackets."""
    levels = sorted(forecast.quantiles[target], key=float)
    low, median, high = (forecast.quantiles[target][level][step - 1] for level in (levels[0], "0.5", levels[-1]))
    return f"{median:.4g} ({low:.3g} … {high:.3g})"


def _now(live_forecast: LiveForecast, target: str) -> str:
    value = live_forecast.values.get(target) if live_forecast.values is not None else None
    return f"{value:.4g}" if value is not None and value == value else "-"


def _horizon(forecast: Forecast) -> int:
    return len(next(iter(next(iter(forecast.quantiles.values())).values())))
