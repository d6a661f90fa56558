"""The weights that forecasts name, held against those that are recomputed."""

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.forecaster.encoding import WEIGHT_PARTS
from pipeline.messages import Forecast

_NONE: Final = np.nan  # the forecast names no weights, as it must where nothing is mixed
_OTHERS: Final = -1.0  # it names some, of other targets or experts: equal to no weight, and not to none
# Half of the last decimal written, and what "equal" allows (see recompute) before the rounding.
_TOLERANCE: Final = 0.5 / WEIGHT_PARTS + 1e-5


def published_weights(forecast: Forecast, targets: Sequence[str], experts: Sequence[str]) -> NDArray[np.float64]:
    """(K, E) the weights that a forecast names, or what stands for their absence or for foreign ones."""
    if forecast.weights is msgspec.UNSET:
        return np.full((len(targets), len(experts)), _NONE)
    shares = forecast.weights
    if shares.keys() != set(targets) or any(by_expert.keys() != set(experts) for by_expert in shares.values()):
        return np.full((len(targets), len(experts)), _OTHERS)
    return np.array([[shares[target][expert] for expert in experts] for target in targets], dtype=np.float64)


def weights_agree(published: NDArray[np.float64], recomputed: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n,) whether published weights (n, K, E) are the recomputed ones, (n, K, 0) where nothing is mixed."""
    expected = recomputed if recomputed.shape[2] else np.full_like(published, _NONE)
    close = np.abs(published - expected) <= _TOLERANCE
    return np.asarray((close | (np.isnan(published) & np.isnan(expected))).all(axis=(1, 2)))
