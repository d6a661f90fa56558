"""Recomputes forecasts and states from the readings, and compares them with the published ones.

A forecast is a function of the model version and of the sensor's accepted readings from the state's origin to the
forecast's input. Each such stretch of readings is stepped from a blank state. Stretches are stepped side by side, one
reading of each at a time; ``model.stepper`` gives the same bits as for a stretch alone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.bounds import counts
from model.config import ModelConfig
from model.forecaster import Forecaster
from model.state import States, blank_states
from model.stepper import Forecasts, Stepper
from pipeline.audit.delivery import ForecastLog
from pipeline.audit.expert_weights import weights_agree
from pipeline.audit.lineage import AcceptedLog, Lineage
from pipeline.audit.outlook_log import ArrivalSource
from pipeline.audit.state_audit import state_differences
from pipeline.forecast_encoding import round_to_scale
from pipeline.settings import Settings

Indexes = NDArray[np.int64]

_SIDE_BY_SIDE: Final = 256  # stretches stepped together; their states fill a core's cache
_NUMBERS_AT_ONCE: Final = 4_000_000  # quantiles of a call; 32 MB as float64


@dataclass(frozen=True)
class Stretches:
    """Stretches of readings to recompute, as places of an ``AcceptedLog``."""

    first: Indexes  # (m,) place of the state's origin
    last: Indexes  # (m,) place of the last reading, included
    # (m,) offset up to which outlooks come, beyond those that the last reading sees; None: no more.
    until: Indexes | None = None

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class RecomputedForecasts:
    """The forecasts of n readings of some stretches."""

    stretch: Indexes  # (n,)
    place: Indexes  # (n,) of the accepted log
    forecasts: Forecasts  # n
    ended: Indexes  # (e,) stretches whose last reading is among these
    states: States  # (e,) states after that reading


def recompute(
    forecaster: Forecaster, accepted: AcceptedLog, stretches: Stretches, settings: Settings
) -> Iterator[RecomputedForecasts]:
    """Step every stretch from a blank state, and yield the forecasts of each reading once, in order.

    Forecasts of counts are not rounded to whole numbers (``half_counts``).
    """
    stepper = Stepper(forecaster, settings.adaptation, whole=False)
    config = forecaster.config
    source = None if config.outlook is None else ArrivalSource(config, accepted.outlooks)
    until = accepted.released[stretches.last]
    if stretches.until is not None:
        until = np.maximum(until, stretches.until)
    width = config.target_count * len(config.quantiles) * config.horizon_steps
    lengths = stretches.last - stretches.first + 1
    longest_first = np.argsort(-lengths, kind="stable")  # stretches of about the same length form a group
    for begin in range(0, len(stretches), _SIDE_BY_SIDE):
        group = longest_first[begin : begin + _SIDE_BY_SIDE]
        states = blank_states(config, len(group), settings.adaptation)
        sensors = [accepted.streams[stream][1] for stream in accepted.stream[stretches.first[group]].tolist()]
        streams = accepted.stream[stretches.first[group]]
        seen_to = accepted.released[stretches.first[group]]  # offset up to which outlooks have come to each stretch
        at_once = max(1, _NUMBERS_AT_ONCE // (width * len(group)))
        for done in range(0, int(lengths[group].max()), at_once):
            count = np.clip(lengths[group] - done, 0, at_once)
            slots = np.repeat(np.arange(len(group)), count)
            within = np.arange(len(slots)) - np.repeat(np.cumsum(count) - count, count)
            place = stretches.first[group][slots] + done + within
            ended = np.flatnonzero((count > 0) & (lengths[group] <= done + at_once))
            arrivals = None
            if source is not None:
                known_at = accepted.released[place]
                end = seen_to.copy()
                np.maximum.at(end, slots, known_at)
                end[ended] = until[group][ended]
                arrivals = source.arrivals(streams, seen_to, end, known_at)
                seen_to = end
            forecasts = stepper.step(
                states,
                sensors,
                slots,
                accepted.timestamp_us[place],
                accepted.values[place],
                accepted.offset[place],
                accepted.may_anchor[place],
                arrivals=arrivals,
            )
            yield RecomputedForecasts(group[slots], place, forecasts, group[ended], states[ended])


# --- comparison with the published ones -------------------------------------------------------------------------------


# Numbers that differ by at most this fraction of the sensor's scale, or of the value if that is larger, count as equal.
TOLERANCE: Final = 1e-5


@dataclass(frozen=True)
class RecordedState:
    """A state from the changelog, with the places of its first and last reading."""

    first: int
    last: int
    row: np.void
    until: int = 0  # offset up to which the state has its outlooks


@dataclass
class Comparison:
    """The outcome for one model version."""

    recomputed: int = 0
    different: list[int] = field(default_factory=list)  # rows of the forecasts
    largest_difference: float = 0.0  # as a fraction of the scale, or of the value if that is larger
    states_different: dict[int, list[str]] = field(default_factory=dict)  # place of the last reading -> fields


def compare_with_readings(
    forecaster: Forecaster,
    settings: Settings,
    accepted: AcceptedLog,
    forecasts: ForecastLog,
    lineage: Lineage,
    rows: Indexes,
    states: Mapping[int, RecordedState],
) -> Comparison:
    """Recompute some forecasts and states of the forecaster's version, and compare them.

    Args:
        rows: rows of ``forecasts``, all recomputable.
        states: place of the last reading -> state; it follows the forecasts of the same sensor.
    """
    outcome = Comparison(recomputed=len(rows))
    ends_of_states = np.array([(state.first, state.last) for state in states.values()], np.int64).reshape(-1, 2)
    first, stretch_of = np.unique(np.append(lineage.origin[rows], ends_of_states[:, 0]), return_inverse=True)
    last = np.zeros(len(first), np.int64)
    np.maximum.at(last, stretch_of, np.append(lineage.place[rows], ends_of_states[:, 1]))
    until = np.array([0 if (state := states.get(place)) is None else state.until for place in last.tolist()], np.int64)
    # The forecasts sorted by stretch and place, so that binary search finds all forecasts of a recomputed place.
    keys = stretch_of[: len(rows)] * len(accepted) + lineage.place[rows]
    order = np.argsort(keys, kind="stable")
    keys, sorted_rows = keys[order], rows[order]
    for done in recompute(forecaster, accepted, Stretches(first, last, until), settings):
        wanted = done.stretch * len(accepted) + done.place
        low, high = np.searchsorted(keys, wanted), np.searchsorted(keys, wanted, side="right")
        for nth in range(int((high - low).max(initial=0))):
            there = np.flatnonzero(low + nth < high)
            _compare(outcome, forecaster.config, forecasts, sorted_rows[(low + nth)[there]], done, there)
        for stretch, state in zip(done.ended.tolist(), done.states, strict=True):
            recorded = states.get(int(last[stretch]))
            if recorded is not None and recorded.first == first[stretch]:
                fields = state_differences(recorded.row, state, TOLERANCE)
                if fields:
                    outcome.states_different[recorded.last] = fields
    outcome.different.sort()
    return outcome


def _compare(
    outcome: Comparison,
    config: ModelConfig,
    forecasts: ForecastLog,
    rows: Indexes,
    done: RecomputedForecasts,
    there: Indexes,
) -> None:
    """Compare the forecasts at ``rows`` with the recomputed ones at ``there``."""
    assert forecasts.quantiles is not None
    assert forecasts.weights is not None
    assert forecasts.origin is not None
    assert forecasts.steps is not None
    scale = done.forecasts.scale[there]
    expected = round_to_scale(done.forecasts.quantiles[there], scale, done.forecasts.limits[there])
    half = half_counts(config, done.forecasts)[there]
    differences = relative_differences(forecasts.quantiles[rows], expected, scale, half)
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


def half_counts(config: ModelConfig, made: Forecasts) -> NDArray[np.float64]:
    """(n, K) half of 1 in the unit of each forecast of a count, otherwise 0.

    A published count is a whole number. Its recomputed forecast is not rounded and lies within this distance: rounded,
    a difference in the last bits could become one of 1.
    """
    half = np.zeros(made.scale.shape)
    targets = counts(config.bounds)
    half[:, targets] = 0.5
    if targets and made.unit_factor.shape[1]:
        factor = made.unit_factor[:, [config.target_indices[target] for target in targets]]
        half[:, targets] *= np.where(factor == 0.0, 1.0, factor)
    return half


def relative_differences(
    found: NDArray[np.float32], expected: NDArray[np.float64], scale: NDArray[np.float64], half: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(n, K, Q, h) distances of published quantiles from expected ones, as a fraction of the scale (n, K) or the value.

    The expected ones are rounded as for publication (``round_to_scale``), so equal forecasts differ by 0. Distances up
    to ``half`` (n, K) of ``half_counts`` count as 0; in the state's own unit, those of whole numbers alone.
    """
    broken = (half == 0.5)[:, :, None, None] & (found != np.rint(found))
    published = expected.astype(np.float32).astype(np.float64)
    apart = np.maximum(np.abs(found - published) - np.where(broken, 0.0, half[:, :, None, None]), 0.0)
    unit = np.maximum(np.abs(published), scale[:, :, None, None])
    differences: NDArray[np.float64] = np.divide(apart, unit, out=np.full_like(apart, np.inf), where=unit > 0)
    return np.where(apart == 0, 0.0, differences)
