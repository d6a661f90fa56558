"""The causal normaliser: a sensor's level, scale, changes and seasonal profile from its own past.

All of them are running means, kept per sensor and feature in float64 and updated with +, -, *, / and sqrt alone. These
operations are correctly rounded for arrays of any length, so a batch over years and a stream of single readings give
the same bits.

A running mean is a plain mean over its first values and exponentially weighted later, so that a cold start is not
biased towards the first value. No constant here has a unit, so a change of unit (to Fahrenheit, to millivolts) changes
the unit of the forecasts and nothing more.

Letters: B sensors, b sensors of a round, M steps, F features, K targets, P slots of the seasonal profile.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .config import ModelConfig

Floats = NDArray[np.float64]

# Scales from the level that a value is clipped to. One absurd reading then moves level and scale little, and a real
# change of level by a factor of a thousand is followed within one to two seasons.
MAX_DISTANCE_SCALES: Final = 16.0
# Weight of the prior scale, in seasons of values. The prior is the size of the changes times the usual ratio of scale
# to changes: the size of the changes is known sooner than the distances from the level.
PRIOR_SEASONS: Final = 0.5
PROFILE_SEASONS: Final = 7.0  # seasons over which the profile is averaged


@dataclass
class NormaliserState:
    """The normaliser's state for B sensors, a row each; ``Normaliser.step`` updates it in place."""

    steps: NDArray[np.int64]  # (B,) steps since the reset, missing steps included
    count: Floats  # (B, F) values since the reset
    age: Floats  # (B, F) steps since the last value
    last: Floats  # (B, F) the last value, clipped
    levels: Floats  # (B, F, 3) means over a quarter of a season, a season, and seven seasons
    moments: Floats  # (B, F, 2) mean squares of the distance from the level, and of the changes
    scale: Floats  # (B, F) unit of distances from the level; 0 while the sensor has been constant
    profile: Floats  # (B, K, P) mean distance of each target from its level, by slot of the season

    @classmethod
    def blank(cls, config: ModelConfig, rows: int) -> "NormaliserState":
        """The state of ``rows`` sensors before their first step."""
        F = config.feature_count
        return cls(
            steps=np.zeros(rows, np.int64),
            count=np.zeros((rows, F)),
            age=np.zeros((rows, F)),
            last=np.zeros((rows, F)),
            levels=np.zeros((rows, F, 3)),
            moments=np.zeros((rows, F, 2)),
            scale=np.zeros((rows, F)),
            profile=np.zeros((rows, config.target_count, profile_slots(config))),
        )

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """The fields but ``steps``, by name: the normaliser's part of a state record (``model.state``)."""
        return {name: getattr(self, name) for name in NORMALISER_FIELDS}


NORMALISER_FIELDS: Final = ("count", "age", "last", "levels", "moments", "scale", "profile")


@dataclass
class NormaliserTrace:
    """The normaliser's state after each of M steps; the fields are those of ``NormaliserState``."""

    steps: NDArray[np.int64]  # (M,) since the reset, this step included
    count: Floats  # (M, F)
    age: Floats  # (M, F)
    last: Floats  # (M, F)
    levels: Floats  # (M, F, 3)
    change: Floats  # (M, F) mean square of the changes
    scale: Floats  # (M, F)
    shape: Floats  # (M, K) the profile in the slot of this step

    @classmethod
    def empty(cls, config: ModelConfig, steps: int) -> "NormaliserTrace":
        """A trace of ``steps`` steps, not filled yet."""
        F = config.feature_count
        return cls(
            steps=np.empty(steps, np.int64),
            count=np.empty((steps, F)),
            age=np.empty((steps, F)),
            last=np.empty((steps, F)),
            levels=np.empty((steps, F, 3)),
            change=np.empty((steps, F)),
            scale=np.empty((steps, F)),
            shape=np.empty((steps, config.target_count)),
        )


def profile_slots(config: ModelConfig) -> int:
    """P: the slots that a season is cut into; 0 without a season."""
    return min(config.season_steps, config.profile_slots) if config.season_steps > 1 else 0


