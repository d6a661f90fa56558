"""The settings: a TOML file, overridden by ``STREAMGRU_…`` environment variables. No other module reads either.

``load_settings()`` reads the file that ``STREAMGRU_SETTINGS`` (or ``--settings``) names, then the environment; nested
values use a double underscore: ``STREAMGRU_KAFKA__BOOTSTRAP_SERVERS=broker:9092``. All other modules take
a ``Settings`` object. ``deploy/beijing.toml`` is a commented example.
"""

import hashlib
import json
import os
import tomllib
from pathlib import Path
from typing import Any, Self
from unicodedata import category

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from model.config import Adaptation
from model.experts import RULE as ADAPTATION_RULE
from model.reorder_buffer import GracePeriod
from pipeline.errors import SettingsError
from pipeline.settings_sections import (
    FilesSettings,
    ForecasterSettings,
    GateSettings,
    KafkaSettings,
    MonitorSettings,
    QuantileLevels,
    ScheduleSettings,
    StackSettings,
    TrainingSettings,
)

SETTINGS_FILE_VARIABLE = "STREAMGRU_SETTINGS"
SECONDS_PER_DAY = 86_400
# A state holds values and profiles for each step of a season, and is written to Kafka after every batch.
MOST_SEASON_STEPS = 10_000


def _stack(validated: dict[str, Any]) -> StackSettings:
    """The validated stack settings; the defaults if they were invalid, which validation reports by itself."""
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
        "a day if that has 2 to 10,000 steps, otherwise one step",
    )
    max_gap_steps: int = Field(default=168, ge=0, description="longer gaps reset a sensor's state")
    grace_steps: float = Field(
        default=0.0,
        ge=0.0,
        le=10_000,
        description="reorder buffer, in cadences: a reading after a gap is buffered until the gap is filled or its "
        "sensor's newest reading is this much later; 0 buffers no reading. A reading that is buffered when this "
        "setting changes, or that retention deletes before a restart, may get no forecast",
    )
    history: Path | None = Field(default=None, description="the Delta table; by default HOME/history")
    model_name: str = "streamgru"
    # Before the servers' addresses: their defaults are the local stack's.
    stack: StackSettings = StackSettings()
    mlflow_tracking_uri: str = Field(default_factory=lambda earlier: f"http://127.0.0.1:{_stack(earlier).mlflow_port}")
    prefect_api_url: str = Field(default_factory=lambda earlier: f"http://127.0.0.1:{_stack(earlier).prefect_port}/api")
    kafka: KafkaSettings = KafkaSettings()
    forecaster: ForecasterSettings = ForecasterSettings()
    training: TrainingSettings = TrainingSettings()
    gate: GateSettings = GateSettings()
    schedules: ScheduleSettings = ScheduleSettings()
    monitor: MonitorSettings = MonitorSettings()
    files: FilesSettings = FilesSettings()

    @field_validator("kafka")
    @classmethod
    def _default_to_stack_broker(cls, kafka: KafkaSettings, info: ValidationInfo) -> KafkaSettings:
        if "bootstrap_servers" in kafka.model_fields_set:
            return kafka
        return kafka.model_copy(update={"bootstrap_servers": f"127.0.0.1:{_stack(info.data).kafka_port}"})

    @model_validator(mode="after")
    def _check_features_and_targets(self) -> Self:
        if len(set(self.features)) != len(self.features):
            raise ValueError("features must differ from each other")
        # Delta Lake's writer crashes the process at some control characters.
        if unusable := [name for name in self.features if any(category(letter) in ("Cc", "Cs") for letter in name)]:
            raise ValueError(f"the name of a feature cannot contain control characters: {unusable[0]!r}")
        if len(set(self.targets)) != len(self.targets):
            raise ValueError("targets must differ from each other")
        unknown = [target for target in self.targets if target not in self.features]
        if unknown:
            raise ValueError(f"targets must be among the features, which lack {', '.join(unknown)}")
        if round(self.cadence_s * 1_000_000) < 1:
            raise ValueError("cadence_s must be at least a microsecond")
        most = self.adaptation.replay_steps + 1
        if self.rewarm_steps > most:
            raise ValueError(f"forecaster.rewarm_steps must be at most {most:,}: a state depends on no more readings")
        return self

    @property
    def rewarm_steps(self) -> int:
        """The least number of accepted readings of a sensor that are replayed to warm up a new model."""
        return self.forecaster.rewarm_steps or self.adaptation.replay_steps

    @property
    def cadence_us(self) -> int:
        """The cadence in microseconds, the unit of every timestamp inside the project."""
        return round(self.cadence_s * 1_000_000)

    @property
    def grace(self) -> GracePeriod:
        """How long the reorder buffer waits for a gap to be filled: the same in the stream, training and the audit."""
        return GracePeriod(self.cadence_us, round(self.grace_steps * self.cadence_us))

    @property
    def season(self) -> int:
        """Steps after which the seasonal-naive forecast repeats; by default one day, or one step (see above)."""
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
        """Path of the history table."""
        return self.history if self.history is not None else self.home / "history"

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits that change with every setting that shapes a forecast."""
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
        """Environment variables win over the file, whose content arrives as keyword arguments."""
        return env_settings, init_settings


def load_settings(path: Path | None = None) -> Settings:
    """The settings from a TOML file and the environment; environment variables win.

    The file is ``path``, otherwise the one that ``STREAMGRU_SETTINGS`` names. Without either there is no file.

    Raises:
        SettingsError: the file cannot be read, or a value is invalid; names the field and its allowed values.
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
            if item["type"] != "default_factory_not_called"  # a consequence of another error in the list
        ]
        where = f"{source} and the environment" if source else "the environment (STREAMGRU_…)"
        raise SettingsError(f"invalid settings in {where}:\n" + "\n".join(lines)) from error
