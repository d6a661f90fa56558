"""The section ``[bounds]`` of the settings: the possible values of targets."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.bounds import Bounds


class BoundsSettings(BaseModel):
    """The possible values of a target. No published quantile leaves the bounds; readings outside them are accepted."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)

    minimum: float | None = Field(default=None, description="least possible value, in the unit of the readings")
    maximum: float | None = Field(default=None, description="largest possible value")
    count: bool = Field(
        default=False, description="the target counts things: whole numbers from minimum on, by default from 0"
    )

    @model_validator(mode="after")
    def _do_not_contradict(self) -> Self:
        if not self.in_model.are_set:
            raise ValueError("set minimum, maximum or count = true, or leave the target out")
        return self

    @property
    def in_model(self) -> Bounds:
        """The bounds, as a model carries them.

        Raises:
            ValueError: they contradict each other.
        """
        return Bounds(self.minimum, self.maximum, self.count)
