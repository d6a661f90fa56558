"""The fast encoder writes the JSON of the message types, byte for byte."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import ModelConfig
from model.experts import experts_of
from pipeline.errors import ModelUnusable
from pipeline.event_headers import forecast_headers
from pipeline.forecast_encoding import ForecastEncoder, round_to_scale
from pipeline.kafka.batch_producer import encode_headers
from pipeline.messages import (
    EARLIEST_TIMESTAMP_US,
    LATEST_TIMESTAMP_US,
    Forecast,
    InputPosition,
    ModelId,
    StateAge,
    decode_forecast,
    quantile_key,
)
from pipeline.settings import Settings

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
EXPERTS: dict[str, tuple[str, ...]] = {"off": (), "light": experts_of("light"), "full": experts_of("full")}
FEATURES = ("PM2.5", 'odd "name" \\ é', "TEMP")


@dataclass(frozen=True)
class Forecasts:
    """The arrays of ``model.stepper.Forecasts``, without a stepper."""

    quantiles: np.ndarray
    scale: np.ndarray
    origin: np.ndarray
    steps: np.ndarray
    warm: np.ndarray
    weights: np.ndarray
    limits: np.ndarray


def make_encoder(
    target_count: int, levels: tuple[float, ...], horizon_steps: int, adaptation: str = "off"
) -> tuple[ForecastEncoder, Settings]:
    targets = FEATURES[:target_count]
    configured = Settings(
        features=FEATURES,
        targets=targets,
        quantiles=levels,
        horizon_steps=horizon_steps,
        cadence_s=0.25,
        forecaster={"adaptation": adaptation},
    )
    config = ModelConfig(FEATURES, targets, configured.cadence_us, horizon_steps, quantiles=configured.quantiles)
    return ForecastEncoder(configured, ModelId("streamgru", 3), config), configured


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
    experts = EXPERTS[level]
    forecasts = make_forecasts(rng, (count, target_count, len(levels), horizon_steps), len(experts))
    sensors = data.draw(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=count, max_size=count))
    times = data.draw(
        st.lists(st.integers(EARLIEST_TIMESTAMP_US, LATEST_TIMESTAMP_US - 1), min_size=count, max_size=count)
    )
    parents = data.draw(
        st.one_of(st.none(), st.lists(st.one_of(st.none(), st.binary(max_size=80)), min_size=count, max_size=count))
    )
    offsets = rng.integers(0, 1 << 50, count)
    partitions = rng.integers(0, 200, count).tolist()

    values, headers = encoder.encode(
        "readings",
        partitions,
        sensors,
        np.array(times, dtype=np.int64),
        offsets,
        forecasts,
        parents,  # type: ignore[arg-type]
    )

    rounded = round_to_scale(forecasts.quantiles, forecasts.scale)
    expected = [
        Forecast(
            sensor_id=sensors[i],
            issued_at=EPOCH + timedelta(microseconds=times[i]),
            cadence_s=configured.cadence_s,
            quantiles={
                target: {quantile_key(level): rounded[i, k, q].tolist() for q, level in enumerate(levels)}
                for k, target in enumerate(configured.targets)
            },
            model=ModelId("streamgru", 3),
            settings=configured.fingerprint,
            input=InputPosition("readings", partitions[i], int(offsets[i])),
            state=StateAge(int(forecasts.origin[i]), int(forecasts.steps[i]), bool(forecasts.warm[i])),
            weights={
                target: {
                    name: round(float(forecasts.weights[i, k, e]) * 1_000) / 1_000 for e, name in enumerate(experts)
                }
                for k, target in enumerate(configured.targets)
            }
            if experts
            else msgspec.UNSET,
        )
        for i in range(count)
    ]
    assert values == [msgspec.json.encode(forecast) for forecast in expected]
    assert [decode_forecast(value) for value in values] == expected
    traced = parents or [None] * count
    assert headers == [
        encode_headers(forecast_headers(forecast, parent)) for forecast, parent in zip(expected, traced, strict=True)
    ]


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
    with pytest.raises(ModelUnusable, match=r"version 3 .* sensor b at offset 11"):
        encoder.encode("readings", [0, 1, 0], ["a", "b", "c"], np.zeros(3, np.int64), np.array([10, 11, 12]), forecasts)  # type: ignore[arg-type]
