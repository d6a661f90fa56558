"""The fuzz target for the encoder of forecasts: any numbers, sensors and headers."""

import random
import struct
from functools import cache

import msgspec
import numpy as np

from pipeline.errors import ModelUnusable
from pipeline.forecast_encoding import ForecastEncoder, ForecastInputs, round_to_scale
from pipeline.messages import EARLIEST_TIMESTAMP_US, LATEST_TIMESTAMP_US
from pipeline.settings import Settings
from tests.made_forecasts import EXPERTS, Forecasts, headers_of, make_encoder, messages_of

_SHAPES = ((1, (0.5,), 1, "off"), (2, (0.1, 0.5, 0.9), 3, "light"), (3, (0.025, 0.5), 5, "full"))
_NUMBERS = (0.0, -0.0, 1.0, 0.1, 1e-5, 9.5e-6, 1e15, 1e16, -123_456.5, 999_999_999.5, 2.0**51, 5e-324, 1e30)
_NON_FINITE = (float("nan"), float("inf"), -float("inf"))
_SENSORS = ("a", "", "é" * 300, 'quoted "id" \\', "\x00\n", "\U0010ffff", "\u2028")
_TIMES_US = (EARLIEST_TIMESTAMP_US, LATEST_TIMESTAMP_US - 1, 0, -1, 951_782_400_000_000, 1_700_000_000_123_000)
_LARGEST = 2**63 - 1


@cache
def _encoder(shape: tuple[int, tuple[float, ...], int, str]) -> tuple[ForecastEncoder, Settings]:
    return make_encoder(*shape)


def forecasts(chance: random.Random) -> None:
    """Finite forecasts are encoded as msgspec encodes their messages; a non-finite one is refused."""
    shape = targets, levels, horizon_steps, level = chance.choice(_SHAPES)
    encoder, settings = _encoder(shape)
    count = chance.randrange(0, 7)
    quantiles = np.array([_number(chance) for _ in range(count * targets * len(levels) * horizon_steps)])
    quantiles = quantiles.reshape(count, targets, len(levels), horizon_steps)
    if chance.random() < 0.05 and quantiles.size:
        quantiles.flat[chance.randrange(quantiles.size)] = chance.choice(_NON_FINITE)
    limits = np.empty((count, 0, 2))
    if chance.random() < 0.4:
        quantiles.sort(axis=2)
        limits = np.array([sorted((_number(chance), _number(chance) + 1.0)) for _ in range(count * targets)])
        limits = limits.reshape(count, targets, 2)
    scales = [chance.choice((abs(_number(chance)), *_NON_FINITE)) for _ in range(count * targets)]
    experts = len(EXPERTS[level])
    made = Forecasts(
        quantiles,
        np.array(scales).reshape(count, targets),
        *(np.array([chance.randrange(0, most) for _ in range(count)], np.int64) for most in (_LARGEST, 1 << 62)),
        np.array([chance.random() < 0.5 for _ in range(count)], bool),
        np.array([chance.random() for _ in range(count * targets * experts)]).reshape(count, targets, experts),
        limits,
    )
    inputs = ForecastInputs(
        chance.choice(("readings", "r" * 249)),
        np.array([chance.choice((0, 9, 10, 2**31 - 1)) for _ in range(count)], np.int64),
        _SENSORS,
        np.array([chance.randrange(len(_SENSORS)) for _ in range(count)], np.intp),
        np.array([chance.choice(_TIMES_US) for _ in range(count)], np.int64),
        np.array([chance.choice((0, 99, 10**8, 10**16, _LARGEST)) for _ in range(count)], np.int64),
        chance.choice((None, [chance.choice((None, b"", b"00-parent", b"x" * 256)) for _ in range(count)])),
    )
    is_finite = np.isfinite(round_to_scale(made.quantiles, made.scale, made.limits)).all()
    try:
        values, headers = encoder.encode(inputs, made)  # type: ignore[arg-type]
    except ModelUnusable:
        assert not is_finite
        return
    assert is_finite
    expected = messages_of(inputs, made, settings)
    assert values == [msgspec.json.encode(message) for message in expected]
    assert headers == headers_of(expected, inputs)


def _number(chance: random.Random) -> float:
    """A number with few digits, one of a usual size, or any float64 within ±1e30."""
    kind = chance.random()
    if kind < 0.2:
        return chance.choice(_NUMBERS)
    if kind < 0.6:
        return round(chance.gauss(0.0, 10.0 ** chance.randrange(-7, 9)), chance.randrange(0, 12))
    (found,) = struct.unpack("<d", chance.randbytes(8))
    return float(found) if abs(found) <= 1e30 else chance.gauss(0.0, 1.0)
