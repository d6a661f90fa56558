"""A model's configuration: the contract it serves and the shape of its network."""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Final, Literal

from .attributes import Attribute
from .bounds import Bounds
from .known_ahead import CalendarCovariate, OutlookConfig, calendar_from_json, outlook_from_json

Preset = Literal["stateful", "plain"]
Level = Literal["off", "light", "full"]

# A state, like a forecast, is one record of a topic; brokers refuse larger ones.
MOST_RECORD_BYTES: Final = 16 << 20
BYTES_PER_NUMBER: Final = 12  # of a forecast: a quantile and its comma in JSON
MOST_FORECAST_NUMBERS: Final = MOST_RECORD_BYTES // BYTES_PER_NUMBER  # targets x quantiles x steps

ANCHORS: Final = 5  # offsets kept in a state, to rebuild it from the readings after one of them


@dataclass(frozen=True)
class Adaptation:
    """How forecasts adapt between retrainings (``model.adaptation``): a setting, independent of the model."""

    level: Level = "off"
    calibrated: bool = False  # whether intervals are resized until they cover their nominal share of the labels

    @property
    def active(self) -> bool:
        """Whether adaptation changes the model's forecasts."""
        return self.level != "off" or self.calibrated

    @property
    def replay_steps(self) -> int:
        """Readings after which a state that began blank forecasts nearly as well as one that was never reset."""
        return 1_024 if self.active else 512

    @property
    def anchor_spacing(self) -> int:
        """Accepted readings between two anchors of a state (``model.state``); all span ``replay_steps``."""
        return self.replay_steps // (ANCHORS - 1)


NO_ADAPTATION = Adaptation()


