"""The causal normaliser: what a sensor's own past says about where it stands, how it moves and what its day looks like.

Everything is a running mean of some kind (level, scale, size of the changes, seasonal profile), kept per sensor and
feature in float64 and updated with +, -, *, / and sqrt alone. Those are correctly rounded whatever the length of the
arrays, so a batch over years and a stream of single readings give the same bits.

Running means are plain means while they are young and exponentially weighted later, so that a cold start is not biased
towards its first value. A change of unit (a sensor in Fahrenheit, or in millivolts) changes nothing but the unit of
the forecasts: no constant here has a unit.

Letters: B sensors, M steps, F features, K targets, P slots of the seasonal profile.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .config import ModelConfig

Floats = NDArray[np.float64]

# A value further from its level than this many scales is taken as that far: one absurd reading then moves scale and
# level by little, while a real change of level by a factor of a thousand is followed within one to two seasons.
MAX_DISTANCE_SCALES: Final = 16.0
# Until a sensor has been seen for this part of a season its scale leans on the size of its changes, which show sooner.
PRIOR_SEASONS: Final = 0.5
# Seasons over which the profile of a season is averaged.
PROFILE_SEASONS: Final = 7.0


@dataclass
class NormaliserState:
    """The normaliser's state for B sensors, row by row; ``step`` updates it in place."""

    steps: NDArray[np.int64]  # (B,) since the reset, missing ones included
    count: Floats  # (B, F) values seen
    age: Floats  # (B, F) steps since the last of them
    last: Floats  # (B, F) that value
    levels: Floats  # (B, F, 3) means over a quarter of a season, a season, and seven
    moments: Floats  # (B, F, 2) mean square of the distance from the level, and of the changes
    scale: Floats  # (B, F) what a distance from the level is measured in; 0 while the sensor has been constant
    profile: Floats  # (B, K, P) distance of each target from its level by time of the season

    @classmethod
    def blank(cls, config: ModelConfig, rows: int) -> "NormaliserState":
        """Sensors that have seen nothing yet."""
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
        """What a state record holds of this, by name; ``steps`` is a field of the record itself."""
        return {name: getattr(self, name) for name in NORMALISER_FIELDS}


NORMALISER_FIELDS: Final = ("count", "age", "last", "levels", "moments", "scale", "profile")


@dataclass
class NormaliserTrace:
    """What the normaliser held after each of M steps."""

    steps: NDArray[np.int64]  # (M,) since the reset, this one included
    count: Floats  # (M, F)
    age: Floats  # (M, F)
    last: Floats  # (M, F)
    levels: Floats  # (M, F, 3)
    change: Floats  # (M, F) mean square of the changes
    scale: Floats  # (M, F)
    shape: Floats  # (M, K) the profile in the slot of this step

    @classmethod
    def empty(cls, config: ModelConfig, steps: int) -> "NormaliserTrace":
        """Room for ``steps`` steps."""
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
    """P: the slots a season is cut into, or 0 where the cadence knows no season."""
    return min(config.season_steps, config.profile_slots) if config.season_steps > 1 else 0


class Normaliser:
    """Updates the states of many sensors at a time.

    Args:
        config: for features, targets and season.
        spread: (F,) how much larger a feature's scale is than its changes (root mean squares), as learned from the
            training data; a new sensor's first scale follows from it.
        one_memory: remember changes for as long as distances from the level.
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
        # A slot that spans several steps is updated that much more often.
        self._profile_gain = self._slots / config.season_steps

    def step(
        self, norm: NormaliserState, values: Floats, sizes: Sequence[int], reset: NDArray[np.bool_]
    ) -> NormaliserTrace:
        """Steps ``norm`` in place, in rounds: round r steps the first ``sizes[r]`` rows, ``sizes`` never rising.

        Args:
            values: (M, F) one round after the other, NaN where missing; ``reset``: (M,) rows to blank before a step.

        Returns:
            What the states held after each of the M steps, in the order of ``values``.
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
        # Nothing to measure by yet (or ever, in a constant sensor): then every distance counts in full.
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
        """Updates the profile's slot of this step and returns what it holds: (b, K)."""
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
