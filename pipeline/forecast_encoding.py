"""Encodes the forecasts of a whole micro-batch, many times as fast as msgspec encodes ``messages.Forecast``.

``forecast_kernel`` writes all values into one buffer, and all header blocks into another. Numbers of a form that it
does not write, for example those of a sensor whose scale is 1e-10, are written by orjson and copied by the kernel. A
test compares the bytes with those of msgspec.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from model.bounds import within_limits
from model.config import ModelConfig
from model.experts import AdaptationConfig
from pipeline.errors import ModelUnusable
from pipeline.event_headers import constant_headers, event_subject
from pipeline.kafka.batch_producer import encode_varint
from pipeline.kafka.byte_strings import ByteStrings
from pipeline.messages import ModelId, quantile_key
from pipeline.settings import Settings
from pipeline.text.json_columns import float_rows
from pipeline.text.visible_text import visible

if TYPE_CHECKING:
    from model.stepper import Forecasts  # imports torch, which publish and ingest do without

# Decimal digits from the leading digit of the sensor's scale on. float32 has no more, and short numbers save bytes.
SIGNIFICANT_DIGITS: Final = 7
# Largest power of ten by which rounding multiplies or divides. It suffices for scales from 1e-53 to 1e67, and a number
# of up to 1e30 stays finite.
_MOST_DECIMALS: Final = 60

# The largest scales whose numbers have 60, 59 to -60 decimals. Comparisons with them give the same digits on every
# processor, which logarithms do not.
_SCALES: Final = np.array(
    [float(f"1e{SIGNIFICANT_DIGITS - decimals}") for decimals in range(_MOST_DECIMALS, -_MOST_DECIMALS - 1, -1)]
)
# Read from text, because the last bits of a computed power depend on the processor.
_POWERS_OF_TEN: Final = np.array([float(f"1e{exponent}") for exponent in range(_MOST_DECIMALS + 1)])

WEIGHT_PARTS: Final = 1_000  # parts of 1 that a weight is rounded to: three decimals


@dataclass(frozen=True)
class ForecastInputs:
    """The n readings that forecasts follow."""

    topic: str
    partitions: NDArray[np.int64]  # (n,)
    names: Sequence[str]  # sensor ids; they may repeat
    codes: NDArray[np.intp]  # (n,) the place of each reading's sensor in ``names``
    timestamp_us: NDArray[np.int64]  # (n,)
    offsets: NDArray[np.int64]  # (n,)
    traceparents: Sequence[bytes | None] | None = None  # None if no reading has a trace header

    def __len__(self) -> int:
        return len(self.codes)


class _Columns(NamedTuple):
    """The arguments of ``forecast_kernel.write_values`` about n forecasts."""

    quantiles: NDArray[np.float64]  # (n, K, Q, h)
    scale: NDArray[np.float64]  # (n, K)
    is_rounded: bool
    sensors: NDArray[np.int64]  # (n,)
    timestamp_us: NDArray[np.int64]  # (n,)
    partitions: NDArray[np.int64]  # (n,)
    offsets: NDArray[np.int64]  # (n,)
    origin: NDArray[np.int64]  # (n,)
    steps: NDArray[np.int64]  # (n,)
    warm: NDArray[np.bool_]  # (n,)
    weights: NDArray[np.float64]  # (n, K, E)


class _Pieces(NamedTuple):
    """Texts that follow each other, as ``forecast_kernel`` takes them."""

    data: NDArray[np.uint8]
    bounds: NDArray[np.int64]  # their ends after a 0

    @classmethod
    def of(cls, texts: Sequence[bytes]) -> "_Pieces":
        return cls(np.frombuffer(bytearray().join(texts), np.uint8), np.cumsum([0, *map(len, texts)]))


_NO_TEXTS: Final = _Pieces.of([])
_NOT_TRACED: Final = np.zeros(0, np.bool_)


class ForecastEncoder:
    """Encodes forecasts of one model version under one set of settings. Not thread-safe."""

    def __init__(self, settings: Settings, model: ModelId, config: ModelConfig) -> None:
        from pipeline import forecast_kernel  # numba loads slowly, and code that only rounds does without

        forecast_kernel.prepare()
        self._kernel = forecast_kernel
        self._settings = settings
        self._model = model
        self._targets = config.targets
        self._quantiles = config.quantiles
        adapting = AdaptationConfig.of(config, settings.adaptation)
        self._experts = () if adapting.level == "off" else adapting.experts
        self._weight_count = len(self._targets) * len(self._experts)
        self._sensors = _SensorTexts()
        self._pieces: dict[str, tuple[_Pieces, _Pieces]] = {}  # topic -> constant pieces of values and headers

    def encode(self, inputs: ForecastInputs, forecasts: "Forecasts") -> tuple[ByteStrings, ByteStrings]:
        """Values and header blocks (for ``batch_producer``) of n forecasts, one after each reading.

        Raises:
            ModelUnusable: a rounded forecast or a weight is non-finite; names the first sensor and offset.
        """
        if inputs.topic not in self._pieces:
            self._pieces[inputs.topic] = (self._value_pieces(inputs.topic), self._header_pieces(inputs.topic))
        sensors = self._sensors.numbers(inputs.names)[inputs.codes]
        return self._values(inputs, sensors, forecasts), self._headers(inputs, sensors)

    def keys(self, names: Sequence[str]) -> ByteStrings:
        """The keys of records of these sensors."""
        numbers = self._sensors.numbers(names)  # first, because it adds the texts of new sensors
        return self._sensors.encoded.take(numbers)

    def _values(self, inputs: ForecastInputs, sensors: NDArray[np.int64], forecasts: "Forecasts") -> ByteStrings:
        quantiles = forecasts.quantiles
        is_bounded = forecasts.limits.size > 0
        if is_bounded:  # a number may be a limit, or a whole number, and not rounded
            quantiles = round_to_scale(quantiles, forecasts.scale, forecasts.limits)
        columns = _Columns(
            np.ascontiguousarray(quantiles, np.float64),
            forecasts.scale,
            is_bounded,
            sensors,
            inputs.timestamp_us,
            inputs.partitions,
            inputs.offsets,
            forecasts.origin,
            forecasts.steps,
            forecasts.warm,
            np.ascontiguousarray(forecasts.weights),
        )
        values, is_written = self._write(inputs.topic, np.arange(len(inputs)), columns)
        if is_written.all():
            return values
        self._check_finite(forecasts.weights, np.arange(len(inputs)), inputs)
        others = np.flatnonzero(~is_written)
        rounded = round_to_scale(forecasts.quantiles[others], forecasts.scale[others], forecasts.limits[others])
        self._check_finite(rounded, others, inputs)
        texts = _Pieces.of(float_rows(rounded.reshape(-1, rounded.shape[-1])))
        other_values, _ = self._write(inputs.topic, others, columns, texts)
        places = np.arange(len(inputs))
        places[others] = len(inputs) + np.arange(len(others))
        return values.followed_by(other_values).take(places)

    def _write(
        self, topic: str, chosen: NDArray[np.int64], columns: _Columns, texts: _Pieces = _NO_TEXTS
    ) -> tuple[ByteStrings, NDArray[np.bool_]]:
        """The values of the chosen forecasts, and whether each was written; an unwritten one is empty.

        Args:
            texts: the numbers of each list, if the kernel cannot write them.
        """
        kernel, heads, pieces = self._kernel, self._sensors.heads, self._pieces[topic][0]
        most_bytes = (
            self._sensors.most_head_bytes
            + len(pieces.data)
            + kernel.TIME_BYTES
            + columns.quantiles[:1].size * kernel.NUMBER_BYTES
            + (4 + self._weight_count) * kernel.INTEGER_BYTES
        )
        out = np.empty(len(chosen) * most_bytes + kernel.SLACK_BYTES, np.uint8)
        bounds, is_written = np.zeros(len(chosen) + 1, np.int64), np.empty(len(chosen), np.bool_)
        kernel.write_values(
            chosen,
            *columns,
            *(_SCALES, _POWERS_OF_TEN),
            *texts,
            *(heads.data, heads.starts, heads.ends),
            *pieces,
            *(out, bounds[1:], is_written),
        )
        return ByteStrings(out[: bounds[-1]], bounds[:-1], bounds[1:]), is_written

    def _headers(self, inputs: ForecastInputs, sensors: NDArray[np.int64]) -> ByteStrings:
        """Header blocks in the order of ``event_headers.forecast_headers``: the constant headers first."""
        kernel, subjects, pieces = self._kernel, self._sensors.subjects, self._pieces[inputs.topic][1]
        parents, is_traced, most_parent_bytes = _NO_TEXTS, _NOT_TRACED, 0
        if inputs.traceparents is not None:
            parents = _Pieces.of([parent or b"" for parent in inputs.traceparents])
            is_traced = np.array([parent is not None for parent in inputs.traceparents], np.bool_)
            most_parent_bytes = max((len(parent or b"") for parent in inputs.traceparents), default=0)
        most_bytes = (
            len(pieces.data)
            + self._sensors.most_subject_bytes
            + most_parent_bytes
            + kernel.TIME_BYTES
            + 6 * kernel.INTEGER_BYTES  # partition, offset, number of headers, three lengths
        )
        out = np.empty(len(inputs) * most_bytes + kernel.SLACK_BYTES, np.uint8)
        bounds = np.zeros(len(inputs) + 1, np.int64)
        kernel.write_headers(
            *(sensors, inputs.timestamp_us, inputs.partitions, inputs.offsets),
            *(subjects.data, subjects.starts, subjects.ends),
            *parents,
            is_traced,
            *pieces,
            *(out, bounds[1:]),
        )
        return ByteStrings(out[: bounds[-1]], bounds[:-1], bounds[1:])

    def _value_pieces(self, topic: str) -> _Pieces:
        """The JSON before each of the K * Q lists of numbers, then the pieces that ``forecast_kernel`` names."""
        pieces: list[bytes] = []
        for target in self._targets:
            opening = b"]}," if pieces else b'","cadence_s":' + _json(self._settings.cadence_s) + b',"quantiles":{'
            for index, level in enumerate(self._quantiles):
                before = opening + _json(target) + b":{" if index == 0 else b"],"
                pieces.append(before + _json(quantile_key(level)) + b":[")
        pieces.append(b']}},"model":' + _json(self._model) + b',"settings":' + _json(self._settings.fingerprint))
        pieces[-1] += b',"input":{"topic":' + _json(topic) + b',"partition":'
        pieces += [b',"offset":', b'},"state":{"origin":', b',"steps":', b',"warm":false}', b',"warm":true}']
        opening = b',"weights":{'
        for target in self._targets:
            for expert in self._experts:
                before = opening + _json(target) + b":{" if expert == self._experts[0] else b","
                pieces.append(before + _json(expert) + b":")
            opening = b"},"
        return _Pieces.of([*pieces, b"}}}" if self._experts else b"}"])

    def _header_pieces(self, topic: str) -> _Pieces:
        """The constant pieces of a header block that ``forecast_kernel`` names."""
        shared = b"".join(_header(name, value) for name, value in constant_headers(self._model.name))
        version = f"-{self._model.version}".encode()
        return _Pieces.of(
            [shared + _name("ce_id"), f"{topic}-".encode(), version, _name("ce_time"), _name("traceparent")]
        )

    def _check_finite(self, values: NDArray[np.float64], rows: NDArray[np.intp], inputs: ForecastInputs) -> None:
        """Raise if one of the values or weights of the forecasts at ``rows`` is non-finite."""
        finite = np.isfinite(values)
        if finite.all():
            return
        row = rows[int(np.argmin(finite.reshape(len(values), -1).all(axis=1)))]
        raise ModelUnusable(
            f"model {self._model.name} version {self._model.version} makes a non-finite forecast for sensor "
            f"{visible(inputs.names[inputs.codes[row]])} at offset {int(inputs.offsets[row])}. Promote another "
            "version; `streamgru models` lists them"
        )


def round_to_scale(quantiles: np.ndarray, scale: np.ndarray, limits: np.ndarray | None = None) -> np.ndarray:
    """Quantiles (n, K, Q, h), rounded to seven significant digits of their sensor's scale (n, K).

    A scale of 50 leaves five decimals, a scale of 5e6 none. A zero or non-finite scale leaves them unrounded. Rounding
    crosses none of the ``limits`` (n, K, 2) and leaves whole numbers between them; (n, 0, 2) stands for no limits.
    """
    known, decimals = _decimals(scale)
    known, decimals = known[:, :, None, None], decimals[:, :, None, None]
    power = _POWERS_OF_TEN[np.abs(decimals)]
    rounded = np.where(decimals >= 0, np.rint(quantiles * power) / power, np.rint(quantiles / power) * power)
    result: np.ndarray = np.where(known, rounded, quantiles) + 0.0  # -0.0 becomes 0.0
    if limits is None or not limits.size:
        return result
    whole = np.isfinite(limits).any(axis=2)[:, :, None, None] & (quantiles == np.rint(quantiles))  # perhaps a count
    kept = within_limits(np.where(whole, quantiles, result), limits)
    return np.maximum.accumulate(kept, axis=2)  # a whole number may have been rounded past by its neighbour


def _decimals(scale: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Whether each scale is positive and finite, and the digits after the point that it leaves; negative before it."""
    known = np.isfinite(scale) & (scale > 0)
    place = np.searchsorted(_SCALES, np.where(known, scale, 1.0))
    return known, np.maximum(_MOST_DECIMALS - place, -_MOST_DECIMALS)


