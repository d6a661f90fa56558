"""The fast encoder writes the JSON of the message types, byte for byte."""

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ModelUnusable
from pipeline.forecast_encoding import ForecastInputs, _SensorTexts, round_to_scale
from pipeline.messages import EARLIEST_TIMESTAMP_US, LATEST_TIMESTAMP_US, decode_forecast
from pipeline.text.json_columns import float_rows
from tests.made_forecasts import EXPERTS, Forecasts, headers_of, make_encoder, messages_of


def make_forecasts(rng: np.random.Generator, shape: tuple[int, int, int, int], experts: int = 0) -> Forecasts:
    count, target_count, _, _ = shape
    magnitude = 10.0 ** rng.integers(-30, 29, (count, target_count))
    return Forecasts(
        quantiles=rng.normal(size=shape) * magnitude[:, :, None, None],
        scale=np.where(rng.random((count, target_count)) < 0.9, magnitude * rng.random((count, target_count)), 0.0),
        origin=rng.integers(0, 1 << 40, count),
        steps=rng.integers(1, 1 << 30, count),
        warm=rng.random(count) < 0.5,
        weights=rng.dirichlet(np.full(max(experts, 1), 0.3), (count, target_count))[:, :, :experts],
        limits=np.empty((count, 0, 2)),
    )


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(0, 5),
    target_count=st.integers(1, 3),
    levels=st.sampled_from([(0.5,), (0.1, 0.5, 0.9), (0.00001, 0.025, 0.5, 0.9999999)]),
    horizon_steps=st.integers(1, 4),
    level=st.sampled_from(["off", "light", "full"]),
    seed=st.integers(0, 1_000_000),
    data=st.data(),
)
def test_bytes_are_those_of_the_message_types(
    count: int, target_count: int, levels: tuple[float, ...], horizon_steps: int, level: str, seed: int, data: Any
) -> None:
    rng = np.random.default_rng(seed)
    encoder, configured = make_encoder(target_count, levels, horizon_steps, level)
    forecasts = make_forecasts(rng, (count, target_count, len(levels), horizon_steps), len(EXPERTS[level]))
    sensors = data.draw(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=count, max_size=count))
    times = data.draw(
        st.lists(st.integers(EARLIEST_TIMESTAMP_US, LATEST_TIMESTAMP_US - 1), min_size=count, max_size=count)
    )
    parents = data.draw(
        st.one_of(st.none(), st.lists(st.one_of(st.none(), st.binary(max_size=80)), min_size=count, max_size=count))
    )
    offsets = rng.integers(0, 1 << 50, count)
    partitions = rng.integers(0, 200, count).tolist()

    names, codes = np.unique(np.array(sensors, object), return_inverse=True)
    inputs = ForecastInputs(
        "readings", np.array(partitions, np.int64), names.tolist(), codes, np.array(times, np.int64), offsets, parents
    )
    values, headers = encoder.encode(inputs, forecasts)  # type: ignore[arg-type]

    expected = messages_of(inputs, forecasts, configured)
    assert values == [msgspec.json.encode(message) for message in expected]
    assert [decode_forecast(value) for value in values] == expected
    assert headers == headers_of(expected, inputs)


def encode_numbers(quantiles: np.ndarray, scale: np.ndarray, limits: np.ndarray | None = None) -> list[bytes]:
    """The JSON of each list of numbers (n, 1, Q, h) in forecasts of one target."""
    count, _, level_count, horizon_steps = quantiles.shape
    encoder, _ = make_encoder(1, {1: (0.5,), 3: (0.1, 0.5, 0.9)}[level_count], horizon_steps)
    forecasts = replace(
        make_forecasts(np.random.default_rng(0), quantiles.shape),
        quantiles=quantiles,
        scale=scale,
        limits=np.empty((count, 0, 2)) if limits is None else limits,
    )
    zeros = np.zeros(count, np.int64)
    values, _ = encoder.encode(ForecastInputs("readings", zeros, ["a"], zeros, zeros, zeros), forecasts)  # type: ignore[arg-type]
    return [part.split(b"]")[0] for value in values for part in value.split(b":[")[1:]]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("with_limits", [False, True])
