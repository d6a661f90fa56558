"""The experts that adaptation mixes, and the record of what is carried for them.

Letters: B sensors, K targets, Q quantiles, h horizon steps, H hidden, E experts, R corrections, D regressors,
P learning points, M loss points, A pending forecasts.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from . import signals
from .config import Adaptation, Level, ModelConfig
from .signals import Floats, SignalShape

Indexes = NDArray[np.int64]
States = NDArray[Any]

PENDING: Final = 8  # forecasts awaiting their labels, at most
LEARN_POINTS: Final = 24
LOSS_POINTS: Final = 8
HIDDEN_REGRESSORS: Final = 16  # projections of the last layer's hidden state; 32 brought nothing more
STORED_BOUND: Final = 1e6  # scales; of what a pending forecast keeps in float32

PLAIN: Final = ("persistence", "seasonal", "gru")
CORRECTED: Final = ("persistence+", "profile+", "quick_profile+", "gru+")
HIDDEN: Final = ("profile+hidden", "gru+hidden")
MODEL_FREE: Final = ("persistence", "seasonal", "persistence+", "profile+", "quick_profile+")


@dataclass(frozen=True)
class AdaptationConfig:
    """What is adapted, and the sizes that follow."""

    level: Level
    calibrated: bool
    targets: int
    horizon_steps: int
    season_steps: int
    levels: tuple[float, ...]  # of the quantiles
    hidden_size: int

    @classmethod
    def of(cls, config: ModelConfig, adaptation: Adaptation) -> "AdaptationConfig":
        """The adaptation of a model's forecasts."""
        return cls(
            level=adaptation.level,
            calibrated=adaptation.calibrated,
            targets=config.target_count,
            horizon_steps=config.horizon_steps,
            season_steps=config.season_steps,
            levels=config.quantiles,
            hidden_size=config.hidden_size,
        )

    @property
    def active(self) -> bool:
        """Whether forecasts differ from the model's at all."""
        return self.level != "off" or self.calibrated

    @property
    def experts(self) -> tuple[str, ...]:
        """Their names, in the order of the weights."""
        if self.level == "off":
            return ("gru",)
        return PLAIN + CORRECTED + (HIDDEN if self.level == "full" else ())

    @cached_property
    def signals(self) -> SignalShape:
        """Sizes of the carried signals."""
        return SignalShape(self.season_steps, self.horizon_steps)

    @cached_property
    def stride(self) -> int:
        """Steps from one kept forecast to the next; without a common divisor with the season, so all phases come up."""
        stride = -(-self.horizon_steps // PENDING)
        while math.gcd(stride, self.season_steps) != 1:
            stride += 1
        return stride

    @property
    def slots(self) -> int:
        """A."""
        return -(-self.horizon_steps // self.stride)

    @cached_property
    def learn_points(self) -> Indexes:
        """(P,) horizon steps, counted from 0, at which corrections are learned."""
        return _spread_points(self.horizon_steps, LEARN_POINTS)

    @cached_property
    def loss_points(self) -> Indexes:
        """(M,) horizon steps, counted from 0, at which losses are kept: dense where forecasts differ most."""
        return _dense_start_points(self.horizon_steps, LOSS_POINTS)

    @property
    def median(self) -> int:
        """Where the median stands among the quantiles."""
        return self.levels.index(0.5)

    @cached_property
    def prior(self) -> Floats:
        """(E,) weights before any label: the trained model is trusted, the others have learned nothing yet."""
        known = {"gru": 0.5, "persistence": 0.05, "seasonal": 0.05}
        rest = len(self.experts) - len(known)
        prior = np.array([known.get(name, 0.4 / max(rest, 1)) for name in self.experts])
        shares: Floats = prior / prior.sum()
        return shares

    @cached_property
    def projection(self) -> Floats:
        """(H, 16 at most) orthonormal rows of a cosine transform: fixed, and the same wherever it is computed."""
        H = self.hidden_size
        order = np.arange(1, min(HIDDEN_REGRESSORS, H - 1) + 1)
        angles = np.pi * (np.arange(H)[:, None] + 0.5) * order[None, :] / H
        rows: Floats = math.sqrt(2.0 / H) * np.cos(angles)
        return rows


def _spread_points(horizon: int, most: int) -> Indexes:
    return np.unique(np.rint(np.linspace(0, horizon - 1, min(horizon, most)))).astype(np.int64)


def _dense_start_points(horizon: int, most: int) -> Indexes:
    if horizon <= most:
        return np.arange(horizon, dtype=np.int64)
    return np.unique(np.rint(horizon ** np.linspace(0.0, 1.0, most)).astype(np.int64) - 1)


def adaptation_dtype(config: AdaptationConfig) -> np.dtype[Any]:
    """The record of one sensor: packed and little-endian. All zeros is the blank state."""
    K, A, E = config.targets, config.slots, len(config.experts)
    P, M, Q = len(config.learn_points), len(config.loss_points), len(config.levels)
    if not config.active:
        return np.dtype([])
    fields: list[Any] = [
        ("steps", "<i8"),
        ("labels", "<i4", (K,)),  # forecasts learned from, up to ``signals.COUNT_BOUND``
        *config.signals.fields(K),
        ("losses", "<f4", (K, E, M)),
        ("spreads", "<f4", (K, 2, M)),  # running mean |error| of the mixture and of the GRU
        ("factors", "<f4", (K, Q, M)),  # logarithms
        # Forecasts that await their labels. Numbers are in the unit of then, less the value of then.
        ("pending_step", "<i8", (A,)),  # the step that issued it, counted from 1; 0 for none
        ("pending_value", "<f8", (A, K)),
        ("pending_unit", "<f8", (A, K)),
        ("pending_experts", "<f4", (A, K, E, M)),
        ("pending_quantiles", "<f4", (A, K, Q, M)),
    ]
    for group in groups(config):
        D, R = group.regressors, len(group.bases)
        fields += [
            (f"{group.name}_root", "<f4", (K, D, D)),
            (f"{group.name}_weights", "<f4", (K, R, D, P)),
            (f"{group.name}_errors", "<f4", (K, R, P)),  # running mean |error|
            (f"{group.name}_pending_x", "<f4", (A, K, D)),
        ]
    if config.level != "off":
        fields.append(("pending_bases", "<f4", (A, K, len(BASES), P)))
    return np.dtype(fields)


BASES: Final = ("slow", "quick", "gru")  # besides persistence, which is zero in a pending forecast's numbers


@dataclass(frozen=True)
class Group:
    """Corrections that share regressors, and with them one covariance."""

    name: str
    regressors: int
    bases: tuple[int, ...]  # which base each corrects: 0 persistence, then ``BASES``


def groups(config: AdaptationConfig) -> list[Group]:
    if config.level == "off":
        return []
    groups = [Group("plain", signals.REGRESSORS, (0, 1, 2, 3))]
    if config.level == "full":
        groups.append(Group("hidden", signals.REGRESSORS + config.projection.shape[1], (1, 3)))
    return groups
