"""The section ``[outlooks]`` of the settings: covariates known ahead, and the groups of sensors that share them."""

from typing import Final, Self
from unicodedata import category

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.known_ahead import OutlookConfig
from pipeline.settings.names import first_repeated

MOST_COVARIATES: Final = 100
MOST_STEPS: Final = 20_000  # of an outlook; each state keeps this number of values for each covariate


class OutlookSettings(BaseModel):
    """The outlooks on the readings topic. Without covariates, a record with an outlook is malformed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)

    covariates: tuple[str, ...] = Field(
        default=(),
        max_length=MOST_COVARIATES,
        description="names of the values in outlooks; a covariate may have the name of a feature",
        examples=[["temperature", "wind"]],
    )
    steps: int | None = Field(
        default=None,
        ge=1,
        le=MOST_STEPS,
        description="cadences of an outlook that are kept, from its first time on; by default twice horizon_steps",
    )
    groups: dict[str, tuple[str, ...]] = Field(
        default={},
        description="group -> its sensors, which share the group's outlooks",
        examples=[{"city": ["roof", "harbour"]}],
    )

    @model_validator(mode="after")
    def _names_are_usable(self) -> Self:
        if not self.covariates and (self.groups or self.steps is not None):
            raise ValueError("name the covariates of the outlooks, or leave out steps and groups")
        lists = {"covariates": self.covariates} | {f"group {name!r}": each for name, each in self.groups.items()}
        for what, names in lists.items():
            if repeated := first_repeated(names):
                raise ValueError(f"{what}: {repeated!r} is repeated")
            if not names and what != "covariates":
                raise ValueError(f"{what} names no sensor")
        for name, sensors in self.groups.items():
            if taken := next((sensor for sensor in sensors if sensor in self.groups), None):
                raise ValueError(f"group {name!r}: its sensor {taken!r} is also the name of a group; rename the group")
        for name in (*self.covariates, *self.groups, *(sensor for each in self.groups.values() for sensor in each)):
            if not name or any(category(letter) in ("Cc", "Cs") for letter in name):
                raise ValueError(f"a name cannot be empty or contain control characters: {name!r}")
        return self

    @property
    def are_on(self) -> bool:
        """Whether records with outlooks are read."""
        return bool(self.covariates)

    def in_model(self, horizon_steps: int) -> OutlookConfig:
        """The outlooks, as a model carries them."""
        steps = min(2 * horizon_steps, MOST_STEPS) if self.steps is None else self.steps
        groups = tuple((name, tuple(sorted(sensors))) for name, sensors in sorted(self.groups.items()))
        return OutlookConfig(self.covariates, steps, groups)
