"""The sections of the settings; ``pipeline.settings`` reads them."""

import re
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from pipeline.observability.log_format import LogFormat

LARGEST_SEED = 2**63 - 1  # torch, numpy and the JSON parameters of a flow all accept it
MOST_LEVELS = 999  # every thousandth, beyond which levels of float32 forecasts say nothing new
# Kafka takes its timeouts in milliseconds of 32 bits.
LONGEST_TIMEOUT_S = 2_000_000.0
# Ten years; timers raise OverflowError from centuries on.
LONGEST_S = 315_360_000
# The largest batch of 1 MB that brokers accept by default holds some 60 MB of readings if these compress 30 to 1.
DEFAULT_BATCH_BYTES = 128 * 1024 * 1024
HealthPort = Annotated[
    int | None, Field(ge=1, le=65_535, description="port of GET /healthz, /readyz and /metrics; off by default")
]
HealthHost = Annotated[
    str, Field(description="address that health_port listens on; 0.0.0.0 for requests from other hosts")
]
_TOPIC_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")


def _sorted_levels(levels: tuple[float, ...]) -> tuple[float, ...]:
    if len(levels) > MOST_LEVELS:
        raise ValueError(f"there are {len(levels):,} quantile levels, and at most {MOST_LEVELS:,} are possible")
    if not all(0.0 < level < 1.0 for level in levels):
        raise ValueError("quantile levels lie strictly between 0 and 1")
    if len(set(levels)) != len(levels):
        raise ValueError("quantile levels must differ from each other")
    if 0.5 not in levels:
        raise ValueError("quantile levels must contain 0.5: the median is the point forecast")
    return tuple(sorted(levels))


QuantileLevels = Annotated[tuple[float, ...], AfterValidator(_sorted_levels)]


class _Section(BaseModel):
    # Infinite numbers are refused: timers and intervals raise OverflowError for them.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


class TopicNames(_Section):
    """Names of the four topics, and of the optional topic of flat forecasts."""

    readings: str = "readings"
    forecasts: str = "forecasts"
    state: str = "forecaster-state"
    dead_letters: str = "readings.dlq"
    flat_forecasts: str | None = Field(
        default=None, description="topic of flat forecasts, one record per sensor, target and step; by default none"
    )

    @model_validator(mode="after")
    def _names_differ_and_kafka_takes_them(self) -> Self:
        names = [self.readings, self.forecasts, self.state, self.dead_letters]
        if self.flat_forecasts is not None:
            names.append(self.flat_forecasts)
        for name in names:
            if not _TOPIC_NAME.fullmatch(name) or name in (".", ".."):
                raise ValueError(
                    f"{name!r} is not a topic name: use 1 to 249 letters, digits, dots, dashes or underscores"
                )
        if len(set(names)) != len(names):
            raise ValueError(f"the topics must differ from each other; they are {', '.join(names)}")
        return self


class KafkaSettings(_Section):
    """The connection to the brokers, and the properties of the topics."""

    bootstrap_servers: str = "127.0.0.1:9092"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: str | None = None
    sasl_username: str | None = None
    sasl_password: str | None = Field(default=None, repr=False)
    ssl_cafile: Path | None = None
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    topics: TopicNames = TopicNames()
    partitions: int = Field(default=8, ge=1, le=10_000)
    replication_factor: int = Field(default=1, ge=1, le=32_767)
    max_reading_bytes: int = Field(
        default=1_000_000, ge=1_000, le=1_000_000_000, description="largest reading that the topic accepts"
    )
    max_batch_bytes: int | None = Field(
        default=None,
        ge=1_000_000,
        le=10**12,
        description="memory that the records of one batch may take, decompressed; a larger batch is set aside as one "
        "dead letter. By default 128 MiB, or 16 times max_reading_bytes if that is more",
    )
    retention_s: int | None = Field(
        default=None,
        ge=60,
        le=100 * LONGEST_S,
        description="retention of readings and forecasts; by default they are kept for ever",
    )

    @model_validator(mode="after")
    def _batches_hold_a_reading(self) -> Self:
        if self.batch_limit_bytes(self.topics.readings) < 2 * self.max_reading_bytes:
            raise ValueError(
                f"max_batch_bytes ({self.max_batch_bytes}) must be at least twice max_reading_bytes "
                f"({self.max_reading_bytes}), or the largest readings would be set aside"
            )
        return self

    def batch_limit_bytes(self, topic: str) -> int:
        """The largest batch of a topic in memory; ``max_batch_bytes`` does not limit this program's own topics."""
        default = max(DEFAULT_BATCH_BYTES, 16 * self.max_reading_bytes)
        if self.max_batch_bytes is None or topic != self.topics.readings:
            return default
        return self.max_batch_bytes


def _in_utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


