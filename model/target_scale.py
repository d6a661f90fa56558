"""The scale that a target is modelled on: its values, or square roots of their distances from its minimum.

Quantiles are equivariant under a rising function: values are transformed where they enter the model, and quantiles are
transformed back where they leave it. On the scale of roots, a skewed target with a minimum varies about as much at high
values as at low ones. Roots need no unit: values in another unit give roots that differ by a factor, which the
normaliser takes out. Square roots and products are correctly rounded for arrays of any length, so stream and batch
compute the same bits.

A value below the minimum has the negative root of its distance. A state holds transformed values; the map of a changed
unit applies to the values themselves (``model.unit_change``).

Letters: M steps, n forecasts, F features, K targets, Q quantiles, h horizon steps.
"""

from dataclasses import replace

import numpy as np

from .bounds import Floats
from .config import ModelConfig


def to_model_scale(config: ModelConfig, values: Floats) -> Floats:
    """(M, F) the values on the model's scale; ``values`` itself if no target has another scale."""
    if not any(config.roots):
        return values
    out = values.copy()
    for target, column in enumerate(config.target_indices):
        if config.roots[target]:
            above = values[:, column] - config.bounds[target].lowest
            out[:, column] = np.copysign(np.sqrt(np.abs(above)), above)
    return out


def from_model_scale(config: ModelConfig, numbers: Floats) -> Floats:
    """(n, K, ...) values or quantiles of the targets in the sensors' units."""
    if not any(config.roots):
        return numbers
    out = numbers.copy()
    for target, is_root in enumerate(config.roots):
        if is_root:
            out[:, target] = numbers[:, target] * np.abs(numbers[:, target]) + config.bounds[target].lowest
    return out


def same_shape(trained: ModelConfig, wanted: ModelConfig) -> bool:
    """Whether the weights of a trained model suit ``wanted``, for which no scale is chosen yet.

    They depend on the scale of each target and on the minimum that roots are taken from, not on other bounds. A warm
    start with other covariates known ahead begins their term at zero, and one with other attributes begins their new
    values alike (``Forecaster.adopt``).
    """
    if trained.targets != wanted.targets or trained.embedding_size != wanted.embedding_size:
        return False
    bounds = dict(zip(wanted.targets, wanted.bounds, strict=False))
    minima = {target: each.lowest for target, each in zip(trained.targets, trained.bounds, strict=False)}
    alike = replace(
        trained,
        sensors=(),
        roots=(),
        bounds=wanted.bounds,
        calendar=wanted.calendar,
        outlook=wanted.outlook,
        attributes=wanted.attributes,
    )
    return alike == wanted and all(
        target in bounds and bounds[target].lowest == minima[target] for target in trained.targets_by_roots
    )


def scale_in_unit(config: ModelConfig, level: Floats, scale: Floats) -> Floats:
    """(n, K) the size, in the sensors' units, of a ``scale`` (n, K) around a ``level``, both on the model's scale."""
    if not any(config.roots):
        return scale
    size: Floats = np.abs(from_model_scale(config, np.abs(level) + scale) - from_model_scale(config, np.abs(level)))
    return size