def test_numbers_are_those_of_orjson_at_every_scale(seed: int, with_limits: bool) -> None:
    rng = np.random.default_rng(seed)
    count = 5_000
    exponents = rng.integers(-12, 16, count) if seed % 2 else rng.integers(-3, 4, count)
    scale = (rng.random(count) * 10.0**exponents)[:, None]
    scale[::50] = rng.choice([0.0, np.nan, np.inf, 1.0, 1e7, 1e-8, 1e-9, 1e15], (count // 50, 1))
    # Some numbers lie far from the scale, some are short, whole or halfway between two roundings.
    unit = np.where(np.isfinite(scale) & (scale > 0), scale, 1.0)[:, :, None, None]
    quantiles = rng.normal(size=(count, 1, 3, 4)) * unit * 10.0 ** rng.integers(-9, 3, (count, 1, 1, 1))
    quantiles[::7] = np.round(quantiles[::7], 2)
    quantiles[3::7] = np.rint(quantiles[3::7]) + 0.5
    quantiles[5::7] = np.rint(quantiles[5::7])
    quantiles.reshape(-1)[::101] = 0.0
    limits = np.empty((count, 0, 2))
    if with_limits:
        quantiles.sort(axis=2)
        limits = np.array([[0.0, 2.0 / 3.0], [-np.inf, 1e-7], [-np.inf, np.inf], [-5.0, np.inf]])[
            rng.integers(0, 4, count), None
        ]
    expected = float_rows(round_to_scale(quantiles, scale, limits).reshape(-1, 4))
    assert encode_numbers(quantiles, scale, limits) == expected


@settings(deadline=None)
@given(
    integers=st.lists(st.integers(-(10**15), 10**15), min_size=1, max_size=20),
    decimals=st.integers(-8, 18),
    zeros=st.integers(0, 15),
)
def test_numbers_with_many_and_few_digits_are_those_of_orjson(integers: list[int], decimals: int, zeros: int) -> None:
    cut = [integer // 10**zeros * 10**zeros for integer in integers]
    quantiles = np.array([integers, cut], np.float64)[:, None, None] * 10.0**-decimals
    scale = np.full((2, 1), 10.0 ** (7 - decimals))
    expected = float_rows(round_to_scale(quantiles, scale).reshape(2, -1))
    assert encode_numbers(quantiles, scale) == expected


@pytest.mark.parametrize(
    ("value", "scale", "rounded"),
    [
        (12.3456789012, 50.0, 12.34568),
        (-0.00000012, 50.0, 0.0),
        (1.23456789012e-12, 3.0e-12, 1.234568e-12),
        (123456789.4, 2.0e8, 123456800.0),
        (123.456789, 0.0, 123.456789),
        (123.456789, float("nan"), 123.456789),
        (1e30, 1e-30, 1e30),
    ],
)
def test_numbers_keep_seven_digits_of_their_sensors_scale(value: float, scale: float, rounded: float) -> None:
    result = round_to_scale(np.full((1, 1, 1, 1), value), np.full((1, 1), scale))
    assert result.item() == rounded
    assert not np.signbit(result.item()) or rounded < 0


@given(
    value=st.floats(-1e30, 1e30),
    scale=st.floats(1e-50, 1e30),
)
def test_rounding_is_finer_than_the_resolution_of_float32(value: float, scale: float) -> None:
    result = round_to_scale(np.full((1, 1, 1, 1), value), np.full((1, 1), scale)).item()
    assert abs(result - value) <= max(0.51e-6 * scale, abs(value) * 1e-15)


def test_a_non_finite_forecast_is_refused() -> None:
    encoder, _ = make_encoder(1, (0.5,), 2)
    forecasts = make_forecasts(np.random.default_rng(0), (3, 1, 1, 2))
    forecasts.quantiles[1, 0, 0, 1] = np.nan
    inputs = ForecastInputs(
        "readings", np.array([0, 1, 0]), ["a", "b"], np.array([0, 1, 0]), np.zeros(3, np.int64), np.array([10, 11, 12])
    )
    with pytest.raises(ModelUnusable, match=r"version 3 .* sensor b at offset 11"):
        encoder.encode(inputs, forecasts)  # type: ignore[arg-type]


@pytest.mark.parametrize("weight", [np.nan, np.inf])
def test_a_non_finite_weight_is_refused(weight: float) -> None:
    encoder, _ = make_encoder(1, (0.5,), 2, "light")
    forecasts = make_forecasts(np.random.default_rng(0), (3, 1, 1, 2), len(EXPERTS["light"]))
    forecasts.weights[1, 0, 0] = weight
    zeros = np.zeros(3, np.int64)
    inputs = ForecastInputs("readings", zeros, ["a", "b"], np.array([0, 1, 0]), zeros, np.array([10, 11, 12]))
    with pytest.raises(ModelUnusable, match=r"version 3 .* sensor b at offset 11"):
        encoder.encode(inputs, forecasts)  # type: ignore[arg-type]


def test_texts_of_sensors_stay_right_while_their_buffers_grow() -> None:
    texts, rng = _SensorTexts(), np.random.default_rng(0)
    buffers = set()
    names: list[str] = []
    for count in [1] * 300 + [700]:
        names += [f"sensor-{len(names) + more}" * int(rng.integers(1, 9)) for more in range(count)]
        assert texts.numbers(names[-count - 1 :])[-1] == len(names) - 1
        buffers.add(texts.heads.data.ctypes.data)
    assert texts.heads == [f'{{"sensor_id":"{name}","issued_at":"'.encode() for name in names]
    assert texts.encoded == [name.encode() for name in names]
    assert len(texts.subjects) == len(names)
    assert all(name.encode() in subject for name, subject in zip(names, texts.subjects, strict=True))
    assert texts.most_head_bytes == max(map(len, texts.heads))
    assert len(buffers) < 12  # most additions copy no earlier text