class TimeSettings(_Section):
    """The limits beyond which the time of a reading is implausible; the reading then becomes a dead letter."""

    max_ahead_s: float = Field(
        default=86_400.0,
        ge=0.0,
        le=1e10,
        description="a reading may be this much later than its record's Kafka timestamp; the default tolerates clocks "
        "in a wrong time zone",
    )
    # Seconds, minutes or calendar digits that are taken as milliseconds give times from 1970 to 1976.
    earliest: Annotated[datetime, AfterValidator(_in_utc)] = Field(
        default=datetime(1980, 1, 1, tzinfo=UTC),
        description="a reading may not be earlier than this; in UTC unless it has a zone",
    )
    all_readings: bool = Field(
        default=False,
        description="apply the limits to all readings of the topic, also to those that were accepted earlier: states "
        "are rebuilt without them, and sensors that they made silent continue",
    )


class ForecasterSettings(_Section):
    """The streaming consumer."""

    group_id: str = "streamgru-forecaster"
    instance: str | None = Field(default=None, description="stable name of this forecaster; by default host and slot")
    static_membership: bool = Field(
        default=False,
        description="the group reserves a stopped forecaster's partitions for session_timeout_s: a restart within that "
        "time continues at once, and no other forecaster takes over earlier",
    )
    max_batch_readings: int = Field(
        default=20_000, ge=1, le=100_000, description="largest transaction; only a backlog makes one this large"
    )
    start: Literal["earliest", "latest"] = Field(
        default="earliest", description="where a group starts that has neither committed offsets nor a changelog"
    )
    adaptation: Literal["off", "light", "full"] = Field(
        default="light", description="how forecasts adapt from reading to reading between retrainings"
    )
    flat_format: Literal["json", "connect"] = Field(
        default="json",
        description="form of flat forecasts, if kafka.topics.flat_forecasts names a topic: plain JSON, or with the "
        "schema that Kafka Connect reads",
    )
    calibration: bool = Field(
        default=True, description="resize intervals from reading to reading towards their nominal coverage"
    )
    poll_alias_s: float = Field(default=2.0, gt=0, le=60, description="how often the champion alias is looked up")
    rewarm_steps: int | None = Field(
        default=None,
        ge=1,
        description="least number of accepted readings of each sensor that are replayed into a new model; by default "
        "512, or 1024 if forecasts or intervals adapt",
    )
    rewarm_max_readings: int = Field(
        default=2_000_000,
        ge=1,
        le=10**12,
        description="most readings of a partition that are read again to rebuild or warm up states",
    )
    max_sensors_per_partition: int | None = Field(
        default=None,
        ge=1,
        le=10**12,
        description="most sensors of a partition; readings of further sensors are dead letters, and sensors with an "
        "accepted reading are exempt. Set it well above the present number of sensors. By default there is no limit",
    )
    # Each of the first five lies below the next (``_timeouts_are_ordered``):
    # - The producer fails a batch before the group expels its forecaster.
    # - The group expels a dead forecaster before the brokers abort its open transaction. Its successor waits for that
    #   abort, at most for transaction_timeout_s.
    # - A transaction times out before the poll that fetched its readings does.
    # commit_timeout_s stands apart: it ends a process whose client call does not return.
    request_timeout_s: float = Field(default=3.0, gt=0, le=LONGEST_TIMEOUT_S)
    delivery_timeout_s: float = Field(default=4.0, gt=0, le=LONGEST_TIMEOUT_S)
    session_timeout_s: float = Field(
        default=6.0, ge=6.0, le=LONGEST_TIMEOUT_S, description="brokers refuse less than 6 s by default"
    )
    transaction_timeout_s: float = Field(default=8.0, gt=0, le=LONGEST_TIMEOUT_S)
    poll_interval_s: float = Field(default=60.0, gt=0, le=LONGEST_TIMEOUT_S)
    commit_timeout_s: float = Field(
        default=30.0, gt=0, le=LONGEST_S, description="a commit that hangs longer ends the process"
    )
    stuck_after_s: float = Field(
        default=60.0,
        gt=0,
        le=LONGEST_S,
        description="a forecaster whose readings wait this long without a commit is reported as stuck",
    )
    health_port: HealthPort = None
    health_host: HealthHost = "127.0.0.1"

    @model_validator(mode="after")
    def _timeouts_are_ordered(self) -> Self:
        order = {
            "request_timeout_s": self.request_timeout_s,
            "delivery_timeout_s": self.delivery_timeout_s,
            "session_timeout_s": self.session_timeout_s,
            "transaction_timeout_s": self.transaction_timeout_s,
            "poll_interval_s": self.poll_interval_s,
        }
        for (earlier, lower), (later, higher) in pairwise(order.items()):
            if lower >= higher:
                raise ValueError(
                    f"{earlier} ({lower:g}) must be below {later} ({higher:g}): timeouts must rise in this order, "
                    f"{' < '.join(order)}"
                )
        return self


