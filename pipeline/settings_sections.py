"""The sections of the settings; ``pipeline.settings`` reads them."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)

LARGEST_SEED = 2**63 - 1  # that torch and numpy both take, and a JSON parameter of a flow
_TOPIC_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")


def _sorted_levels(levels: tuple[float, ...]) -> tuple[float, ...]:
    if not all(0.0 < level < 1.0 for level in levels):
        raise ValueError("quantile levels lie strictly between 0 and 1")
    if len(set(levels)) != len(levels):
        raise ValueError("quantile levels must differ from each other")
    if 0.5 not in levels:
        raise ValueError("quantile levels must contain 0.5: the median is the point forecast")
    return tuple(sorted(levels))


QuantileLevels = Annotated[tuple[float, ...], AfterValidator(_sorted_levels)]


class _Section(BaseModel):
    # No infinite times: what counts in them, timers and intervals, raises OverflowError.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TopicNames(_Section):
    """Names of the four topics."""

    readings: str = "readings"
    forecasts: str = "forecasts"
    state: str = "forecaster-state"
    dead_letters: str = "readings.dlq"

    @model_validator(mode="after")
    def _names_are_four_that_kafka_takes(self) -> Self:
        names = (self.readings, self.forecasts, self.state, self.dead_letters)
        for name in names:
            if not _TOPIC_NAME.fullmatch(name) or name in (".", ".."):
                raise ValueError(f"{name!r} is no topic name: 1 to 249 letters, digits, dots, dashes or underscores")
        if len(set(names)) != len(names):
            raise ValueError(f"the four topics must differ from each other, and are {', '.join(names)}")
        return self


class KafkaSettings(_Section):
    """How to reach the brokers, and what the topics look like."""

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
    replication_factor: int = Field(default=1, ge=1)
    max_reading_bytes: int = Field(default=1_000_000, ge=1_000, description="largest reading the topic takes")
    retention_s: int | None = Field(
        default=None, ge=60, description="retention of readings and forecasts; none keeps all"
    )


class ForecasterSettings(_Section):
    """The streaming consumer."""

    group_id: str = "streamgru-forecaster"
    instance: str | None = Field(default=None, description="stable name of this forecaster; by default host and slot")
    static_membership: bool = Field(
        default=False,
        description="the group keeps a stopped forecaster's partitions for it, for session_timeout_s: a restart goes "
        "on at once, and nobody takes over before",
    )
    max_batch_readings: int = Field(
        default=20_000, ge=1, le=100_000, description="of one transaction: reached only where readings have piled up"
    )
    start: Literal["earliest", "latest"] = Field(
        default="earliest", description="where a group begins that has no offsets, committed or noted in the changelog"
    )
    adaptation: Literal["off", "light", "full"] = Field(
        default="light", description="how forecasts adapt from reading to reading between retrainings"
    )
    calibration: bool = Field(
        default=True, description="resize intervals from reading to reading until they cover what they say"
    )
    poll_alias_s: float = Field(default=2.0, gt=0, le=60, description="how often the champion alias is looked up")
    rewarm_steps: int | None = Field(
        default=None,
        ge=1,
        description="accepted readings replayed per sensor into a new model, at least; by default what costs next to "
        "nothing: 512, or 1024 where forecasts adapt. A state remembers no more than that and one",
    )
    rewarm_max_readings: int = Field(
        default=2_000_000, ge=1, description="readings re-read per partition at most to rebuild or re-warm states"
    )
    # Each lies below the next (``_timeouts_are_ordered``). A producer gives a batch up before the group gives up its
    # forecaster; the group gives it up, and a successor begins, before the brokers abort what it left open, for which
    # the successor waits no longer than transaction_timeout_s; and no transaction outlives the poll it came from. The
    # commit's is apart: it ends a process whose client does not come back.
    request_timeout_s: float = Field(default=3.0, gt=0)
    delivery_timeout_s: float = Field(default=4.0, gt=0)
    session_timeout_s: float = Field(default=6.0, ge=6.0, description="brokers refuse less than 6 s by default")
    transaction_timeout_s: float = Field(default=8.0, gt=0)
    poll_interval_s: float = Field(default=60.0, gt=0)
    commit_timeout_s: float = Field(default=30.0, gt=0, description="a commit that hangs longer ends the process")
    stuck_after_s: float = Field(
        default=60.0, gt=0, description="work that waits so long without a commit is reported as stuck"
    )
    health_port: int | None = Field(default=None, ge=1, le=65_535, description="of GET /healthz and /readyz; none: off")
    health_host: str = Field(default="127.0.0.1", description="where that listens; 0.0.0.0 for probes from outside")

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
    epochs: int = Field(default=20, ge=1)
    budget_s: float = Field(default=900.0, gt=0, description="no epoch begins that would end past this")
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED)
    device: str = "auto"
    warm_start: bool = Field(default=False, description="begin from the champion's weights")
    validation_fraction: float = Field(default=0.1, gt=0, lt=0.5)
    test_fraction: float = Field(default=0.1, gt=0, lt=0.5)


class GateSettings(_Section):
    """When a challenger becomes champion."""

    metric: Literal["pinball", "mae", "mse"] = "pinball"
    margin: float = Field(default=0.0, ge=0.0, lt=1.0, description="how much better, as a fraction, it must be")
    automatic: bool = Field(
        default=True, description="whether a better one is promoted at once; or else it waits for `streamgru promote`"
    )


class Schedule(_Section):
    """When a flow runs: either a cron line (UTC) or an interval."""

    cron: str | None = None
    interval_s: float | None = Field(default=None, gt=0)

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


class MonitorSettings(_Section):
    """What the monitor flow complains about."""

    retrain_within_s: float = Field(default=172_800, gt=0, description="a retraining must have ended well")
    append_within_s: float = Field(default=86_400, gt=0, description="the history must have got readings")


class StackSettings(_Section):
    """Ports and downloads of the local stack that ``streamgru up`` starts."""

    kafka_port: int = Field(default=9092, ge=1, le=65_535)
    mlflow_port: int = Field(default=5000, ge=1, le=65_535)
    prefect_port: int = Field(default=4200, ge=1, le=65_535)
    cache: Path | None = Field(
        default=None, description="folder of downloads that every clone shares; by default ~/.cache/streamgru"
    )

    @property
    def cache_path(self) -> Path:
        """Where Kafka's jars are kept."""
        return self.cache if self.cache is not None else Path.home() / ".cache" / "streamgru"
