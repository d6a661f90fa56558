"""Explains one forecast: its reading, the state that it was made from, and the same forecast recomputed."""

import logging
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model.experts import experts_of
from model.outlooks import NO_ISSUE_US
from pipeline.audit.delivery import ReadingLog
from pipeline.audit.expert_weights import published_weights, weights_agree
from pipeline.audit.lineage import AcceptedLog, accepted_log
from pipeline.audit.outlook_log import of_sensor
from pipeline.audit.recompute import TOLERANCE, Stretches, half_counts, recompute, relative_differences
from pipeline.audit.topic_logs import read_readings
from pipeline.audit.verify import LoadModel
from pipeline.errors import StreamgruError
from pipeline.forecast_encoding import round_to_scale
from pipeline.kafka.topic_reader import read_topic
from pipeline.messages import Forecast, decode_forecast, iso_timestamp, microseconds, quantile_key
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.explain")


@dataclass(frozen=True)
class ExplainedOutlook:
    """The outlook that a forecast was made with."""

    name: str  # of the sensor or group
    offset: int  # of its record, in the partition of the reading
    issued_us: int
    age_steps: float  # cadences from its issue to the time of the reading; negative if it was issued after that time


@dataclass(frozen=True)
class Explanation:
    """A forecast with the reading and the state that it was made from."""

    forecast: Forecast
    values: dict[str, float]  # feature -> value of the reading, NaN if missing
    accepted: int  # readings in the state
    missing_steps: int  # steps of the state for skipped cadence points
    begun_us: int  # timestamp of the first reading in the state
    published: NDArray[np.float64]  # (K, Q, h) published quantiles
    recomputed: NDArray[np.float64]  # (K, Q, h) recomputed quantiles
    weights: NDArray[np.float64]  # (K, E) recomputed weights of the experts; E is 0 without adaptation
    has_same_weights: bool  # whether published and recomputed weights agree
    difference: float  # largest one of all quantiles: a fraction of the sensor's scale, or of the value if larger
    has_outlooks: bool = False  # whether the model uses outlooks
    outlook: ExplainedOutlook | None = None  # None: the sensor had no outlook then

    @property
    def is_equal(self) -> bool:
        """Whether the recomputed forecast equals the published one."""
        return self.difference <= TOLERANCE and self.has_same_weights


def explain(settings: Settings, load: LoadModel, sensor: str, timestamp_us: int) -> list[Explanation]:
    """The forecasts of a sensor's reading with this timestamp; more than one is a fault.

    Raises:
        StreamgruError: the sensor has no such forecast, only one made under other settings, or readings were deleted.
        KafkaError: no broker answers, or a topic is missing.
        RegistryError: the version that the forecast names cannot be loaded.
    """
    forecasts = _forecasts(settings, sensor, timestamp_us)
    readings = read_readings(settings)
    of_ours = replace(readings, outlooks=of_sensor(readings.outlooks, sensor))
    accepted = accepted_log(of_ours, settings)
    return [_explain(settings, load, readings, accepted, forecast) for forecast in forecasts]


def _forecasts(settings: Settings, sensor: str, timestamp_us: int) -> list[Forecast]:
    # An argument that is not UTF-8 stands for its bytes, which are the id of no sensor.
    topic, key = settings.kafka.topics.forecasts, sensor.encode(errors="surrogateescape")
    found: list[Forecast] = []
    seen: list[int] = []
    for record in read_topic(settings, topic, {}, None):
        if record.key == key:
            forecast = decode_forecast(record.value or b"")
            seen.append(microseconds(forecast.issued_at))
            if seen[-1] == timestamp_us:
                found.append(forecast)
    if found:
        return _of_present_settings(settings, found, timestamp_us)
    if not seen:
        raise StreamgruError(
            f"there is no forecast of sensor {sensor!r} on {topic}; `streamgru watch` shows the sensors with forecasts"
        )
    nearest = min(seen, key=lambda other: abs(other - timestamp_us))
    raise StreamgruError(
        f"sensor {sensor!r} has no forecast issued at {iso_timestamp(timestamp_us)} on {topic}; it has {len(seen):,} "
        f"from {iso_timestamp(min(seen))} to {iso_timestamp(max(seen))}, the nearest at {iso_timestamp(nearest)}"
    )


def _of_present_settings(settings: Settings, found: list[Forecast], timestamp_us: int) -> list[Forecast]:
    """The forecasts made under the present settings; only these can be recomputed."""
    present = settings.fingerprint
    ours = [forecast for forecast in found if forecast.settings == present]
    others = sorted({forecast.settings for forecast in found} - {present})
    if not ours:
        raise StreamgruError(
            f"the forecast of sensor {found[0].sensor_id!r} issued at {iso_timestamp(timestamp_us)} was made under "
            f"settings {', '.join(others)}, not under the present ones ({present}). Run this command with the settings "
            "that the forecasters had then"
        )
    if others:
        logger.warning(
            "another forecast of this reading is not explained, because its settings have another fingerprint: %s",
            ", ".join(others),
        )
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
            f"the forecast cannot be recomputed: it was made from the readings of {forecast.input.topic}, partition "
            f"{forecast.input.partition}, from offset {forecast.state.origin} to {forecast.input.offset}, and some of "
            "these readings are missing. Retention may have deleted them"
        )
    stretch = Stretches(np.array([first]), np.array([last]))
    stepped = load(forecast.model.version)
    *_, again = recompute(stepped, accepted, stretch, settings)
    made = again.forecasts
    expected, weights = round_to_scale(made.quantiles[-1:], made.scale[-1:], made.limits[-1:]), made.weights[-1:]
    levels = [quantile_key(level) for level in settings.quantiles]
    published = np.array([[forecast.quantiles[target][level] for level in levels] for target in settings.targets])
    named = published_weights(forecast, settings.targets, experts_of(settings.adaptation.level))
    half = half_counts(stepped.config, made)[-1:]
    differences = relative_differences(published[None].astype(np.float32), expected, made.scale[-1:], half)
    return Explanation(
        forecast=forecast,
        values=dict(zip(settings.features, accepted.values[last].tolist(), strict=True)),
        accepted=last - first + 1,
        missing_steps=forecast.state.steps - (last - first + 1),
        begun_us=int(accepted.timestamp_us[first]),
        published=published,
        recomputed=np.where((half[:, :, None, None] > 0.0) & (differences == 0.0), published, expected)[0],
        weights=weights[0],
        has_same_weights=bool(weights_agree(named[None], weights)[0]),
        difference=float(differences.max()),
        has_outlooks=stepped.config.outlook is not None,
        outlook=_outlook(accepted, first, last, int(made.outlook_issued_us[-1]), settings.cadence_us),
    )


def _outlook(accepted: AcceptedLog, first: int, last: int, issued_us: int, cadence_us: int) -> ExplainedOutlook | None:
    """The outlook with this time of issue that a state had at its last reading."""
    if issued_us == NO_ISSUE_US:
        return None
    found = accepted.outlooks
    entries = found.between(int(accepted.stream[last]), int(accepted.offset[first]), int(accepted.released[last]))
    for offset, which in zip(found.offset[entries].tolist(), found.which[entries].tolist(), strict=True):
        outlook = found.outlooks[which]
        if outlook.issued_us == issued_us:
            age = (int(accepted.timestamp_us[last]) - issued_us) / cadence_us
            return ExplainedOutlook(outlook.name, offset, issued_us, age)
    return None