class TrainingSettings(_Section):
    """Retraining: recipe, budget and split."""

    preset: Literal["stateful", "plain"] = "stateful"
    hidden_size: int = Field(default=64, ge=1, le=4_096)
    epochs: int = Field(default=20, ge=1, le=1_000_000)
    budget_s: float = Field(
        default=900.0, gt=0, le=LONGEST_S, description="training time; an epoch that would end later is not started"
    )
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED)
    device: str = "auto"
    warm_start: bool = Field(default=False, description="start from the champion's weights")
    late: Literal["leave_out", "train"] = Field(
        default="leave_out",
        description="late readings, for example of a backfill: leave them out, as the stream does, or train on the "
        "readings of each sensor in order of time",
    )
    validation_fraction: float = Field(default=0.1, gt=0, lt=0.5)
    test_fraction: float = Field(default=0.1, gt=0, lt=0.5)


class GateSettings(_Section):
    """When a challenger becomes champion."""

    metric: Literal["pinball", "mae", "mse"] = "pinball"
    margin: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="least improvement, as a fraction of the champion's loss"
    )
    automatic: bool = Field(
        default=True, description="promote a better challenger at once; false waits for `streamgru promote`"
    )


class Schedule(_Section):
    """When a flow runs: either a cron line (UTC) or an interval."""

    cron: str | None = None
    interval_s: float | None = Field(default=None, gt=0, le=LONGEST_S)

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.cron is None) == (self.interval_s is None):
            raise ValueError("a schedule has either cron or interval_s")
        return self


class ScheduleSettings(_Section):
    """The schedules that ``streamgru schedule`` serves."""

    ingest: Schedule = Schedule(interval_s=300)
    retrain: Schedule = Schedule(cron="0 3 * * *")
    monitor: Schedule = Schedule(interval_s=3_600)
    health_port: HealthPort = None
    health_host: HealthHost = "127.0.0.1"


class MonitorSettings(_Section):
    """The limits after which the monitor flow fails."""

    retrain_within_s: float = Field(
        default=172_800, gt=0, le=LONGEST_S, description="longest time since the last successful retraining"
    )
    append_within_s: float = Field(
        default=86_400, gt=0, le=LONGEST_S, description="longest time since the history received readings"
    )


class LoggingSettings(_Section):
    """The log that every command writes to standard error."""

    format: LogFormat = Field(
        default="text", description="text for people, or json: one object per line, with time, level, logger, message"
    )


class StackSettings(_Section):
    """Ports and downloads of the local stack that ``streamgru up`` starts."""

    kafka_port: int = Field(default=9092, ge=1, le=65_535)
    mlflow_port: int = Field(default=5000, ge=1, le=65_535)
    prefect_port: int = Field(default=4200, ge=1, le=65_535)
    cache: Path | None = Field(
        default=None, description="folder of downloads, shared by all clones; by default ~/.cache/streamgru"
    )

    @property
    def cache_path(self) -> Path:
        """The folder of Kafka's jars."""
        return self.cache if self.cache is not None else Path.home() / ".cache" / "streamgru"


def _number_as_text(mark: object) -> object:
    return str(mark) if isinstance(mark, int | float) and not isinstance(mark, bool) else mark


class FilesSettings(_Section):
    """The layout of files that are published or back-tested; an option of the command wins over its setting."""

    time_column: tuple[str, ...] | str | None = Field(
        default=None, description="column of the times, or two columns for date and time; by default the only candidate"
    )
    time_format: str | None = Field(
        default=None,
        description="strptime pattern, epoch_s, epoch_ms, epoch_us, epoch_ns, day-first, month-first or year-first; by "
        "default recognised",
    )
    timezone: str | None = Field(default=None, description="zone of times that have none")
    repeated_hour: Literal["infer", "earlier", "later"] = Field(
        default="infer",
        description="reading of a local time that exists twice; infer refuses times if the order of the rows does not "
        "show it",
    )
    sensor_column: str | None = Field(
        default=None, description="column of the sensor ids; by default a file is a sensor"
    )
    strip_ids: bool = Field(default=False, description="remove blanks around sensor ids")
    columns_as_sensors: bool = Field(default=False, description="read each numeric column as a separate sensor")
    encoding: str | None = Field(default=None, description="encoding of the text; by default recognised")
    separator: str | None = Field(
        default=None, description="one character, or comma, semicolon, tab, pipe or space; by default recognised"
    )
    decimal: Literal[".", ","] | None = Field(default=None, description="decimal sign; by default recognised")
    thousands: str | None = Field(default=None, description="sign between groups of three digits; by default none")
    missing: tuple[Annotated[str, BeforeValidator(_number_as_text)], ...] = Field(
        default=(), description="texts and numbers that stand for a missing value, in addition to NA, null and the like"
    )
    skip_rows: int | None = Field(default=None, ge=0, description="lines before the header; by default recognised")
    unit_rows: int | None = Field(
        default=None, ge=0, description="lines between the header and the readings; by default recognised"
    )
    comment: str | None = Field(
        default=None, description="lines that begin with it are ignored; by default recognised, empty for no comments"
    )
    header: bool | None = Field(default=None, description="whether the first line names the columns")
    column_names: tuple[str, ...] = Field(default=(), description="names of the columns of a file without a header")
