"""The one place where configuration is read: a TOML file, overridden by ``STREAMGRU_…`` environment variables.

``load_settings()`` reads the file that ``STREAMGRU_SETTINGS`` (or ``--settings``) names, then the environment; nested
values use a double underscore: ``STREAMGRU_KAFKA__BOOTSTRAP_SERVERS=broker:9092``. Everything else in the project takes
a ``Settings`` object. ``deploy/beijing.toml`` is a commented example.
"""

import hashlib
import json
import os
import re
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from unicodedata import category

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from model.config import Adaptation
from model.experts import RULE as ADAPTATION_RULE
from model.grace import Grace
from pipeline.errors import SettingsError

SETTINGS_FILE_VARIABLE = "STREAMGRU_SETTINGS"
SECONDS_PER_DAY = 86_400
# A state holds values and profiles for each step of a season, and is written after every reading.
MOST_SEASON_STEPS = 10_000
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


def _stack(validated: dict[str, Any]) -> StackSettings:
    """The stack's settings among the fields validated so far; the defaults where they were refused and are reported."""
    stack: StackSettings = validated.get("stack", StackSettings())
    return stack


class Settings(BaseSettings):
    """Everything a user can set. Read it with ``load_settings``."""

    model_config = SettingsConfigDict(
        env_prefix="STREAMGRU_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
    )

    home: Path = Path(".streamgru")
    features: tuple[str, ...] = Field(default=("value",), min_length=1)
    targets: tuple[str, ...] = Field(default=("value",), min_length=1)
    cadence_s: float = Field(default=3600.0, gt=0)
    horizon_steps: int = Field(default=24, ge=1, le=10_000)
    quantiles: QuantileLevels = (0.1, 0.5, 0.9)
    season_steps: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="season of the seasonal-naive forecast, and of the profiles that forecasts learn from; by default "
        "a day where that has 2 to 10,000 steps, else one step",
    )
    max_gap_steps: int = Field(default=168, ge=0, description="longer gaps reset a sensor's state")
    grace_steps: float = Field(
        default=0.0,
        ge=0.0,
        le=10_000,
        description="readings behind a gap are held until it is filled, or their sensor's newest one is so many "
        "cadences later (0: not at all); what is held when this is changed, or deleted by retention before a restart, "
        "may get no forecast",
    )
    history: Path | None = Field(default=None, description="the Delta table; by default HOME/history")
    model_name: str = "streamgru"
    # Before what follows from it: the servers' addresses are the local stack's unless they are set.
    stack: StackSettings = StackSettings()
    mlflow_tracking_uri: str = Field(default_factory=lambda earlier: f"http://127.0.0.1:{_stack(earlier).mlflow_port}")
    prefect_api_url: str = Field(default_factory=lambda earlier: f"http://127.0.0.1:{_stack(earlier).prefect_port}/api")
    kafka: KafkaSettings = KafkaSettings()
    forecaster: ForecasterSettings = ForecasterSettings()
    training: TrainingSettings = TrainingSettings()
    gate: GateSettings = GateSettings()
    schedules: ScheduleSettings = ScheduleSettings()
    monitor: MonitorSettings = MonitorSettings()

    @field_validator("kafka")
    @classmethod
    def _brokers_are_the_stack_unless_set(cls, kafka: KafkaSettings, info: ValidationInfo) -> KafkaSettings:
        if "bootstrap_servers" in kafka.model_fields_set:
            return kafka
        return kafka.model_copy(update={"bootstrap_servers": f"127.0.0.1:{_stack(info.data).kafka_port}"})

    @model_validator(mode="after")
    def _features_and_targets_fit(self) -> Self:
        if len(set(self.features)) != len(self.features):
            raise ValueError("features must differ from each other")
        # The history's writer ends the process at some of them.
        if unusable := [name for name in self.features if any(category(letter) in ("Cc", "Cs") for letter in name)]:
            raise ValueError(f"features cannot have control characters in their names, as {unusable[0]!r} has")
        if len(set(self.targets)) != len(self.targets):
            raise ValueError("targets must differ from each other")
        strangers = [target for target in self.targets if target not in self.features]
        if strangers:
            raise ValueError(f"targets must be among the features; these are not: {', '.join(strangers)}")
        if round(self.cadence_s * 1_000_000) < 1:
            raise ValueError("cadence_s is below a microsecond")
        most = self.adaptation.replay_steps + 1
        if self.rewarm_steps > most:
            raise ValueError(f"forecaster.rewarm_steps is at most {most:,}: the state of a sensor remembers no more")
        return self

    @property
    def rewarm_steps(self) -> int:
        """Accepted readings replayed per sensor into a new model, at least."""
        return self.forecaster.rewarm_steps or self.adaptation.replay_steps

    @property
    def cadence_us(self) -> int:
        """The cadence in microseconds, the unit of every timestamp inside the project."""
        return round(self.cadence_s * 1_000_000)

    @property
    def grace(self) -> Grace:
        """How long gaps are waited for, in the stream and wherever its readings are judged again."""
        return Grace(self.cadence_us, round(self.grace_steps * self.cadence_us))

    @property
    def season(self) -> int:
        """Steps after which the seasonal-naive forecast repeats: by default a day's worth, where that is a number."""
        if self.season_steps is not None:
            return self.season_steps
        day = round(SECONDS_PER_DAY / self.cadence_s)
        return day if 1 < day <= MOST_SEASON_STEPS else 1

    @property
    def adaptation(self) -> Adaptation:
        """How forecasts adapt, in the stream and in every back-test."""
        return Adaptation(self.forecaster.adaptation, self.forecaster.calibration)

    @property
    def history_path(self) -> Path:
        """Where the history table lies."""
        return self.history if self.history is not None else self.home / "history"

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits that change whenever a setting that shapes a forecast does."""
        shaping: dict[str, Any] = {
            "features": self.features,
            "targets": self.targets,
            "cadence_us": self.cadence_us,
            "horizon_steps": self.horizon_steps,
            "quantiles": self.quantiles,
            "max_gap_steps": self.max_gap_steps,
            "adaptation": self.forecaster.adaptation,
            "calibration": self.forecaster.calibration,
        }
        if self.adaptation.active:
            shaping["adaptation_rule"] = ADAPTATION_RULE
        if self.grace.is_on:
            shaping["grace_us"] = self.grace.wait_us
        return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()[:12]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment outranks the file, whose content arrives as keyword arguments."""
        return env_settings, init_settings


def load_settings(path: Path | None = None) -> Settings:
    """Settings from a TOML file and the environment, the latter winning.

    The file is ``path``, else the one that ``STREAMGRU_SETTINGS`` names, else none.

    Raises:
        SettingsError: naming the file or variable, the field, and what it may be.
    """
    named = os.environ.get(SETTINGS_FILE_VARIABLE)
    source = path or (Path(named) if named else None)
    content: dict[str, Any] = {}
    if source is not None:
        try:
            content = tomllib.loads(source.read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingsError(f"settings file {source} cannot be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"settings file {source} is not valid TOML: {error}") from error
    try:
        return Settings(**content)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(str(part) for part in item['loc']) or 'settings'}: {item['msg']}"
            for item in error.errors()
            if item["type"] != "default_factory_not_called"  # only follows from another error, which is listed
        ]
        where = f"{source} and the environment" if source else "the environment (STREAMGRU_…)"
        raise SettingsError("settings are not valid; read from " + where + ":\n" + "\n".join(lines)) from error
