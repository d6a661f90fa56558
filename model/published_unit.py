"""Forecasts on their way out: from the model's scale and the state's own unit to the unit that the sensor sends now.

Stream and evaluator call the same function, so their forecasts have equal bits.

Letters: n forecasts, K targets, Q quantiles, h horizon steps, M steps.
"""

from typing import Any

import numpy as np

from .bounds import Bounds, Floats, limits, whole_counts, within_limits
from .config import ModelConfig
from .target_scale import from_model_scale
from .unit_change import Followed


def to_published_unit(
    config: ModelConfig, quantiles: Floats, maps: Followed | None, index: Any, *, whole: bool = True
) -> tuple[Floats, Floats]:
    """Quantiles (n, K, Q, h) for publication, and the limits (n, K, 2) that they keep; (n, 0, 2) without bounds.

    Args:
        quantiles: on the model's scale.
        maps: of M steps, ``None`` if no change of unit is followed; index: (n,) the step of each forecast.
        whole: whether the quantiles of counts are rounded to whole numbers of the state's own unit.
    """
    quantiles = from_model_scale(config, quantiles)
    bounds = config.bounds
    if bounds and whole:
        quantiles = whole_counts(bounds, quantiles)
    if maps is not None and maps.has_maps:
        quantiles = maps.in_present_unit(index, list(config.target_indices), quantiles)
    if not bounds:
        return quantiles, np.empty((len(quantiles), 0, 2))
    between = _limits(bounds, maps, index, list(config.target_indices), len(quantiles))
    return within_limits(quantiles, between), between


def _limits(bounds: tuple[Bounds, ...], maps: Followed | None, index: Any, targets: list[int], n: int) -> Floats:
    """(n, K, 2) limits in the published unit.

    A map with an offset stands for another zero point, or for a jump of the values in the same unit: nothing tells the
    two apart. The limits then hold all values that either allows.
    """
    own = np.repeat(limits(bounds)[None], n, axis=0)
    if maps is None:
        return own
    factor, offset = maps.factor[index][:, targets], maps.offset[index][:, targets]
    own *= np.where(factor == 0.0, 1.0, factor)[:, :, None]
    moved = np.where(factor == 0.0, 0.0, offset)
    own[:, :, 0] += np.minimum(moved, 0.0)
    own[:, :, 1] += np.maximum(moved, 0.0)
    return own