@dataclass(frozen=True)
class ModelConfig:
    """The contract that a model serves (features, targets, cadence, horizon, quantiles), and its shape.

    Raises:
        ValueError: a field contradicts another or lies out of range; the message names it.
    """

    features: tuple[str, ...]
    targets: tuple[str, ...]
    cadence_us: int
    horizon_steps: int
    quantiles: tuple[float, ...] = (0.1, 0.5, 0.9)
    max_gap_steps: int = 168  # longest gap that is stepped as missing; a longer one resets the state
    season_steps: int = 24  # steps of the daily pattern
    hidden_size: int = 64
    num_layers: int = 2
    warmup_steps: int = 168  # steps before a state's forecasts count as warm
    preset: Preset = "stateful"
    sensors: tuple[str, ...] = ()  # sensors seen in training; every other sensor is served as unknown
    embedding_size: int = 8  # numbers in a sensor's vector; with 0 the network does not know which sensor it steps
    lag_steps: int = 24  # largest number of past values of a target that are carried for the head's linear skip
    profile_slots: int = 24  # largest number of slots in a target's carried seasonal profile; 0 for no profile
    scale_seasons: int = 28  # seasons that a sensor's scale is averaged over; it moves more slowly than the level
    bounds: tuple[Bounds, ...] = ()  # of each target; empty if no target has any
    roots: tuple[bool, ...] = ()  # whether each target is modelled by roots (``model.target_scale``); empty if none is
    calendar: tuple[CalendarCovariate, ...] = ()  # covariates known ahead that are functions of time
    outlook: OutlookConfig | None = None  # covariates known ahead that come in messages; None without any
    attributes: tuple[Attribute, ...] = ()  # of sensors; empty if the settings give none

    def __post_init__(self) -> None:
        if not self.features or len(set(self.features)) != len(self.features):
            raise ValueError("features must name at least one feature, and each feature once")
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise ValueError("targets must name at least one target, and each target once")
        if strangers := [name for name in self.targets if name not in self.features]:
            raise ValueError(f"every target must be a feature; these are not: {', '.join(strangers)}")
        if list(self.quantiles) != sorted(set(self.quantiles)) or 0.5 not in self.quantiles:
            raise ValueError("quantiles must ascend and contain 0.5")
        if not (self.quantiles[0] > 0.0 and self.quantiles[-1] < 1.0):
            raise ValueError("quantiles must lie strictly between 0 and 1")
        if self.preset not in ("stateful", "plain"):
            raise ValueError(f"preset must be 'stateful' or 'plain', not {self.preset!r}")
        if len(set(self.sensors)) != len(self.sensors):
            raise ValueError("sensors must name each sensor once")
        if self.bounds and len(self.bounds) != len(self.targets):
            raise ValueError(f"bounds must be those of all {len(self.targets)} targets, not of {len(self.bounds)}")
        if self.roots and len(self.roots) != len(self.targets):
            raise ValueError(f"roots must be those of all {len(self.targets)} targets, not of {len(self.roots)}")
        for target, is_root in zip(self.targets, self.roots, strict=False):
            if type(is_root) is not bool:
                raise ValueError(f"roots must be true or false for each target, not {is_root!r}")
            if is_root and (not self.bounds or math.isinf(self.bounds[self.targets.index(target)].lowest)):
                raise ValueError(f"{target} needs a minimum to be modelled by roots")
        if len({each.name for each in self.calendar}) != len(self.calendar):
            raise ValueError("calendar must name each covariate once")
        if len({each.name for each in self.attributes}) != len(self.attributes):
            raise ValueError("attributes must name each attribute once")
        if self.attributes and not self.embedding_size:
            raise ValueError("attributes need an embedding_size of at least 1")
        from_zero = ("max_gap_steps", "embedding_size", "lag_steps", "profile_slots")
        from_one = ("cadence_us", "horizon_steps", "season_steps", "hidden_size", "num_layers", "warmup_steps")
        for name in (*from_zero, *from_one, "scale_seasons"):
            minimum = 0 if name in from_zero else 1
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be at least {minimum}, not {getattr(self, name)}")

    @property
    def feature_count(self) -> int:
        """F: the number of features."""
        return len(self.features)

    @property
    def target_count(self) -> int:
        """K: the number of targets."""
        return len(self.targets)

    @property
    def target_indices(self) -> tuple[int, ...]:
        """(K,) the index of each target among the features."""
        return tuple(self.features.index(target) for target in self.targets)

    @property
    def targets_by_roots(self) -> tuple[str, ...]:
        """The targets that are modelled by roots."""
        return tuple(target for target, is_root in zip(self.targets, self.roots, strict=False) if is_root)

    @property
    def knows_ahead(self) -> bool:
        """Whether the network has covariates known ahead."""
        return bool(self.calendar) or self.outlook is not None

    @property
    def median_index(self) -> int:
        """The index of the median among the quantiles."""
        return self.quantiles.index(0.5)

    def to_json(self) -> str:
        """The configuration as a JSON object."""
        content = dataclasses.asdict(self)
        for name in ("bounds", "roots", "calendar", "outlook", "attributes"):
            if not content[name]:
                del content[name]  # so that an older program can read it
        return json.dumps(content, indent=2, ensure_ascii=False)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "ModelConfig":
        """The configuration in a decoded JSON object.

        Raises:
            ValueError: a field is unknown, missing, of another type or out of range.
        """
        if unknown := sorted(set(content) - {field.name for field in dataclasses.fields(cls)}):
            raise ValueError(f"unknown fields in a model configuration: {', '.join(unknown)}")
        tuples: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
        }
        try:
            if "bounds" in tuples:
                tuples["bounds"] = tuple(Bounds(**each) for each in tuples["bounds"])
            if "calendar" in tuples:
                tuples["calendar"] = calendar_from_json(tuples["calendar"])
            if "outlook" in tuples:
                tuples["outlook"] = outlook_from_json(tuples["outlook"])
            if "attributes" in tuples:
                tuples["attributes"] = tuple(map(Attribute.from_dict, tuples["attributes"]))
            return cls(**tuples)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a model configuration: {error}") from error
