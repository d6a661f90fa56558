"""Forecasts made from arrays, without a stepper, and the messages and headers that an encoder must write for them."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np

from model.config import ModelConfig
from model.experts import experts_of
from pipeline.event_headers import forecast_headers
from pipeline.forecast_encoding import ForecastEncoder, ForecastInputs, round_to_scale
from pipeline.kafka.batch_producer import encode_headers
from pipeline.messages import Forecast, InputPosition, ModelId, StateAge, quantile_key
from pipeline.settings import Settings

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
EXPERTS: dict[str, tuple[str, ...]] = {"off": (), "light": experts_of("light"), "full": experts_of("full")}
FEATURES = ("PM2.5", 'odd "name" \\ é', "TEMP")
MODEL = ModelId("streamgru", 3)


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
    return ForecastEncoder(configured, MODEL, config), configured


def messages_of(inputs: ForecastInputs, forecasts: Forecasts, configured: Settings) -> list[Forecast]:
    rounded = round_to_scale(forecasts.quantiles, forecasts.scale, forecasts.limits)
    experts = EXPERTS[configured.forecaster.adaptation]
    return [
        Forecast(
            sensor_id=inputs.names[inputs.codes[i]],
            issued_at=EPOCH + timedelta(microseconds=int(inputs.timestamp_us[i])),
            cadence_s=configured.cadence_s,
            quantiles={
                target: {quantile_key(level): rounded[i, k, q].tolist() for q, level in enumerate(configured.quantiles)}
                for k, target in enumerate(configured.targets)
            },
            model=MODEL,
            settings=configured.fingerprint,
            input=InputPosition(inputs.topic, int(inputs.partitions[i]), int(inputs.offsets[i])),
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
        for i in range(len(inputs))
    ]


def headers_of(messages: list[Forecast], inputs: ForecastInputs) -> list[bytes]:
    traced = inputs.traceparents or [None] * len(messages)
    return [encode_headers(forecast_headers(message, parent)) for message, parent in zip(messages, traced, strict=True)]
