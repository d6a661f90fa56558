"""The settings: a TOML file, overridden by ``STREAMGRU_…`` environment variables. No other module reads either.

``load_settings()`` reads the file that ``STREAMGRU_SETTINGS`` (or ``--settings``) names, then the environment; nested
values use a double underscore: ``STREAMGRU_KAFKA__BOOTSTRAP_SERVERS=broker:9092``. All other modules take
a ``Settings`` object. ``deploy/beijing.toml`` is a commented example.

``variables`` gives the variables the form of settings, ``file`` reads the file, and ``report`` words the errors of
both.
"""

import hashlib
import json
import os
from dataclasses import astuple
from pathlib import Path
from typing import Any, Final, Self
from unicodedata import category

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from model.attributes import Attribute
from model.bounds import NO_BOUNDS, Bounds
from model.config import MOST_FORECAST_NUMBERS, Adaptation
from model.experts import RULE as ADAPTATION_RULE
from model.known_ahead import CalendarCovariate, OutlookConfig
from model.reorder_buffer import GracePeriod
from pipeline.errors import SettingsError
from pipeline.settings.bounds import BoundsSettings
from pipeline.settings.calendar import CalendarSettings
from pipeline.settings.file import file_on, read_settings_file
from pipeline.settings.names import ModelName, check_names, first_repeated, listed
from pipeline.settings.outlooks import OutlookSettings
from pipeline.settings.readings import ReadingsSettings
from pipeline.settings.report import describe_faults, describe_folder, describe_invalid, unknown_variable
from pipeline.settings.sections import (
    FilesSettings,
    ForecasterSettings,
    GateSettings,
    KafkaSettings,
    LoggingSettings,
    MonitorSettings,
    QuantileLevels,
    ScheduleSettings,
    StackSettings,
    TimeSettings,
    TrainingSettings,
)
from pipeline.settings.serve import ServeSettings
from pipeline.settings.variables import PREFIX, SETTINGS_FILE_VARIABLE, read_variables

__all__ = ["SETTINGS_FILE_VARIABLE", "Settings", "load_settings", "unknown_variables"]

SECONDS_PER_DAY = 86_400
# A state holds values and profiles for each step of a season, and is written to Kafka after every batch.
MOST_SEASON_STEPS = 10_000
# A sensor's state has some 100 bytes per feature and more per target, and is written to Kafka after every batch.
MOST_FEATURES: Final = 1_000
LONGEST_CADENCE_S: Final = 316_224_000.0  # ten years: 10,000 steps of it in microseconds fit 64 bits


def _stack(validated: dict[str, Any]) -> StackSettings:
    """The validated stack settings; the defaults if they were invalid, which validation reports by itself."""
    stack: StackSettings = validated.get("stack", StackSettings())
    return stack


