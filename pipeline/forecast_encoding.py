"""Encodes the forecasts of a whole micro-batch, several times as fast as msgspec encodes ``messages.Forecast``.

Each record is joined from the texts of whole columns (``pipeline.text.json_columns``) and from constant pieces. A test
compares the bytes with those of msgspec.
"""

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from model.bounds import within_limits
from model.config import ModelConfig
from model.experts import AdaptationConfig
from pipeline.errors import ModelUnusable
from pipeline.event_headers import constant_headers, event_subject
from pipeline.kafka.batch_producer import Varints, encode_varint
from pipeline.messages import ModelId, quantile_key
from pipeline.settings import Settings
from pipeline.text.json_columns import float_rows, integer_texts, time_texts
from pipeline.text.visible_text import visible

if TYPE_CHECKING:
    from model.stepper import Forecasts  # imports torch, which publish and ingest do without

# Decimal digits from the leading digit of the sensor's scale on. float32 has no more, and short numbers save bytes.
SIGNIFICANT_DIGITS: Final = 7
# Largest power of ten by which rounding multiplies or divides. It suffices for scales from 1e-53 to 1e67, and a number
# of up to 1e30 stays finite.
_MOST_DECIMALS: Final = 60

WEIGHT_PARTS: Final = 1_000  # parts of 1 that a weight is rounded to: three decimals


class ForecastEncoder:
    """Encodes forecasts of one model version under one set of settings. Not thread-safe."""

    def __init__(self, settings: Settings, model: ModelId, config: ModelConfig) -> None:
        self._model = model
        self._targets = config.targets
        self._quantiles = config.quantiles
        self._after_time = b'","cadence_s":' + _json(settings.cadence_s) + b',"quantiles":{'
        self._after_quantiles = (
            b']}},"model":' + _json(model) + b',"settings":' + _json(settings.fingerprint) + b',"input":{"topic":'
        )
        self._heads = _Heads()
        self._subjects = _Subjects()
        self._varints = Varints()
        self._separators = self._quantile_separators()
        adapting = AdaptationConfig.of(config, settings.adaptation)
        self._weights = [] if adapting.level == "off" else _weight_texts(self._targets, adapting.experts)
        constant = constant_headers(model.name)
        identified = b"".join(_header(name, value) for name, value in constant) + _name("ce_id")
        # number of headers besides the constant ones -> header block up to the value of `ce_id`
        self._header_starts = {more: encode_varint(len(constant) + more) + identified for more in (2, 3, 4)}

    def encode(
        self,
        topic: str,
        partitions: Sequence[int],
        sensor_ids: Sequence[str],
        timestamp_us: np.ndarray,
        offsets: np.ndarray,
        forecasts: "Forecasts",
        traceparents: Sequence[bytes | None] | None = None,
    ) -> tuple[list[bytes], list[bytes]]:
        """Values and header blocks (for ``batch_producer``) of n forecasts.

        Args:
            topic: topic of the readings.
            partitions: n, the readings' partitions.
            sensor_ids: n, the readings' sensors.
            timestamp_us: (n,) int64, the readings' timestamps.
            offsets: (n,) int64, the readings' offsets.
            forecasts: n, the forecasts after each reading.
            traceparents: n, the readings' trace headers; None if no reading has one.

        Raises:
            ModelUnusable: a rounded forecast is non-finite; names the first sensor and offset.
        """
        rounded = round_to_scale(forecasts.quantiles, forecasts.scale, forecasts.limits)
        self._check_finite(rounded, sensor_ids, offsets)
        count, per_record = len(sensor_ids), len(self._separators)
        bodies = float_rows(rounded.reshape(-1, rounded.shape[-1]))
        times, offset_texts = time_texts(timestamp_us), integer_texts(offsets)
        before = self._after_quantiles + _json(topic) + b',"partition":'
        positions = {partition: before + _json(partition) + b',"offset":' for partition in set(partitions)}
        columns: list[Iterable[bytes]] = [map(self._heads.__getitem__, sensor_ids), times]
        for index, separator in enumerate(self._separators):
            columns += [repeat(separator, count), bodies[index::per_record]]
        columns += [map(positions.__getitem__, partitions), offset_texts]
        columns += [repeat(b'},"state":{"origin":', count), integer_texts(forecasts.origin)]
        columns += [repeat(b',"steps":', count), integer_texts(forecasts.steps)]
        end = b',"weights":{' if self._weights else b"}"
        ends = (b',"warm":false}' + end, b',"warm":true}' + end)
        columns.append([ends[warm] for warm in forecasts.warm.tolist()])
        if self._weights:
            parts = np.rint(forecasts.weights * WEIGHT_PARTS).astype(np.int64).reshape(count, len(self._weights))
            columns += [map(texts.__getitem__, parts[:, at].tolist()) for at, texts in enumerate(self._weights)]
        values = list(map(b"".join, zip(*columns, strict=True)))
        sources = {partition: f"{topic}-{partition}-".encode() for partition in positions}
        return values, self._headers(
            list(map(sources.__getitem__, partitions)),
            offset_texts,
            times,
            list(map(self._subjects.__getitem__, sensor_ids)),
            traceparents,
        )

    def _headers(
        self,
        sources: Sequence[bytes],
        offsets: Sequence[bytes],
        times: Sequence[bytes],
        subjects: Sequence[bytes],
        traceparents: Sequence[bytes | None] | None,
    ) -> list[bytes]:
        """Header blocks in the order of ``event_headers.forecast_headers``: the constant headers first."""
        after = f"-{self._model.version}".encode()
        around = len(after)
        time_starts = {length: _header_start("ce_time", length) for length in set(map(len, times))}
        starts = self._header_starts
        count = len(times)
        columns: list[Iterable[bytes]] = [
            [self._varints[len(start) + len(offset) + around] for start, offset in zip(sources, offsets, strict=True)],
            sources,
            offsets,
            repeat(after, count),
            [time_starts[len(time)] for time in times],
            times,
            subjects,
        ]
        if traceparents is not None:
            columns.append([b"" if parent is None else _header("traceparent", parent) for parent in traceparents])
        if traceparents is None and all(subjects):
            columns.insert(0, repeat(starts[3], count))
        else:
            parents = traceparents or repeat(None, count)
            numbers = zip(subjects, parents, strict=True)
            columns.insert(0, [starts[2 + (subject != b"") + (parent is not None)] for subject, parent in numbers])
        return list(map(b"".join, zip(*columns, strict=True)))

    def _quantile_separators(self) -> list[bytes]:
        """The JSON text before each of the K * Q lists of numbers, in the order of the forecasts' axes."""
        separators: list[bytes] = []
        for target in self._targets:
            opening = b"]}," if separators else self._after_time
            for index, level in enumerate(self._quantiles):
                before = opening + _json(target) + b":{" if index == 0 else b"],"
                separators.append(before + _json(quantile_key(level)) + b":[")
        return separators

    def _check_finite(self, values: np.ndarray, sensor_ids: Sequence[str], offsets: np.ndarray) -> None:
        finite = np.isfinite(values)
        if finite.all():
            return
        row = int(np.argmin(finite.reshape(len(values), -1).all(axis=1)))
        raise ModelUnusable(
            f"model {self._model.name} version {self._model.version} makes a non-finite forecast for sensor "
            f"{visible(sensor_ids[row])} at offset {int(offsets[row])}. Promote another version; `streamgru models` "
            "lists them"
        )


