"""Synthetic series for tests of training and scoring."""

import numpy as np
from numpy.typing import NDArray

from model.config import ModelConfig
from model.sequences import Sequences, build_sequences

HOUR_US = 3_600_000_000
CONFIG = ModelConfig(("level", "other"), ("level",), HOUR_US, 6, season_steps=24)


def noisy_days(sensors: int = 3, hours: int = 500, seed: int = 0, scale: float = 1.0) -> Sequences:
    """Daily cycles with noise; 20 readings of every sensor and 2 % of the values are missing."""
    random = np.random.default_rng(seed)
    moments, values = [], []
    for sensor in range(sensors):
        kept = np.sort(random.choice(hours, size=hours - 20, replace=False))
        swing = np.sin(2 * np.pi * kept / 24 + sensor) + random.normal(0, 0.3, len(kept))
        both = np.column_stack([swing, random.normal(size=len(kept))]) * scale
        both[random.random(both.shape) < 0.02] = np.nan
        moments.append(kept * HOUR_US)
        values.append(both)
    return joined(moments, values, CONFIG.features, HOUR_US, max_gap_steps=24)


def joined(
    moments: list[NDArray[np.int64]],
    values: list[NDArray[np.float64]],
    features: tuple[str, ...],
    cadence_us: int,
    *,
    max_gap_steps: int,
) -> Sequences:
    """The sensors ``s0``, ``s1``, ... as one data set; each has its times (n,) and values (n, F)."""
    starts = np.cumsum([0, *map(len, moments)])
    return build_sequences(
        [f"s{sensor}" for sensor in range(len(moments))],
        starts,
        np.concatenate(moments),
        np.concatenate(values),
        np.arange(starts[-1]),
        features=features,
        cadence_us=cadence_us,
        max_gap_steps=max_gap_steps,
    )
