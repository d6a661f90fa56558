"""The JSON answers of ``streamgru serve``. The OpenAPI document is generated from these types.

Names end in the unit: ``_ms`` is milliseconds, since the epoch or of a length, ``_s`` seconds. An unknown number is
null. Fields keep their names and meaning; new ones may be added.
"""

from typing import Annotated, Any

import msgspec

Number = float | None
_describe = msgspec.Meta


class Problem(msgspec.Struct):
    """Why a request was refused, and what to do."""

    error: str
    remedy: str = ""


class Topics(msgspec.Struct):
    """Names of the topics."""

    readings: str
    forecasts: str
    dead_letters: str


class Links(msgspec.Struct):
    """Pages of other servers."""

    mlflow: str
    prefect: str


class About(msgspec.Struct):
    """The program, its settings and the pages of other servers."""

    version: str
    model_name: str
    features: list[str]
    targets: list[str]
    scored_targets: Annotated[list[str], _describe(description="the targets with values, surprise and live scores")]
    quantiles: list[float]
    cadence_s: float
    horizon_steps: int
    settings: Annotated[str, _describe(description="fingerprint of the settings that shape a forecast")]
    topics: Topics
    partitions: int
    now_ms: int
    started_ms: int
    links: Links


class Progress(msgspec.Struct):
    """Records of the look back that were read, and all of them."""

    done: int
    total: int


class Status(msgspec.Struct):
    """The stream at a glance."""

    now_ms: int
    stale: Annotated[bool, _describe(description="no broker has answered for seconds: all numbers may be old")]
    stale_since_ms: int | None
    broker_seen_ms: int | None
    trouble: Annotated[str, _describe(description="why no broker answers; empty if one does")]
    catching_up: Annotated[Progress | None, _describe(description="null once the look back is read")]
    sensors: int
    readings: Annotated[int, _describe(description="records that arrived on the topic since this process started")]
    forecasts: Annotated[int, _describe(description="forecasts that this process has read")]
    readings_per_s: float
    forecasts_per_s: float
    lag: Annotated[int | None, _describe(description="readings that the forecasters have not processed")]
    delay_p50_ms: Annotated[Number, _describe(description="from a reading's sending to its visible forecast, 1 min")]
    delay_p99_ms: Number
    events_clients: int
    dead_letters: int
    champion: Annotated[int | None, _describe(description="version of the newest forecast")]
    swaps: int
    list_version: Annotated[int, _describe(description="grows whenever a row of the sensor list changes")]


class Partition(msgspec.Struct):
    """Offsets of a partition."""

    partition: int
    readings_end: int | None
    committed: Annotated[int | None, _describe(description="the forecasters' next offset")]
    lag: int | None
    forecasts_end: int | None
    seen: Annotated[int | None, _describe(description="next forecast that this process reads")]


class Partitions(msgspec.Struct):
    """The lag of each partition."""

    now_ms: int
    partitions: list[Partition]


class Rates(msgspec.Struct):
    """The last ten minutes in columns, oldest first: one entry per step."""

    step_s: int
    time_ms: list[int]
    readings: list[int]
    forecasts: list[int]
    delay_p50_ms: list[Number]
    delay_p99_ms: list[Number]
    lag: list[int | None]


class SwapSeen(msgspec.Struct):
    """The first forecast of another model version in a partition."""

    at_ms: int
    partition: int
    offset: int
    from_version: int
    to_version: int


class Champion(msgspec.Struct):
    """The version of the newest forecast."""

    version: int
    since_ms: int


class Version(msgspec.Struct):
    """A version in the registry."""

    version: int
    aliases: list[str]
    created_ms: int
    scores: dict[str, float]
    reason: str


class Models(msgspec.Struct):
    """The champion and the model swaps seen here, and the registry's versions when it was last asked."""

    champion: Champion | None
    swaps: list[SwapSeen]
    checked_ms: int | None
    trouble: str
    versions: list[Version]


class Letter(msgspec.Struct):
    """A dead letter."""

    at_ms: int
    reason: str
    detail: str
    key: str | None
    partition: int
    offset: int
    input_partition: int
    input_offset: int


class DeadLetters(msgspec.Struct):
    """Dead letters by reason, since the look back, and the latest."""

    by_reason: dict[str, int]
    total: int
    latest: list[Letter]


