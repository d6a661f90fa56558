"""Studies of disturbed states: a change of unit, a model swap, missing readings.

Letters: S sensors, M moments, K targets, h horizon steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from model.backtest import Persistence, SeasonalNaive
from model.config import Adaptation
from model.state import States
from model.stepper import Stepper
from tests.benchmarks.case import Case, Result, by_sensor, carried, medians_by_rule, scored, side_by_side
from tests.benchmarks.panel import Floats, Indexes, Walk

# Number of moments at which the states of all sensors are disturbed.
MOMENTS: Final = 24
AFTER_CHANGE: Final = (1, 6, 24, 48, 96, 168, 336, 504, 672, 1_008)
AFTER_SWAP: Final = (1, 10, 50)
REPLAYS: Final = (256, 512, 1_024)
GAPS: Final = (1, 3, 6, 12, 24, 48, 96, 168, 343)
AFTER_GAP: Final = (1, 6, 24)


@dataclass(frozen=True)
class UnitChange:
    """A change of unit: new = factor * old + offset + deviations * (the sensor's standard deviation)."""

    factor: float = 1.0
    offset: float = 0.0
    deviations: float = 0.0


NO_CHANGE: Final = "none"
UNIT_CHANGES: Final = {
    "times 1,000": UnitChange(1_000.0),
    "divided by 1,000": UnitChange(0.001),
    "plus 100 deviations": UnitChange(deviations=100.0),
}


def rescaled(case: Case, adaptation: Adaptation, changes: Mapping[str, UnitChange] = UNIT_CHANGES) -> Result:
    """Errors after a change of unit of all values, and without a change, by steps since the change."""
    stepper = Stepper(case.forecaster, adaptation)
    moments = case.moments(MOMENTS, after=AFTER_CHANGE[-1])
    states = carried_at(case, adaptation, moments)
    unit = np.tile(case.scale[:, :1], (len(moments), 1))[:, :, None]  # (M·S, 1, 1)
    found = {}
    for name, change in {NO_CHANGE: UnitChange(), **changes}.items():
        names, times, values = side_by_side(case.panel, moments + 1, moments + 1 + AFTER_CHANGE[-1])
        walk = Walk(stepper, names, states.copy())
        offset = change.offset + change.deviations * unit
        found[name] = stages(case, walk, moments + 1, times, values, AFTER_CHANGE, change.factor, offset)
    return {"steps": AFTER_CHANGE, "errors": found}


def swap(case: Case, old: Case, adaptation: Adaptation) -> Result:
    """Errors of a new model's first forecasts after a swap, by the origin of its states."""
    stepper, olds = Stepper(case.forecaster, adaptation), Stepper(old.forecaster, adaptation)
    moments = case.moments(MOMENTS, after=AFTER_SWAP[-1])
    names, times, values = side_by_side(case.panel, moments + 1, moments + 1 + AFTER_SWAP[-1])
    before = carried_at(old, adaptation, moments)
    walks = {"never interrupted": Walk(stepper, names, carried_at(case, adaptation, moments))}
    for replayed in REPLAYS:
        walks[f"{replayed:,} replayed"] = Walk.blank(stepper, names)
        walks[f"{replayed:,} replayed"].go(*side_by_side(case.panel, moments + 1 - replayed, moments + 1)[1:], [])
    walks["the old model's states"] = Walk(stepper, names, before.copy())
    walks["blank"] = Walk.blank(stepper, names)
    walks["the old model"] = Walk(olds, names, before)
    found = {name: stages(case, walk, moments + 1, times, values, AFTER_SWAP) for name, walk in walks.items()}
    return {"steps": AFTER_SWAP, "replayed": adaptation.replay_steps, "errors": found}


def gaps(case: Case, adaptation: Adaptation) -> Result:
    """Errors of the first forecasts after blocks of readings that were left out, and without the gap."""
    stepper, last = Stepper(case.forecaster, adaptation), AFTER_GAP[-1]
    moments = case.moments(MOMENTS, after=last)  # the first readings after the gaps
    starts = {length: moments - length - 1 for length in (0, *GAPS)}
    at = carried(case, adaptation, np.concatenate(list(starts.values())).tolist())
    names, times, values = side_by_side(case.panel, moments, moments + last)
    found: Result = {"steps": AFTER_GAP, "by_gap": {}}
    for length, befores in starts.items():
        states = np.concatenate([at[before] for before in befores.tolist()])
        walk = Walk(stepper, names, states)
        rows = {"model": stages(case, walk, moments, times, values, AFTER_GAP)}
        if not adaptation.active:
            rows |= _naive_after(case, moments, length)
        found["by_gap"][str(length)] = rows
    return found


def carried_at(case: Case, adaptation: Adaptation, moments: Indexes) -> States:
    """(M·S,) states after these readings, carried from the first reading on, in the order of ``side_by_side``."""
    at = carried(case, adaptation, moments.tolist())
    return np.concatenate([at[moment] for moment in moments.tolist()])


def stages(
    case: Case,
    walk: Walk,
    begins: Indexes,
    times: Indexes,
    values: Floats,
    ends: Sequence[int],
    factor: float = 1.0,
    offset: Floats | float = 0.0,
) -> list[Result]:
    """Scores of the forecasts in each stage: from the previous end, or 0, to each of ``ends``, in steps.

    Args:
        begins: (M,) first reading of the first stage.
        times, values: of the readings, in the order of ``side_by_side``.
        factor, offset: conversion of the data's unit to the unit in which the model sees the values.
    """
    found, begin = [], 0
    for end in ends:
        part = slice(begin, end)
        medians = walk.go(times[:, part], values[:, part] * factor + offset, range(end - begin))
        medians = by_sensor((medians - np.asarray(offset)[..., None]) / factor, len(begins))
        errors = [
            case.errors(medians[:, number], case.labels(range(first + begin, first + end)))
            for number, first in enumerate(begins.tolist())
        ]
        found.append(scored(np.stack(errors)))
        begin = end
    return found


def _naive_after(case: Case, moments: Indexes, gap: int) -> dict[str, list[Result]]:
    """Scores of the baselines if ``gap`` readings before these moments are missing."""
    season = case.forecaster.config.season_steps
    last, before = AFTER_GAP[-1], GAPS[-1] + 2 * season
    found: dict[str, list[Floats]] = {}
    for moment in moments.tolist():
        around = case.sequences.slice_time(
            int(case.panel.timestamp_us[moment - before]), int(case.panel.timestamp_us[moment + last])
        )
        left_out = np.zeros((len(case.panel.sensors), before + last), bool)
        left_out[:, before - gap : before] = True
        known = replace(
            around,
            values=np.where(left_out.reshape(-1, 1), np.nan, around.values),
            observed=around.observed & ~left_out.ravel(),
        )
        labels = case.labels(range(moment, moment + last))
        for rule in (Persistence(case.forecaster.config), SeasonalNaive(case.forecaster.config)):
            medians = medians_by_rule(rule, known, np.arange(before, before + last))
            found.setdefault(rule.name, []).append(case.errors(medians, labels))
    spans = list(zip((0, *AFTER_GAP), AFTER_GAP, strict=False))
    return {name: [scored(np.stack(errors)[:, :, lo:hi]) for lo, hi in spans] for name, errors in found.items()}
