"""Holds forecasts and states of one model version against what is recomputed from the readings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.forecaster import Forecaster
from pipeline.audit.findings import ForecastLog
from pipeline.audit.lineage import Lineage
from pipeline.audit.recompute import AcceptedLog, Recomputed, Stretches, recompute
from pipeline.audit.state_audit import state_differences
from pipeline.audit.weights import weights_agree
from pipeline.forecaster.encoding import round_to_scale
from pipeline.settings import Settings

# What "equal" means: this much of the sensor's scale, or of the value where that is larger.
TOLERANCE: Final = 1e-5

Indexes = NDArray[np.int64]


@dataclass(frozen=True)
class HeldState:
    """A state from the changelog, with the places of the first and the last reading in it."""

    first: int
    last: int
    row: np.void


@dataclass
class Recheck:
    """The outcome for one version."""

    recomputed: int = 0
    different: list[int] = field(default_factory=list)  # rows of the forecasts
    largest_difference: float = 0.0  # as a part of the scale, or of the value where that is larger
    states_different: dict[int, list[str]] = field(default_factory=dict)  # fields, by place of the last reading


def recheck(
    forecaster: Forecaster,
    settings: Settings,
    accepted: AcceptedLog,
    forecasts: ForecastLog,
    lineage: Lineage,
    rows: Indexes,
    states: Mapping[int, HeldState],
) -> Recheck:
    """Recompute some forecasts and states, all of the forecaster's version.

    Args:
        rows: of the forecasts, recomputable ones.
        states: by the place of the last reading, which lies behind the forecasts of the same sensor.
    """
    outcome = Recheck(recomputed=len(rows))
    origins = np.concatenate([lineage.origin[rows], np.array([state.first for state in states.values()], np.int64)])
    ends = np.concatenate([lineage.place[rows], np.array([state.last for state in states.values()], np.int64)])
    first, whose = np.unique(origins, return_inverse=True)
    last = np.zeros(len(first), np.int64)
    np.maximum.at(last, whose, ends)
    stretches = Stretches(first, last)
    # Forecasts by stretch and place, to be found when the place comes up; one that was made twice is found twice.
    keys = whose[: len(rows)] * len(accepted) + lineage.place[rows]
    order = np.argsort(keys, kind="stable")
    keys, sorted_rows = keys[order], rows[order]
    for done in recompute(forecaster, accepted, stretches, settings):
        wanted = done.stretch * len(accepted) + done.place
        low, high = np.searchsorted(keys, wanted), np.searchsorted(keys, wanted, side="right")
        for nth in range(int((high - low).max(initial=0))):
            there = np.flatnonzero(low + nth < high)
            _compare(outcome, forecasts, sorted_rows[(low + nth)[there]], done, there)
        for stretch, state in zip(done.ended.tolist(), done.states, strict=True):
            held = states.get(int(last[stretch]))
            if held is not None and held.first == first[stretch]:
                fields = state_differences(held.row, state, TOLERANCE)
                if fields:
                    outcome.states_different[held.last] = fields
    outcome.different.sort()
    return outcome


def _compare(outcome: Recheck, forecasts: ForecastLog, rows: Indexes, done: Recomputed, there: Indexes) -> None:
    """Forecasts at ``rows`` against the recomputed ones at ``there``."""
    assert forecasts.quantiles is not None
    assert forecasts.weights is not None
    assert forecasts.origin is not None
    assert forecasts.steps is not None
    expected, scale = done.forecasts.quantiles[there], done.forecasts.scale[there]
    differences = relative_differences(forecasts.quantiles[rows], expected, scale)
    largest = differences.reshape(len(rows), -1).max(axis=1, initial=0.0)
    wrong = (
        (largest > TOLERANCE)
        | ~weights_agree(forecasts.weights[rows], done.forecasts.weights[there])
        | (forecasts.origin[rows] != done.forecasts.origin[there])
        | (forecasts.steps[rows] != done.forecasts.steps[there])
        | (forecasts.warm[rows] != done.forecasts.warm[there])
    )
    outcome.different += rows[wrong].tolist()
    outcome.largest_difference = max(outcome.largest_difference, float(largest.max(initial=0.0)))


def relative_differences(
    found: NDArray[np.float32], expected: NDArray[np.float64], scale: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(n, K, Q, h) how far published quantiles lie from the expected ones, as a part of the scale (n, K) or the value.

    What was expected is rounded as it would have been published, so equal bits differ by 0.
    """
    published = round_to_scale(expected, scale).astype(np.float32).astype(np.float64)
    apart = np.abs(found - published)
    unit = np.maximum(np.abs(published), scale[:, :, None, None])
    differences: NDArray[np.float64] = np.divide(apart, unit, out=np.full_like(apart, np.inf), where=unit > 0)
    return np.where(apart == 0, 0.0, differences)
