"""The causal normaliser: a sensor's level, scale, changes and seasonal profile from its own past.

All of them are running means, kept per sensor and feature in float64 and updated with +, -, *, / and sqrt alone, which
are correctly rounded everywhere. ``model.step_kernel`` holds the arithmetic for stream, evaluator and training, so a
batch over years and a stream of single readings give the same bits.

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

from . import step_kernel
from .config import ModelConfig

Floats = NDArray[np.float64]

# Weight of the prior scale, in seasons of values. The prior is the size of the changes times the usual ratio of scale
# to changes: the size of the changes is known sooner than the distances from the level.
PRIOR_SEASONS: Final = 0.5


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
        longest = config.scale_seasons * float(season)
        prior_steps = PRIOR_SEASONS * season
        self.rates = step_kernel.Rates(
            targets=np.array(config.target_indices, np.int64),
            level_gains=1.0 / np.array([season / 4, season, 7.0 * season]),
            moment_gains=1.0 / np.array([longest, longest if one_memory else float(season)]),
            prior=np.asarray(spread, np.float64) ** 2 * prior_steps,
            prior_steps=prior_steps,
            season=config.season_steps,
            slots=profile_slots(config),
            # A slot of several steps is updated more often in a season, so with a smaller gain.
            profile_gain=profile_slots(config) / config.season_steps,
        )

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
        step_kernel.normalise(
            self.rates,
            step_kernel.Normalised(norm.steps, *norm.arrays().values()),
            np.ascontiguousarray(values),
            np.asarray(sizes, np.int64),
            np.ascontiguousarray(reset),
            step_kernel.Trace(*vars(trace).values()),
        )
        return trace
