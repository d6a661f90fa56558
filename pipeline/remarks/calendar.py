"""Remarks about calendar covariates: days that the readings do not show, and models with other days."""

from collections.abc import Sequence

import numpy as np

from model.config import ModelConfig
from model.known_ahead import CalendarCovariate
from model.sequences import Sequences
from pipeline.settings import Settings


def calendar_remarks(sequences: Sequences, settings: Settings) -> list[str]:
    """A sentence for each calendar covariate that is the same at all readings."""
    moments = sequences.timestamp_us
    if not len(moments):
        return []
    remarks = []
    for each in settings.calendar_covariates:
        values = each.at(np.array([moments.min(), moments.max()]))
        within = (each.changes_us > moments.min()) & (each.changes_us <= moments.max())
        if not within.any() and values[0] == values[1]:
            days = "every day" if values[0] else "no day"
            remarks.append(f"{each.name} has {days} within the time of the readings, so its effect cannot be learned")
    return remarks


def calendar_difference(config: ModelConfig, settings: Settings) -> str | None:
    """A clause about a model with other calendar covariates than the settings; None if they are the same."""
    wanted = settings.calendar_covariates
    if config.calendar == wanted:
        return None
    ours, theirs = _by_name(config.calendar), _by_name(wanted)
    parts = {
        "with {}, which the settings do not have": sorted(ours.keys() - theirs.keys()),
        "without {}": sorted(theirs.keys() - ours.keys()),
        "with other days of {} than the settings": sorted(
            name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]
        ),
    }
    difference = " and ".join(part.format(", ".join(names)) for part, names in parts.items() if names)
    return f"was trained {difference}; `streamgru retrain` trains a version with the days of the settings"


def _by_name(calendar: Sequence[CalendarCovariate]) -> dict[str, CalendarCovariate]:
    return {each.name: each for each in calendar}
