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
    ours, theirs = _names(config.calendar), _names(wanted)
    difference = (
        f"{ours}, and the settings have {theirs}" if ours != theirs else f"other days of {ours} than the settings"
    )
    return f"was trained with {difference}; `streamgru retrain` trains a version with the days of the settings"


def _names(calendar: Sequence[CalendarCovariate]) -> str:
    return ", ".join(each.name for each in calendar) or "no calendar covariates"