class _GrowingStrings:
    """Byte strings that are added at the end; the buffers double, so that an addition copies only its own strings."""

    def __init__(self) -> None:
        self._data = np.empty(1_024, np.uint8)
        self._bounds = np.zeros(64, np.int64)  # the strings' ends after a 0
        self._count = 0
        self.strings = ByteStrings.of([])
        self.most_bytes = 0  # of one string

    def add(self, texts: Sequence[bytes]) -> None:
        """Add one or more strings."""
        added = _Pieces.of(texts)
        first, count = self._bounds[self._count], self._count + len(texts)
        size = first + len(added.data)
        self._data, self._bounds = _with_room(self._data, size), _with_room(self._bounds, count + 1)
        self._data[first:size] = added.data
        self._bounds[self._count : count + 1] = first + added.bounds
        self._count = count
        self.strings = ByteStrings(self._data[:size], self._bounds[:count], self._bounds[1 : count + 1])
        self.most_bytes = max(self.most_bytes, *map(len, texts))


def _with_room(buffer: NDArray[Any], size: int) -> NDArray[Any]:
    """The buffer, or a copy of at least twice its length if ``size`` items do not fit."""
    if size <= len(buffer):
        return buffer
    larger = np.empty(max(size, 2 * len(buffer)), buffer.dtype)
    larger[: len(buffer)] = buffer
    return larger


