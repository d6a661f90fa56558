"""The experts that adaptation mixes, the sizes of its arrays, and its record of a sensor.

Letters: K targets, Q quantiles, h horizon steps, H hidden, E experts, R corrections of a group, D regressors,
P learning points, L loss points, S steps of a season, A pending forecasts.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .config import Adaptation, Level, ModelConfig

Floats = NDArray[np.float64]
Indexes = NDArray[np.int64]
States = NDArray[Any]

# Version of the arithmetic; increase it when the same readings would give other states or forecasts. States of an
# earlier version are then rebuilt, and its forecasts can be told apart.
RULE: Final = 7
PENDING: Final = 8  # largest number of forecasts that await their labels
LEARN_POINTS: Final = 8  # largest number; 24 forecast no better on ETTh1 and the Beijing set, for twice the bytes
LOSS_POINTS: Final = 8  # largest number, before longer gaps are divided
LOSS_GAP: Final = 150  # largest number of steps between two loss points, or LOSS_POINTS-th part of the horizon
REGRESSORS: Final = 10
# Past changes that the autoregression sees. ``kernel.py`` has this constant, the previous and the next one too: an
# import of the kernel would load numba, and every command reads the settings, which need ``RULE``.
AR_LAGS: Final = 24
ERROR_RATE: Final = 0.01  # update rate of the usual mean |error|: it averages over some 100 labels
# Beyond a horizon of RECENT_HORIZON steps a recent mean |error| is kept. It averages over RECENT_STEPS steps, but over
# RECENT_LABELS labels at least and 1 / ERROR_RATE at most. Nearer labels come often enough that the usual mean follows
# as soon. The last two numbers were chosen by the coverage in the validation parts of ETTh1 at 192, 336 and 720 steps.
RECENT_HORIZON: Final = 40
RECENT_STEPS: Final = 504.0
RECENT_LABELS: Final = 6.0
HIDDEN_REGRESSORS: Final = 16  # projections of the last layer's hidden state; 32 forecast no better

PLAIN: Final = ("persistence", "seasonal", "gru")
CORRECTED: Final = ("persistence+", "profile+", "quick_profile+", "gru+")
HIDDEN: Final = ("profile+hidden", "gru+hidden")
SHRUNK: Final = ("shrunk_gru",)
AUTOREGRESSION: Final = ("autoregression",)
BASES: Final = ("persistence", "profile", "quick_profile", "gru")  # a correction is added to one of them
# By group of corrections, the index in BASES for each correction: first the plain corrections, then those that also see
# the hidden state. A group shares its regressors, hence one covariance.
CORRECTED_BASES: Final = ((0, 1, 2, 3), (1, 3))


def experts_of(level: Level) -> tuple[str, ...]:
    """The names of a level's experts, in the order of the weights."""
    if level == "off":
        return ("gru",)
    return PLAIN + CORRECTED + (HIDDEN if level == "full" else ()) + SHRUNK + AUTOREGRESSION


