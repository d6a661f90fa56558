"""Remarks about attributes: sensors without a value, values that are all equal, and models with other attributes."""

from collections.abc import Sequence
from typing import Final

from model.attributes import Attribute
from model.config import ModelConfig
from pipeline.settings import Settings
from pipeline.text.plural import counted

_MOST_NAMED: Final = 3


def attribute_remarks(sensors: Sequence[str], settings: Settings) -> list[str]:
    """A sentence for each attribute that some of these sensors lack, or whose values they do not tell apart."""
    found = []
    for attribute in settings.sensor_attributes:
        values = [attribute.value_of(sensor) for sensor in sensors]
        without = [sensor for sensor, value in zip(sensors, values, strict=True) if value is None]
        if len(set(values)) == 1:
            same = "no value for any sensor" if without else f"the value {values[0]} for all sensors"
            found.append(f"{attribute.name} has {same} here, so its effect cannot be learned")
        elif without:
            named = ", ".join(without[:_MOST_NAMED]) + (", …" if len(without) > _MOST_NAMED else "")
            found.append(f"{attribute.name} has no value for {counted(len(without), 'sensor')}: {named}")
    return found


def attributes_difference(config: ModelConfig, settings: Settings) -> str | None:
    """A clause about a model with other attributes than the settings; None if they are the same."""
    wanted = settings.sensor_attributes
    if config.attributes == wanted:
        return None
    ours, theirs = _names(config.attributes), _names(wanted)
    difference = (
        f"{ours}, and the settings have {theirs}" if ours != theirs else f"other values of {ours} than the settings"
    )
    return f"was trained with {difference}; `streamgru retrain` trains a version with the attributes of the settings"


def _names(attributes: Sequence[Attribute]) -> str:
    return ", ".join(each.name for each in attributes) or "no attributes"