class Flows(msgspec.Struct):
    """A sentence for each overdue flow, as the flow ``monitor`` says it."""

    checked_ms: int | None
    trouble: str
    overdue: list[str]


class ScoreBuckets(msgspec.Struct):
    """Scores by time of arrival, oldest first."""

    time_ms: list[int]
    count: list[int]
    coverage: list[Number]
    mae: list[Number]
    persistence_mae: list[Number]


class TargetScores(msgspec.Struct):
    """Scores of one target, one step ahead."""

    target: str
    low: Annotated[float, _describe(description="level of the interval's lower bound")]
    high: float
    expected_coverage: float
    count: int
    coverage: Number
    mae: Annotated[Number, _describe(description="mean absolute error of the median")]
    persistence_mae: Annotated[Number, _describe(description="the same if each value stayed as it was")]
    series: ScoreBuckets


class Scores(msgspec.Struct):
    """Scores over all sensors, worked out by this process from the forecasts that it has seen."""

    worked_out_by: str
    since_ms: int
    step: int
    targets: list[TargetScores]


class StepScores(msgspec.Struct):
    """Scores of one target at one step of the horizon."""

    step: int
    count: int
    coverage: Number
    mae: Number
    persistence_mae: Number


class TargetStepScores(msgspec.Struct):
    """Scores of one target by step."""

    target: str
    low: float
    high: float
    expected_coverage: float
    steps: list[StepScores]


class SensorScores(msgspec.Struct):
    """Scores of one sensor, worked out by this process from the sensor's latest forecasts."""

    worked_out_by: str
    sensor: str
    first_ms: int | None
    last_ms: int | None
    targets: list[TargetStepScores]


class SensorRow(msgspec.Struct):
    """A sensor's latest forecast, and its latest reading beside the forecast made one step before."""

    sensor: str
    partition: int
    offset: int
    issued_at_ms: int
    arrived_ms: int
    model: int
    warm: bool
    surprise: Annotated[Number, _describe(description="distance to the interval, in widths of the interval")]
    target: Annotated[str | None, _describe(description="the target with the largest surprise")]
    value: Number
    low: Number
    median: Number
    high: Number
    delay_ms: Number
    count: Annotated[int, _describe(description="forecasts of the sensor seen by this process")]
    error_ratio: Annotated[Number, _describe(description="one-step error of the first target: persistence's")]


class Sensors(msgspec.Struct):
    """A page of the sensor list."""

    total: int
    offset: int
    list_version: int
    rows: list[SensorRow]


class Interval(msgspec.Struct):
    """Columns of forecast intervals."""

    low: list[Number]
    median: list[Number]
    high: list[Number]


class History(msgspec.Struct):
    """A sensor's latest readings, and the earlier forecasts for their times."""

    sensor: str
    time_ms: list[int]
    values: dict[str, list[Number]]
    models: list[int]
    made_before: Annotated[
        dict[str, dict[str, Interval]],
        _describe(description="by `steps`, then by target: the forecast made this number of cadences before each time"),
    ]
    forecasts: Annotated[list[msgspec.Raw], _describe(description="whole forecasts, as committed; oldest first")]
    complete: bool
    why: str


class EventRow(msgspec.Struct):
    """A new forecast, in an event."""

    sensor: str
    partition: int
    offset: int
    issued_at_ms: int
    sent_ms: Annotated[int | None, _describe(description="Kafka timestamp of the reading")]
    model: int
    warm: bool
    input_partition: int
    input_offset: int
    surprise: Number
    target: str | None
    value: Number
    low: Number
    median: Number
    high: Number
    delay_ms: Number


class ForecastsData(msgspec.Struct):
    """Data of the event ``forecasts``."""

    rows: list[EventRow]
    swaps: list[SwapSeen]


class ResetData(msgspec.Struct):
    """Data of the event ``reset``: events before it will not come."""

    reason: str
    detail: str


class Login(msgspec.Struct):
    """Body of a login."""

    token: str


class Health(msgspec.Struct):
    """Answer to a probe."""

    state: str
    trouble: str


encode = msgspec.json.Encoder(enc_hook=lambda value: _plain(value)).encode


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):  # a number of NumPy
        return value.item()
    raise NotImplementedError(f"{type(value).__name__} has no JSON form here")
