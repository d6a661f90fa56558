"""One forecast taken apart: the reading it follows, the state behind it, and the same numbers computed once more."""

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.experts import experts_of
from pipeline.audit.delivery import ReadingLog
from pipeline.audit.expert_weights import published_weights, weights_agree
from pipeline.audit.lineage import AcceptedLog, accepted_log
from pipeline.audit.recompute import TOLERANCE, Stretches, recompute, relative_differences
from pipeline.audit.topic_logs import read_readings
from pipeline.audit.verify import LoadModel
from pipeline.errors import StreamgruError
from pipeline.forecaster.encoding import round_to_scale
from pipeline.kafka.topic_reader import read_topic
from pipeline.messages import Forecast, decode_forecast, iso_timestamp, microseconds, quantile_key
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.explain")


@dataclass(frozen=True)
class Explanation:
    """A forecast with what it was made of."""

    forecast: Forecast
    values: dict[str, float]  # of the reading it follows, NaN where missing
    accepted: int  # readings in the state
    missing_steps: int  # stepped for skipped cadence points
    begun_us: int  # timestamp of the first reading in the state
    published: NDArray[np.float64]  # (K, Q, h), as they were published
    recomputed: NDArray[np.float64]  # (K, Q, h)
    weights: NDArray[np.float64]  # (K, E) recomputed, of the experts; E is 0 where none are mixed
    has_same_weights: bool  # published and recomputed
    difference: float  # of the quantiles, the largest: parts of the sensor's scale, or of the value if that is larger

    @property
    def is_equal(self) -> bool:
        """Whether the recomputed forecast is the published one."""
        return self.difference <= TOLERANCE and self.has_same_weights


def explain(settings: Settings, load: LoadModel, sensor: str, timestamp_us: int) -> list[Explanation]:
    """The forecasts that a sensor's reading of that time got: one, where all is well.

    Raises:
        StreamgruError: there is none, or only of other settings; says what there is.
        KafkaError: no broker answers, or a topic is missing.
        RegistryError: the version it names cannot be loaded.
    """
    forecasts = _forecasts(settings, sensor, timestamp_us)
    readings = read_readings(settings)
    accepted = accepted_log(readings, settings)
    return [_explain(settings, load, readings, accepted, forecast) for forecast in forecasts]


def _forecasts(settings: Settings, sensor: str, timestamp_us: int) -> list[Forecast]:
    key = sensor.encode()
    found: list[Forecast] = []
    seen: list[int] = []
    for record in read_topic(settings, settings.kafka.topics.forecasts, {}, None):
        if record.key != key:
            continue
        forecast = decode_forecast(record.value or b"")
        seen.append(microseconds(forecast.issued_at))
        if seen[-1] == timestamp_us:
            found.append(forecast)
    if found:
        return _of_present_settings(settings, found, timestamp_us)
    topic, moment = settings.kafka.topics.forecasts, iso_timestamp(timestamp_us)
    if not seen:
        raise StreamgruError(
            f"there is no forecast of sensor {sensor!r} on {topic}; `streamgru watch` shows who has any"
        )
    nearest = min(seen, key=lambda other: abs(other - timestamp_us))
    raise StreamgruError(
        f"sensor {sensor!r} has no forecast issued at {moment} on {topic}; it has {len(seen):,} from "
        f"{iso_timestamp(min(seen))} to {iso_timestamp(max(seen))}, the nearest at {iso_timestamp(nearest)}"
    )


def _of_present_settings(settings: Settings, found: list[Forecast], timestamp_us: int) -> list[Forecast]:
    """Those that can be recomputed: of what the settings were that made the others, only the fingerprint is left."""
    present = settings.fingerprint
    ours = [forecast for forecast in found if forecast.settings == present]
    others = sorted({forecast.settings for forecast in found} - {present})
    if not ours:
        raise StreamgruError(
            f"the forecast of sensor {found[0].sensor_id!r} issued at {iso_timestamp(timestamp_us)} was made under "
            f"settings {', '.join(others)}, which are not the present ones ({present}): it can be recomputed only "
            "with those"
        )
    if others:
        logger.warning("another forecast of this reading was made under other settings: %s", ", ".join(others))
    return ours


def _explain(
    settings: Settings, load: LoadModel, readings: ReadingLog, accepted: AcceptedLog, forecast: Forecast
) -> Explanation:
    partition = np.full(2, forecast.input.partition, np.int32)
    first, last = accepted.places(
        readings, partition, np.array([forecast.state.origin, forecast.input.offset])
    ).tolist()
    if first < 0 or last < first:
        raise StreamgruError(
            f"the forecast names readings of {forecast.input.topic}, partition {forecast.input.partition}, from offset "
            f"{forecast.state.origin} to {forecast.input.offset}, and they are not all there (any more): it cannot be "
            "recomputed. Does retention delete readings?"
        )
    stretch = Stretches(np.array([first]), np.array([last]))
    *_, again = recompute(load(forecast.model.version), accepted, stretch, settings)
    expected, scale = again.forecasts.quantiles[-1:], again.forecasts.scale[-1:]
    levels = [quantile_key(level) for level in settings.quantiles]
    published = np.array([[forecast.quantiles[target][level] for level in levels] for target in settings.targets])
    weights = again.forecasts.weights[-1:]
    named = published_weights(forecast, settings.targets, experts_of(settings.adaptation.level))
    differences = relative_differences(published[None].astype(np.float32), expected, scale)
    return Explanation(
        forecast=forecast,
        values=dict(zip(settings.features, accepted.values[last].tolist(), strict=True)),
        accepted=last - first + 1,
        missing_steps=forecast.state.steps - (last - first + 1),
        begun_us=int(accepted.timestamp_us[first]),
        published=published,
        recomputed=round_to_scale(expected, scale)[0],
        weights=weights[0],
        has_same_weights=bool(weights_agree(named[None], weights)[0]),
        difference=float(differences.max()),
    )