@dataclass(frozen=True)
class AdaptationConfig:
    """The adaptation of a model's forecasts, and the sizes of its arrays."""

    level: Level
    calibrated: bool
    targets: int
    horizon_steps: int
    season_steps: int
    levels: tuple[float, ...]  # quantile levels
    hidden_size: int
    cadence_us: int

    @classmethod
    def of(cls, config: ModelConfig, adaptation: Adaptation) -> "AdaptationConfig":
        """The configuration for a model and the user's choice."""
        return cls(
            level=adaptation.level,
            calibrated=adaptation.calibrated,
            targets=config.target_count,
            horizon_steps=config.horizon_steps,
            season_steps=config.season_steps,
            levels=config.quantiles,
            hidden_size=config.hidden_size,
            cadence_us=config.cadence_us,
        )

    @property
    def active(self) -> bool:
        """Whether adaptation changes the model's forecasts."""
        return self.level != "off" or self.calibrated

    @property
    def experts(self) -> tuple[str, ...]:
        """The experts' names, in the order of the weights."""
        return experts_of(self.level)

    @property
    def groups(self) -> int:
        """The number of groups of corrections."""
        return ("off", "light", "full").index(self.level)

    @property
    def hidden_regressors(self) -> int:
        """Regressors of the second group besides the first group's: projections of the hidden state."""
        return min(HIDDEN_REGRESSORS, self.hidden_size - 1) if self.level == "full" else 0

    @property
    def remembered(self) -> int:
        """Last values that are carried: enough for the labels of a forecast, one season, and the autoregression."""
        return max(self.horizon_steps, self.season_steps, AR_LAGS + 2)

    @cached_property
    def stride(self) -> int:
        """Steps between two kept forecasts; coprime to the season, so that every phase is kept in turn."""
        stride = -(-self.horizon_steps // PENDING)
        while math.gcd(stride, self.season_steps) != 1:
            stride += 1
        return stride

    @property
    def slots(self) -> int:
        """A: the largest number of pending forecasts."""
        return -(-self.horizon_steps // self.stride)

    @cached_property
    def learn_points(self) -> Indexes:
        """(P,) horizon steps, counted from 0, at which corrections are learned."""
        h = self.horizon_steps
        return np.unique(np.rint(np.linspace(0, h - 1, min(h, LEARN_POINTS)))).astype(np.int64)

    @cached_property
    def loss_points(self) -> Indexes:
        """(L,) horizon steps, counted from 0, at which losses are kept; denser at the near steps."""
        h = self.horizon_steps
        if h <= LOSS_POINTS:
            return np.arange(h, dtype=np.int64)
        points = np.unique(np.rint(h ** np.linspace(0.0, 1.0, LOSS_POINTS)).astype(np.int64) - 1)
        gap = max(LOSS_GAP, -(-h // LOSS_POINTS))
        parts = [np.linspace(a, b, -(-(b - a) // gap), endpoint=False) for a, b in pairwise(points.tolist())]
        return np.asarray(np.rint(np.concatenate([*parts, points[-1:]])), np.int64)

    @property
    def recent_rate(self) -> float:
        """Update rate, per label, of the recent mean |error|; ``ERROR_RATE`` if it is not kept."""
        if not self.calibrated or self.horizon_steps <= RECENT_HORIZON:
            return ERROR_RATE
        return min(max(ERROR_RATE, self.stride / RECENT_STEPS), 1.0 / RECENT_LABELS)

    @property
    def median(self) -> int:
        """The index of the median among the quantiles."""
        return self.levels.index(0.5)

    @cached_property
    def prior(self) -> Floats:
        """(E,) weights before any label: half for the GRU, shrunk or not, which alone is trained by then."""
        known = {"gru": 0.2, "shrunk_gru": 0.3, "persistence": 0.05, "seasonal": 0.05}
        rest = len(self.experts) - len(known)
        prior = np.array([known.get(name, 0.4 / max(rest, 1)) for name in self.experts])
        return np.asarray(prior / prior.sum())

    @cached_property
    def projection(self) -> Floats:
        """(H, hidden regressors) orthonormal columns of a cosine transform: fixed, never learned."""
        H = self.hidden_size
        order = np.arange(1, self.hidden_regressors + 1)
        angles = np.pi * (np.arange(H)[:, None] + 0.5) * order[None, :] / H
        return np.asarray(math.sqrt(2.0 / H) * np.cos(angles))

    @cached_property
    def fields(self) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
        """Name, type and shape of every field of a sensor's record: grouped by type, the widest type first.

        The ``pending`` fields hold forecasts that await their labels. Their numbers are relative: less the last value
        when the forecast was issued (``pending_value``), in the unit at that time (``pending_unit``).
        """
        K, A, E, Q = self.targets, self.slots, len(self.experts), len(self.levels)
        P, L, S = len(self.learn_points), len(self.loss_points), self.season_steps
        D = (REGRESSORS, REGRESSORS + self.hidden_regressors)
        fields: list[tuple[str, str, tuple[int, ...]]] = [
            ("steps", "<i8", (K,)),  # points of the target's grid of cadences, since its first value
            ("point_us", "<i8", (K,)),  # time of the last of these points
            ("pending_step", "<i8", (A, K)),  # the step that issued the forecast, counted from 1; 0 for an empty slot
            ("values", "<f8", (K, self.remembered)),  # last values, newest last; a missing value is replaced
            ("change", "<f8", (K, 2)),  # the last change of the value, and the change before it
            ("scale", "<f8", (K,)),  # running mean |change|
            ("levels", "<f8", (K, 2)),  # running means over a quarter of a season, and over a season
            ("deviation", "<f8", (K, 3)),  # last value minus slow, minus quick profile; value before minus slow profile
            ("drift", "<f8", (K, 2)),  # running means of the deviation from the slow profile
            ("profiles", "<f8", (K, 2, S)),  # a slow and a quick running mean by phase of the season
            ("pending_value", "<f8", (A, K)),
            ("pending_unit", "<f8", (A, K)),
        ]
        if self.recent_rate > ERROR_RATE:
            fields += [
                ("robust_scale", "<f8", (K,)),  # running mean |change| in which an outlier counts little
                ("recent_errors", "<f8", (K, L)),  # recent mean |error| of the mixture, in robust scales
                ("usual_errors", "<f8", (K, L)),  # the same over 1 / ERROR_RATE labels
                ("pending_scale", "<f8", (A, K)),  # the robust scale when the forecast was issued
            ]
        fields += [
            ("losses", "<f4", (K, E, L)),  # discounted means of the experts' losses
            ("spreads", "<f4", (K, 2, L)),  # running mean |error| of the mixture and of the GRU
            ("factors", "<f4", (K, Q, L)),  # logarithms of the calibration's factors
            ("distances", "<f4", (K, Q, L)),  # of the fixed shape's quantiles from the median, in scales
            ("shape_losses", "<f4", (K, 2, Q, L)),  # discounted mean pinball losses of the GRU's and the fixed shape
            ("pending_experts", "<f4", (A, K, E, L)),
            ("pending_quantiles", "<f4", (A, K, Q, L)),
        ]
        if self.recent_rate > ERROR_RATE:
            fields.append(("pending_recent", "<f4", (A, K, L)))  # recent mean |error| over the usual one, when issued
        if self.groups:
            fields.append(("ar_weights", "<f4", (K, AR_LAGS + 1)))  # of the transformed changes, and of a constant
            fields.append(("ar_powers", "<f4", (K, AR_LAGS + 1)))  # running mean squares of these regressors
            fields.append(("ar_error", "<f4", (K,)))  # running mean |error| of the next change, in scales
            fields.append(("pending_bases", "<f4", (A, K, len(BASES) - 1, P)))  # all bases but persistence
        for group, name in list(enumerate(("plain", "hidden")))[: self.groups]:
            R = len(CORRECTED_BASES[group])
            fields += [
                (f"{name}_root", "<f4", (K, D[group], D[group])),  # root of the covariance of the corrections' weights
                (f"{name}_weights", "<f4", (K, R, D[group], P)),
                (f"{name}_errors", "<f4", (K, R, P)),  # running mean |error| of each correction
                (f"{name}_pending_x", "<f4", (A, K, D[group])),
            ]
        fields += [
            ("labels", "<i4", (K, L)),  # forecasts scored at each loss point
            ("learned", "<i4", (K,)),  # forecasts that the corrections have learned from
            ("ar_labels", "<i4", (K,)),  # changes that the autoregression has learned from
            ("observed", "<i4", (K,)),  # points with a value
            ("seen", "u1", (K, self.horizon_steps)),  # whether each of the last h points had a value, newest last
            ("crowded", "u1", (K,)),  # whether the last point got more than one value
        ]
        used = sum(math.prod(shape) * np.dtype(kind).itemsize for _, kind, shape in fields)
        return (*fields, ("filler", "u1", (-used % 8,)))


def adaptation_dtype(config: AdaptationConfig) -> np.dtype[Any]:
    """The record of one sensor: packed, little-endian, a multiple of 8 bytes; blank if all zeros."""
    return np.dtype(list(config.fields) if config.active else [])
