"""Live readings joined with their forecasts: the consumer and the table of `watch` and `demo`."""

import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

from rich.cells import cell_len
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
_TIME: Final = "time (UTC)"
# Least widths of columns. Most values fit, so that few new forecasts change which columns are shown.
_READING_WIDTH: Final = 7
_STEP_WIDTH: Final = 18


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
        self._groups = frozenset(name.encode() for name in settings.outlooks.groups)  # keys of outlooks
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
        is_keyed = self._decoder.is_keyed_by_sensor and record.key not in self._groups
        if is_keyed and not self._is_wanted(record.key):
            return
        try:
            reading = self._decoder.decode(record.key, record.value, record.headers, record.timestamp)
        except Rejected:
            return  # an outlook, or the forecaster writes a dead letter
        if not is_keyed and not self._is_wanted(reading.sensor_id.encode()):
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

    def table(self, caption: str, rows: int = _ROWS_WITHOUT_TERMINAL, width: int | None = None) -> Table:
        """A row per sensor with a line per target: the latest sensors that fit into ``rows`` lines, by name.

        If ``width`` is too small for all columns, the less important ones are left out. Only a long sensor id is cut.
        """
        steps = shown_steps(max((_horizon(latest.forecast) for latest in self._latest.values()), default=24))
        content = [_cells(self._latest[sensor], steps) for sensor in sorted(self._freshest(rows))]
        widths = {"sensor": 0, _TIME: 0, "target": 0, "reading": _READING_WIDTH}
        widths |= dict.fromkeys(map(_ahead, steps), _STEP_WIDTH) | {"model": 0, "state": 0, "delay": 0}
        for name, least in widths.items():
            lines = [line for cells in content for line in cells[name].plain.split("\n")]
            widths[name] = max(least, cell_len(name), *map(cell_len, lines))
        if width is not None:
            for name in (*map(_ahead, reversed(steps[1:])), "delay", "state", "model", _TIME):
                if _table_width(widths) <= width:
                    break
                del widths[name]
            widths["sensor"] = max(cell_len("sensor"), widths["sensor"] - max(0, _table_width(widths) - width))
        table = Table(caption=caption, caption_justify="left", expand=False, pad_edge=False)
        for name, needed in widths.items():
            is_number = name.startswith("+") or name in ("reading", "delay")
            table.add_column(name, justify="right" if is_number else "left", no_wrap=True, width=needed)
        for cells in content:
            table.add_row(*(cells[name] for name in widths))
        return table

    def _freshest(self, rows: int) -> list[str]:
        per_sensor = max((len(latest.forecast.quantiles) for latest in self._latest.values()), default=1)
        return list(self._latest)[-max(1, rows // per_sensor) :]


def _cells(latest: LiveForecast, steps: Iterable[int]) -> dict[str, Text]:
    """The cells of a forecast's row, by column."""
    forecast, targets = latest.forecast, list(latest.forecast.quantiles)
    return {
        "sensor": styled(forecast.sensor_id, "bold"),
        _TIME: Text(f"{forecast.issued_at:%Y-%m-%d %H:%M}"),
        "target": Text("\n".join(map(visible, targets))),
        "reading": Text("\n".join(_reading(latest, target) for target in targets)),
        **{_ahead(step): Text("\n".join(interval(forecast, target, step) for target in targets)) for step in steps},
        "model": Text(f"v{forecast.model.version}"),
        "state": Text("warm") if forecast.state.warm else Text("cold", style="yellow"),
        "delay": Text("-" if latest.delay_s is None else f"{latest.delay_s * 1_000:.0f} ms"),
    }


def _ahead(step: int) -> str:
    return f"+{step}"


def _table_width(widths: Mapping[str, int]) -> int:
    """The width of a table with such columns, with its lines and a space beside each."""
    return sum(widths.values()) + 3 * len(widths) - 1


def format_line(live_forecast: LiveForecast) -> str:
    """A forecast in one line, for an output that is not a terminal."""
    forecast = live_forecast.forecast
    targets = "; ".join(
        f"{visible(target)} {_reading(live_forecast, target)}, "
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


def _reading(live_forecast: LiveForecast, target: str) -> str:
    value = live_forecast.values.get(target) if live_forecast.values is not None else None
    return f"{value:.4g}" if value is not None and value == value else "-"


def _horizon(forecast: Forecast) -> int:
    return len(next(iter(next(iter(forecast.quantiles.values())).values())))