class Settings(BaseSettings):
    """Everything a user can set. Read it with ``load_settings``."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,  # it may be a password
    )

    home: Path = Path(".streamgru")
    features: tuple[str, ...] = Field(
        default=("value",), min_length=1, max_length=MOST_FEATURES, examples=[["temperature", "humidity"]]
    )
    targets: tuple[str, ...] = Field(
        default=("value",), min_length=1, max_length=MOST_FEATURES, examples=[["temperature"]]
    )
    cadence_s: float = Field(default=3600.0, gt=0, le=LONGEST_CADENCE_S)
    horizon_steps: int = Field(default=24, ge=1, le=10_000)
    quantiles: QuantileLevels = (0.1, 0.5, 0.9)
    season_steps: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="season of the seasonal-naive forecast, and of the profiles that forecasts learn from; by default "
        "a day if that has 2 to 10,000 steps, otherwise one step",
    )
    max_gap_steps: int = Field(default=168, ge=0, le=1_000_000, description="longer gaps reset a sensor's state")
    grace_steps: float = Field(
        default=0.0,
        ge=0.0,
        le=10_000,
        description="reorder buffer, in cadences: a reading after a gap is buffered until the gap is filled or its "
        "sensor's newest reading is this much later; 0 buffers no reading. A reading that is buffered when this "
        "setting changes, or that retention deletes before a restart, may get no forecast",
    )
    bounds: dict[str, BoundsSettings] = Field(
        default={},
        examples=[{"temperature": {"minimum": -90}}],
        description="target -> its bounds; a model applies those that it was trained with",
    )
    calendar: CalendarSettings = CalendarSettings()
    attributes: dict[str, dict[str, str]] = Field(
        default={},
        examples=[{"site": {"dongsi": "urban", "roof-*": "roof"}}],
        description="attribute -> sensor id, or a pattern with * and ?, -> value; a model keeps those that it was "
        "trained with",
    )
    history: Path | None = Field(default=None, description="the Delta table; by default HOME/history")
    model_name: ModelName = "streamgru"
    # Before the servers' addresses: their defaults are the local stack's.
    stack: StackSettings = StackSettings()
    mlflow_tracking_uri: str = Field(default_factory=lambda earlier: f"http://127.0.0.1:{_stack(earlier).mlflow_port}")
    prefect_api_url: str = Field(default_factory=lambda earlier: f"http://127.0.0.1:{_stack(earlier).prefect_port}/api")
    kafka: KafkaSettings = KafkaSettings()
    readings: ReadingsSettings = ReadingsSettings()
    outlooks: OutlookSettings = OutlookSettings()
    times: TimeSettings = TimeSettings()
    forecaster: ForecasterSettings = ForecasterSettings()
    training: TrainingSettings = TrainingSettings()
    gate: GateSettings = GateSettings()
    schedules: ScheduleSettings = ScheduleSettings()
    monitor: MonitorSettings = MonitorSettings()
    serve: ServeSettings = ServeSettings()
    files: FilesSettings = FilesSettings()
    logging: LoggingSettings = LoggingSettings()

    @field_validator("kafka")
    @classmethod
    def _default_to_stack_broker(cls, kafka: KafkaSettings, info: ValidationInfo) -> KafkaSettings:
        if "bootstrap_servers" in kafka.model_fields_set:
            return kafka
        return kafka.model_copy(update={"bootstrap_servers": f"127.0.0.1:{_stack(info.data).kafka_port}"})

    @field_validator("features")
    @classmethod
    def _check_features(cls, features: tuple[str, ...]) -> tuple[str, ...]:
        if repeated := first_repeated(features):
            raise ValueError(f"features must differ from each other; {repeated!r} is repeated")
        # Delta Lake's writer crashes the process at some control characters.
        if unusable := [name for name in features if any(category(letter) in ("Cc", "Cs") for letter in name)]:
            raise ValueError(f"the name of a feature cannot contain control characters: {unusable[0]!r}")
        return features

    @field_validator("targets")
    @classmethod
    def _check_targets(cls, targets: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if repeated := first_repeated(targets):
            raise ValueError(f"targets must differ from each other; {repeated!r} is repeated")
        features = info.data.get("features", targets)  # absent if invalid, which validation reports by itself
        if unknown := [target for target in targets if target not in features]:
            raise ValueError(
                f"targets must be among the features, which lack {listed(unknown)}; the features are {listed(features)}"
            )
        return targets

    @field_validator("bounds", mode="before")
    @classmethod
    def _check_quotes(cls, bounds: Any) -> Any:
        for name, content in bounds.items() if isinstance(bounds, dict) else ():
            for rest, inner in content.items() if isinstance(content, dict) else ():
                if isinstance(inner, dict):  # TOML takes the dot of [bounds.PM2.5] for a table in a table
                    raise ValueError(f'a name with a dot needs quotes: [bounds."{name}.{rest}"]')
        return bounds

    @field_validator("bounds")
    @classmethod
    def _check_bounds(cls, bounds: dict[str, BoundsSettings], info: ValidationInfo) -> dict[str, BoundsSettings]:
        features = info.data.get("features", tuple(bounds))
        if strangers := [name for name in bounds if name not in features]:
            raise ValueError(
                f"bounds must name targets, but the features lack {listed(strangers)}; the features are "
                f"{listed(features)}"
            )
        return bounds  # those of a feature outside the targets have no effect, so that targets can be changed alone

    @field_validator("attributes", mode="before")
    @classmethod
    def _check_quotes_of_sensors(cls, attributes: Any) -> Any:
        for name, content in attributes.items() if isinstance(attributes, dict) else ():
            for sensor, inner in content.items() if isinstance(content, dict) else ():
                if isinstance(inner, dict):  # TOML takes the dot of a sensor id for a table in a table
                    raise ValueError(f'under [attributes.{name}], a sensor id with a dot needs quotes: "{sensor}.…"')
        return attributes

    @field_validator("attributes")
    @classmethod
    def _check_attributes(cls, attributes: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
        check_names("an attribute", attributes)
        if empty := [name for name, by_pattern in attributes.items() if not by_pattern]:
            raise ValueError(f"the attribute {empty[0]} names no sensor; give one a value, or remove the attribute")
        return attributes

    @field_validator("cadence_s")
    @classmethod
    def _check_cadence(cls, cadence_s: float) -> float:
        if round(cadence_s * 1_000_000) < 1:
            raise ValueError("cadence_s must be at least a microsecond")
        return cadence_s

    @field_validator("readings")
    @classmethod
    def _check_mapped_features(cls, readings: ReadingsSettings, info: ValidationInfo) -> ReadingsSettings:
        features = info.data.get("features", tuple(readings.fields))
        if strangers := [name for name in readings.fields if name not in features]:
            raise ValueError(
                f"fields must name features, which lack {listed(strangers)}; the features are {listed(features)}"
            )
        return readings

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        numbers = len(self.targets) * len(self.quantiles) * self.horizon_steps
        if numbers > MOST_FORECAST_NUMBERS:
            raise ValueError(
                f"horizon_steps ({self.horizon_steps:,}), targets ({len(self.targets):,}) and quantiles "
                f"({len(self.quantiles):,}) together make {numbers:,} numbers per forecast, and a message takes "
                f"{MOST_FORECAST_NUMBERS:,}"
            )
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
        wait_us = round(self.grace_steps * self.cadence_us)
        return GracePeriod(self.cadence_us, wait_us, has_outlooks=self.outlooks.are_on)

    @property
    def season(self) -> int:
        """Steps after which the seasonal-naive forecast repeats; by default one day, or one step (see above)."""
        if self.season_steps is not None:
            return self.season_steps
        day = round(SECONDS_PER_DAY / self.cadence_s)
        return day if 1 < day <= MOST_SEASON_STEPS else 1

    @property
    def outlook_config(self) -> OutlookConfig | None:
        """The outlooks that a model trained now uses; None without any."""
        return self.outlooks.in_model(self.horizon_steps) if self.outlooks.are_on else None

    @property
    def adaptation(self) -> Adaptation:
        """How forecasts adapt, in the stream and in every back-test."""
        return Adaptation(self.forecaster.adaptation, self.forecaster.calibration)

    @property
    def target_bounds(self) -> tuple[Bounds, ...]:
        """The bounds of each target, for a model that is trained now; empty if no target has any."""
        found = tuple(self.bounds[name].in_model if name in self.bounds else NO_BOUNDS for name in self.targets)
        return found if any(each.are_set for each in found) else ()

    @property
    def sensor_attributes(self) -> tuple[Attribute, ...]:
        """The attributes of sensors, for a model that is trained now."""
        return tuple(Attribute(name, tuple(by_pattern.items())) for name, by_pattern in self.attributes.items())

    @property
    def calendar_covariates(self) -> tuple[CalendarCovariate, ...]:
        """The days that are known ahead, for a model that is trained now."""
        return self.calendar.in_model

    @property
    def history_path(self) -> Path:
        """Path of the history table."""
        return self.history if self.history is not None else self.home / "history"

    @property
    def folders(self) -> dict[tuple[str, ...], Path]:
        """The folders that the settings name, by the path of the setting."""
        named = {("home",): self.home, ("history",): self.history, ("stack", "cache"): self.stack.cache}
        return {setting: folder for setting, folder in named.items() if folder is not None}

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
        if self.readings.is_mapped:
            shaping["readings"] = self.readings.shaping
        if self.outlook_config is not None:
            shaping["outlooks"] = astuple(self.outlook_config)
        if self.times.all_readings:  # otherwise the limits change no earlier verdict, so that the states stay valid
            shaping["times"] = (self.times.max_ahead_s, self.times.earliest.isoformat())
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
        return _VariablesSource(settings_cls), init_settings


class _VariablesSource(PydanticBaseSettingsSource):
    """The environment, read by ``read_variables``, which also takes lists with commas."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Not used: ``__call__`` gives all values."""
        raise NotImplementedError

    def __call__(self) -> dict[str, Any]:
        """The values of the variables, nested.

        Raises:
            SettingsError: a variable has not the form of its setting, or names none of its section's.
        """
        variables = read_variables(os.environ, self.settings_cls)
        if variables.faults or variables.refused:
            raise SettingsError(describe_faults(variables, self.settings_cls))
        return variables.values