class _SensorTexts(dict[str, int]):
    """Sensor id -> its number: the place of its texts, which are made once per sensor."""

    def __init__(self) -> None:
        self._heads = _GrowingStrings()
        self._subjects = _GrowingStrings()
        self._keys = _GrowingStrings()
        self._added: list[str] = []

    @property
    def heads(self) -> ByteStrings:
        """JSON of a forecast up to the time."""
        return self._heads.strings

    @property
    def subjects(self) -> ByteStrings:
        """Header `ce_subject`; empty if the sensor id cannot be a subject."""
        return self._subjects.strings

    @property
    def encoded(self) -> ByteStrings:
        """The sensor ids in UTF-8."""
        return self._keys.strings

    @property
    def most_head_bytes(self) -> int:
        return self._heads.most_bytes

    @property
    def most_subject_bytes(self) -> int:
        return self._subjects.most_bytes

    def numbers(self, sensor_ids: Sequence[str]) -> NDArray[np.int64]:
        """The number of each sensor; texts are made for new ones."""
        found = np.fromiter(map(self.__getitem__, sensor_ids), np.int64, len(sensor_ids))
        if self._added:
            self._heads.add([b'{"sensor_id":' + _json(name) + b',"issued_at":"' for name in self._added])
            subjects = [event_subject(sensor_id) for sensor_id in self._added]
            self._subjects.add([b"" if each is None else _header("ce_subject", each) for each in subjects])
            self._keys.add([name.encode() for name in self._added])
            self._added = []
        return found

    def __missing__(self, sensor_id: str) -> int:
        number = self[sensor_id] = len(self)
        self._added.append(sensor_id)
        return number


def _json(value: object) -> bytes:
    return msgspec.json.encode(value)


def _name(name: str) -> bytes:
    return encode_varint(len(name)) + name.encode()


def _header(name: str, value: bytes) -> bytes:
    return _name(name) + encode_varint(len(value)) + value
