"""What a model is, apart from its weights: the contract it serves and the shape of its network."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Final, Literal

Preset = Literal["stateful", "plain"]
Level = Literal["off", "light", "full"]

ANCHORS: Final = 5  # offsets that a state keeps to be replayed from


@dataclass(frozen=True)
class Adaptation:
    """How forecasts adapt between retrainings (``model.adaptation``): the user's choice, whatever the model."""

    level: Level = "off"
    calibrated: bool = False  # whether intervals are resized until they cover what they say

    @property
    def active(self) -> bool:
        """Whether forecasts differ from the model's at all."""
        return self.level != "off" or self.calibrated

    @property
    def replay_steps(self) -> int:
        """Readings after which a state that began blank forecasts all but as well as one that was never interrupted."""
        return 1_024 if self.active else 512

    @property
    def anchor_spacing(self) -> int:
        """Accepted readings from one anchor of a state to the next (``model.state``): they reach that far back."""
        return self.replay_steps // (ANCHORS - 1)


NO_ADAPTATION = Adaptation()


@dataclass(frozen=True)
class ModelConfig:
    """The contract a model serves (what goes in, what comes out, at which cadence) and its architecture.

    ``season_steps`` is the length of the daily pattern in steps. ``warmup_steps`` is how many steps a state needs
    before its forecasts count as warm. ``sensors`` are those seen in training; any other is served as "unknown".

    Raises:
        ValueError: naming the field that contradicts another or lies out of range.
    """

    features: tuple[str, ...]
    targets: tuple[str, ...]
    cadence_us: int
    horizon_steps: int
    quantiles: tuple[float, ...] = (0.1, 0.5, 0.9)
    max_gap_steps: int = 168
    season_steps: int = 24
    hidden_size: int = 64
    num_layers: int = 2
    warmup_steps: int = 168
    preset: Preset = "stateful"
    sensors: tuple[str, ...] = ()
    embedding_size: int = 8  # 0: the network is not told which sensor it is
    lag_steps: int = 24  # past values of each target carried for the head's linear skip, at most
    profile_slots: int = 24  # slots of the carried seasonal profile of each target, at most; 0 carries none
    scale_seasons: int = 28  # a sensor's scale is averaged over this many seasons: slow beside its level

    def __post_init__(self) -> None:
        if not self.features or len(set(self.features)) != len(self.features):
            raise ValueError("features must be named, each once")
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise ValueError("targets must be named, each once")
        strangers = [name for name in self.targets if name not in self.features]
        if strangers:
            raise ValueError(f"targets must be features; these are not: {', '.join(strangers)}")
        if list(self.quantiles) != sorted(set(self.quantiles)) or 0.5 not in self.quantiles:
            raise ValueError("quantiles must rise and contain 0.5")
        if not (self.quantiles[0] > 0.0 and self.quantiles[-1] < 1.0):
            raise ValueError("quantiles must lie strictly between 0 and 1")
        if self.preset not in ("stateful", "plain"):
            raise ValueError(f"preset must be stateful or plain, and is {self.preset!r}")
        if len(set(self.sensors)) != len(self.sensors):
            raise ValueError("sensors must differ from each other")
        least = {
            "cadence_us": 1,
            "horizon_steps": 1,
            "max_gap_steps": 0,
            "season_steps": 1,
            "hidden_size": 1,
            "num_layers": 1,
            "warmup_steps": 1,
            "embedding_size": 0,
            "lag_steps": 0,
            "profile_slots": 0,
            "scale_seasons": 1,
        }
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be at least {minimum}, and is {getattr(self, name)}")

    @property
    def feature_count(self) -> int:
        """F."""
        return len(self.features)

    @property
    def target_count(self) -> int:
        """K."""
        return len(self.targets)

    @property
    def target_indices(self) -> tuple[int, ...]:
        """Where each target stands among the features."""
        return tuple(self.features.index(target) for target in self.targets)

    @property
    def median_index(self) -> int:
        """Where the median stands among the quantiles."""
        return self.quantiles.index(0.5)

    def to_json(self) -> str:
        """The configuration as a JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "ModelConfig":
        """The configuration in a decoded JSON object.

        Raises:
            ValueError: a field is unknown, missing, of another type or out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(content) - known)
        if unknown:
            raise ValueError(f"unknown fields in a model configuration: {', '.join(unknown)}")
        tuples: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
        }
        try:
            return cls(**tuples)
        except TypeError as error:
            raise ValueError(f"not a model configuration: {error}") from error