def round_to_scale(quantiles: np.ndarray, scale: np.ndarray, limits: np.ndarray | None = None) -> np.ndarray:
    """Quantiles (n, K, Q, h), rounded to seven significant digits of their sensor's scale (n, K).

    A scale of 50 leaves five decimals, a scale of 5e6 none. A zero or non-finite scale leaves them unrounded. Rounding
    crosses none of the ``limits`` (n, K, 2) and leaves whole numbers between them; (n, 0, 2) stands for no limits.
    """
    known = np.isfinite(scale) & (scale > 0)
    leading = np.ceil(np.log10(scale, out=np.zeros_like(scale, dtype=np.float64), where=known))
    decimals = np.clip(SIGNIFICANT_DIGITS - leading, -_MOST_DECIMALS, _MOST_DECIMALS)[:, :, None, None]
    power = 10.0 ** np.abs(decimals)
    rounded = np.where(decimals >= 0, np.rint(quantiles * power) / power, np.rint(quantiles / power) * power)
    result: np.ndarray = np.where(known[:, :, None, None], rounded, quantiles) + 0.0  # -0.0 becomes 0.0
    if limits is None or not limits.size:
        return result
    whole = np.isfinite(limits).any(axis=2)[:, :, None, None] & (quantiles == np.rint(quantiles))  # perhaps a count
    kept = within_limits(np.where(whole, quantiles, result), limits)
    return np.maximum.accumulate(kept, axis=2)  # a whole number may have been rounded past by its neighbour


class _Heads(dict[str, bytes]):
    """Sensor id -> JSON text of its forecasts up to the time; made once per sensor."""

    def __missing__(self, sensor_id: str) -> bytes:
        head = self[sensor_id] = b'{"sensor_id":' + _json(sensor_id) + b',"issued_at":"'
        return head


class _Subjects(dict[str, bytes]):
    """Sensor id -> the header ``ce_subject``, made once per sensor; empty if the sensor id cannot be a subject."""

    def __missing__(self, sensor_id: str) -> bytes:
        subject = event_subject(sensor_id)
        header = self[sensor_id] = b"" if subject is None else _header("ce_subject", subject)
        return header


def _weight_texts(targets: Sequence[str], experts: Sequence[str]) -> list[list[bytes]]:
    """Per target and expert, the JSON text of each possible weight, indexed by parts of ``WEIGHT_PARTS``."""
    texts = []
    for target in targets:
        for expert in experts:
            opening = (b"" if target == targets[0] else b",") + _json(target) + b":{" if expert == experts[0] else b","
            closing = b"}" if expert == experts[-1] else b""
            closing += b"}}" if closing and target == targets[-1] else b""
            name = opening + _json(expert) + b":"
            texts.append([name + _json(part / WEIGHT_PARTS) + closing for part in range(WEIGHT_PARTS + 1)])
    return texts


def _json(value: object) -> bytes:
    return msgspec.json.encode(value)


def _name(name: str) -> bytes:
    return encode_varint(len(name)) + name.encode()


def _header_start(name: str, value_length: int) -> bytes:
    return _name(name) + encode_varint(value_length)


def _header(name: str, value: bytes) -> bytes:
    return _header_start(name, len(value)) + value