class Normaliser:
    """Updates the states of many sensors at a time.

    Args:
        config: for features, targets and season.
        spread: (F,) ratio of each feature's scale to its changes (root mean squares) in the training data; it gives a
            new sensor's first scale.
        one_memory: whether changes are averaged over as many steps as distances from the level.
    """

    def __init__(self, config: ModelConfig, spread: Floats, *, one_memory: bool = False) -> None:
        self._config = config
        season = max(config.season_steps, 4)
        self._targets = np.array(config.target_indices, np.intp)
        self._level_gains = 1.0 / np.array([season / 4, season, 7.0 * season])
        longest = config.scale_seasons * float(season)
        self._moment_gains = 1.0 / np.array([longest, longest if one_memory else float(season)])
        self._prior_steps = PRIOR_SEASONS * season
        self._prior = np.asarray(spread, np.float64) ** 2 * self._prior_steps
        self._season = config.season_steps
        self._slots = profile_slots(config)
        # A slot of several steps is updated more often in a season, so with a smaller gain.
        self._profile_gain = self._slots / config.season_steps

    def step(
        self, norm: NormaliserState, values: Floats, sizes: Sequence[int], reset: NDArray[np.bool_]
    ) -> NormaliserTrace:
        """The states after each of M steps, in the order of ``values``. Steps ``norm`` in place.

        Args:
            norm: of B sensors.
            values: (M, F) one round after the other, NaN where missing.
            sizes: sensors of each round; round r steps the first ``sizes[r]`` rows; never rising.
            reset: (M,) whether the row is blanked before the step.
        """
        trace = NormaliserTrace.empty(self._config, len(values))
        seen = ~np.isnan(values)
        position = 0
        for rows in sizes:
            here = slice(position, position + rows)
            if reset[here].any():
                _blank(norm, np.flatnonzero(reset[here]))
            self._step_round(norm, values[here], seen[here], trace, here)
            position += rows
        return trace

    def _step_round(
        self, norm: NormaliserState, values: Floats, seen: NDArray[np.bool_], trace: NormaliserTrace, here: slice
    ) -> None:
        b = len(values)
        count, last, levels, moments = norm.count[:b], norm.last[:b], norm.levels[:b], norm.moments[:b]
        scale, age = norm.scale[:b], norm.age[:b]
        count += seen
        grown = seen & (count > 1.0)
        level = levels[:, :, 1]
        # Without a scale (a sensor's first values, or a constant sensor) distances are not clipped.
        furthest = np.where(scale > 0.0, scale * MAX_DISTANCE_SCALES, np.inf)
        away = np.where(seen, values, level) - level
        away = np.maximum(np.minimum(away, furthest), -furthest)
        taken = level + away
        change = np.where(grown, taken - last, 0.0)
        gains = np.maximum(1.0 / np.maximum(count, 1.0)[:, :, None], self._level_gains)
        levels += np.where(seen[:, :, None], gains * (taken[:, :, None] - levels), 0.0)
        away *= taken - level  # `level` is a view: these are the distances before and after the update
        gains = np.maximum(1.0 / np.maximum(count - 1.0, 1.0)[:, :, None], self._moment_gains)
        squares = np.stack((away, change * change), axis=-1)
        moments += np.where(grown[:, :, None], gains * (squares - moments), 0.0)
        np.copyto(last, taken, where=seen)
        age += 1.0
        age *= ~seen
        young = np.maximum(count - 1.0, 0.0)
        scale[:] = np.sqrt((moments[:, :, 0] * young + moments[:, :, 1] * self._prior) / (young + self._prior_steps))
        trace.shape[here] = self._profile(norm, levels, last, seen)
        norm.steps[:b] += 1
        trace.steps[here] = norm.steps[:b]
        trace.count[here] = count
        trace.age[here] = age
        trace.last[here] = last
        trace.levels[here] = levels
        trace.change[here] = moments[:, :, 1]
        trace.scale[here] = scale

    def _profile(self, norm: NormaliserState, levels: Floats, last: Floats, seen: NDArray[np.bool_]) -> Floats:
        """(b, K) the profile in the slot of this step, after its update."""
        b = len(seen)
        targets = self._targets
        if not self._slots:
            return np.zeros((b, len(targets)))
        steps = norm.steps[:b]
        slot = steps % self._season * self._slots // self._season
        gain = np.maximum(1.0 / (steps // self._season + 1.0), 1.0 / PROFILE_SEASONS)
        gain = np.where(steps < self._season, 1.0, gain * self._profile_gain)
        rows = np.arange(b)
        held: Floats = norm.profile[rows, :, slot]
        away = last[:, targets] - levels[:, targets, 1]
        held += np.where(seen[:, targets], gain[:, None] * (away - held), 0.0)
        norm.profile[rows, :, slot] = held
        return held


def _blank(norm: NormaliserState, rows: NDArray[np.intp]) -> None:
    norm.steps[rows] = 0
    for array in norm.arrays().values():
        array[rows] = 0.0