def load_settings(path: Path | None = None) -> Settings:
    """The settings from a TOML file and the environment; environment variables win.

    The file is ``path``, otherwise the one that ``STREAMGRU_SETTINGS`` names. Without either there is no file.

    Raises:
        SettingsError: the file cannot be read, or a value is invalid; names the setting, its line or variable, its
            value (passwords excepted) and the form.
    """
    named = os.environ.get(SETTINGS_FILE_VARIABLE)
    source = path or (Path(named) if named else None)
    file = read_settings_file(source) if source is not None else None
    try:
        settings = Settings(**(file.content if file else {}))
    except ValidationError as error:
        variables = read_variables(os.environ, Settings)
        # The cause would show all values of a section, with its password, in a traceback.
        raise SettingsError(describe_invalid(error, Settings, variables, file)) from None
    for setting, folder in settings.folders.items():
        if (obstacle := file_on(folder)) is not None:
            variables = read_variables(os.environ, Settings)
            raise SettingsError(describe_folder(setting, folder, obstacle, variables, file))
    return settings


def with_serve(settings: Settings, **options: Any) -> Settings:
    """The settings with other values in the section ``serve``; None keeps the value.

    Raises:
        SettingsError: a value is invalid.
    """
    given = {name: value for name, value in options.items() if value is not None}
    try:
        serve = ServeSettings(**(settings.serve.model_dump(exclude_unset=True) | given))
    except ValidationError as error:
        fault = error.errors(include_input=False)[0]
        raise SettingsError(f"--{fault['loc'][0]}: {fault['msg']}") from None
    return settings.model_copy(update={"serve": serve})


def unknown_variables() -> list[str]:
    """A sentence for each variable of the environment that begins with ``STREAMGRU_`` and names no setting."""
    return [unknown_variable(name, Settings) for name in read_variables(os.environ, Settings).unknown]
