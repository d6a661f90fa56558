"""A sensor's latest readings beside its forecasts, read from Kafka by their places, and its scores by horizon.

Letters: n forecasts in order of time, K targets, h steps of the horizon.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.kafka.record_batch import FetchedRecord
from pipeline.live.record_log import RecordPlace
from pipeline.live.record_reader import RecordMissing, RecordReaders
from pipeline.live.scores import Judged, ScoreSums
from pipeline.messages import Forecast, Rejected, decode_forecast, microseconds, quantile_key
from pipeline.readings_format.decoder import RecordDecoder, make_decoder
from pipeline.settings import Settings

MOST_RECORDS: Final = 400  # forecasts that one answer reads
_LOW, _MEDIAN, _HIGH = 0, 1, 2


@dataclass(frozen=True)
class SensorHistory:
    """Forecasts of one sensor, oldest first, with the readings that they follow."""

    settings: Settings
    records: Sequence[FetchedRecord]  # n forecasts as committed
    forecasts: Sequence[Forecast]
    values: NDArray[np.float64]  # (n, F) of the readings; NaN if missing

    def __len__(self) -> int:
        return len(self.forecasts)

    @cached_property
    def issued_at_us(self) -> NDArray[np.int64]:
        """(n,) the times of the readings."""
        return np.array([microseconds(forecast.issued_at) for forecast in self.forecasts], np.int64)

    @cached_property
    def quantiles(self) -> NDArray[np.float64]:
        """(n, K, h, 3) outermost quantiles and median; NaN if a forecast lacks them."""
        settings = self.settings
        levels = tuple(map(quantile_key, (settings.quantiles[0], 0.5, settings.quantiles[-1])))
        found = np.full((len(self), len(settings.targets), settings.horizon_steps, 3), np.nan)
        for at, forecast in enumerate(self.forecasts):
            for place, target in enumerate(settings.targets):
                for which, level in enumerate(levels):
                    steps = forecast.quantiles.get(target, {}).get(level, [])[: settings.horizon_steps]
                    found[at, place, : len(steps), which] = steps
        return found

    @cached_property
    def targets(self) -> NDArray[np.float64]:
        """(n, K) the values of the targets."""
        return self.values[:, [self.settings.features.index(target) for target in self.settings.targets]]

    def issued_before(self, steps: int) -> NDArray[np.int64]:
        """(n,) the index of the forecast that was issued ``steps`` cadences before each; -1 without one."""
        wanted = self.issued_at_us - steps * self.settings.cadence_us
        at = np.searchsorted(self.issued_at_us, wanted - self.settings.cadence_us // 2)
        at = at.clip(max=max(0, len(self) - 1))
        if not len(self):
            return at
        return np.where(np.abs(self.issued_at_us[at] - wanted) <= self.settings.cadence_us // 2, at, -1)

    def made_before(self, steps: int) -> NDArray[np.float64]:
        """(n, K, 3) the forecasts for each time that were made ``steps`` cadences before; NaN without a forecast."""
        at = self.issued_before(steps)
        found = np.full((len(self), len(self.settings.targets), 3), np.nan)
        if 1 <= steps <= self.settings.horizon_steps:
            found[at >= 0] = self.quantiles[at[at >= 0], :, steps - 1]
        return found

    def scores(self) -> dict[int, ScoreSums]:
        """Step -> the scores of the forecasts of that step; steps without a value are absent."""
        found = {}
        for step in range(1, min(self.settings.horizon_steps, len(self)) + 1):
            at, made = self.issued_before(step), self.made_before(step)
            persistence = np.where((at >= 0)[:, None], self.targets[at], np.nan)
            sums = ScoreSums(len(self.settings.targets))
            sums.add(
                Judged(*_float32(self.targets, made[..., _LOW], made[..., _MEDIAN], made[..., _HIGH], persistence))
            )
            if sums.judged.any():
                found[step] = sums
        return found


class HistoryReader:
    """Reads histories; any thread may."""

    def __init__(self, settings: Settings, readers: RecordReaders) -> None:
        self._settings = settings
        self._readers = readers
        self._decoder: RecordDecoder = make_decoder(settings)

    def read(self, places: Sequence[RecordPlace]) -> SensorHistory:
        """The history at the places of one sensor's forecasts, without records that are deleted or cannot be read.

        Raises:
            KafkaError: no broker answers.
        """
        topics = self._settings.kafka.topics
        forecasts = self._records(topics.forecasts, {(place.partition, place.offset) for place in places})
        decoded: dict[tuple[int, int], Forecast] = {
            where: forecast for where, record in forecasts.items() if (forecast := _decoded(record)) is not None
        }
        readings = self._records(
            topics.readings, {(found.input.partition, found.input.offset) for found in decoded.values()}
        )
        order = sorted(decoded, key=lambda where: (decoded[where].issued_at, where))
        chosen = [decoded[where] for where in order]
        values = [self._values(readings.get((found.input.partition, found.input.offset))) for found in chosen]
        return SensorHistory(
            self._settings,
            [forecasts[where] for where in order],
            chosen,
            np.array(values, np.float64).reshape(len(chosen), len(self._settings.features)),
        )

    def forecast_before(self, places: Sequence[RecordPlace], steps: int) -> tuple[RecordPlace, FetchedRecord] | None:
        """The forecast that was issued ``steps`` cadences before the newest of the places; None without one.

        It reads some ten records: the places are in order of time, newest first.

        Raises:
            KafkaError: no broker answers.
        """
        cadence_us = self._settings.cadence_us
        newest = self._issued_at_us(places[0])
        wanted = newest - steps * cadence_us
        low, high = 0, len(places)  # the first place that was issued at the wanted time or before
        while low < high:
            middle = (low + high) // 2
            if self._issued_at_us(places[middle]) <= wanted + cadence_us // 2:
                high = middle
            else:
                low = middle + 1
        if low == len(places) or abs(self._issued_at_us(places[low]) - wanted) > cadence_us // 2:
            return None
        return places[low], self.record(places[low])

    def record(self, place: RecordPlace) -> FetchedRecord:
        """The committed record of a forecast.

        Raises:
            RecordMissing: retention has deleted it.
            KafkaError: no broker answers.
        """
        return self._readers.read(self._settings.kafka.topics.forecasts, place.partition, place.offset)

    def _issued_at_us(self, place: RecordPlace) -> int:
        forecast = _decoded(self.record(place))
        if forecast is None:
            raise RecordMissing(f"the record at offset {place.offset} of partition {place.partition} is not a forecast")
        return microseconds(forecast.issued_at)

    def _records(self, topic: str, where: set[tuple[int, int]]) -> Mapping[tuple[int, int], FetchedRecord]:
        found: dict[tuple[int, int], FetchedRecord] = {}
        for partition in sorted({number for number, _ in where}):
            offsets = sorted(offset for number, offset in where if number == partition)
            try:
                records = self._readers.read_all(topic, partition, offsets)
            except RecordMissing:
                records = self._those_left(topic, partition, offsets)
            found |= {(partition, offset): record for offset, record in records.items()}
        return found

    def _those_left(self, topic: str, partition: int, offsets: Sequence[int]) -> dict[int, FetchedRecord]:
        """The newest records of a partition that retention has not deleted."""
        found: dict[int, FetchedRecord] = {}
        for offset in reversed(offsets):
            try:
                found |= self._readers.read_all(topic, partition, [offset])
            except RecordMissing:
                break
        return found

    def _values(self, record: FetchedRecord | None) -> Sequence[float]:
        missing = (np.nan,) * len(self._settings.features)
        if record is None:
            return missing
        try:
            return self._decoder.decode(record.key, record.value, record.headers, record.timestamp).values
        except Rejected:  # the settings have changed since the forecast
            return missing


def _decoded(record: FetchedRecord) -> Forecast | None:
    """The forecast in a record; None if a later step of it cannot be read, which the live index does not look at."""
    try:
        return decode_forecast(record.value or b"")
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _float32(*columns: NDArray[Any]) -> list[NDArray[np.float32]]:
    return [column.astype(np.float32) for column in columns]
