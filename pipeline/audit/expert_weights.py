"""Compares the expert weights that forecasts name with the recomputed ones."""

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.forecast_encoding import WEIGHT_PARTS
from pipeline.messages import Forecast

_NONE: Final = np.nan  # stands for a forecast without weights, which is correct without adaptation
_OTHERS: Final = -1.0  # stands for weights of other targets or experts; no weight has this value
_TOLERANCE: Final = 0.5 / WEIGHT_PARTS + 1e-5  # half of the last decimal, and the tolerance of ``recompute``


def published_weights(forecast: Forecast, targets: Sequence[str], experts: Sequence[str]) -> NDArray[np.float64]:
    """(K, E) the weights in a forecast; all ``_NONE`` or all ``_OTHERS`` if it lacks them or has other names."""
    weights, shape = forecast.weights, (len(targets), len(experts))
    if weights is msgspec.UNSET:
        return np.full(shape, _NONE)
    if weights.keys() != set(targets) or any(by_expert.keys() != set(experts) for by_expert in weights.values()):
        return np.full(shape, _OTHERS)
    return np.array([[weights[target][expert] for expert in experts] for target in targets], dtype=np.float64)


def weights_agree(published: NDArray[np.float64], recomputed: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n,) whether published weights (n, K, E) equal the recomputed ones, which are (n, K, 0) without adaptation."""
    expected = recomputed if recomputed.shape[2] else np.full_like(published, _NONE)
    close = np.abs(published - expected) <= _TOLERANCE
    return np.asarray((close | (np.isnan(published) & np.isnan(expected))).all(axis=(1, 2)))
