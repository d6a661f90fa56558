"""Weights of experts from their discounted past losses (exponentially weighted average forecaster).

A convex combination whose weights fall exponentially with an expert's past loss is never much worse than the best
expert (Cesa-Bianchi and Lugosi, "Prediction, Learning, and Games", 2006, ch. 2); discounting lets "the best" change
with time. Losses are measured in units of the best expert's mean loss, so neither the sensor's unit nor its
predictability matters.

Letters: n rows, E experts, M points of the horizon.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Chosen on the validation parts of ETTh1 and of the Beijing set among 0.05-1, 0.97-0.995 and powers 1, 1.5, 2.
RATE = 0.1
DISCOUNT = 0.995  # per step
LEAST_LOSS = 1e-30  # an expert that never erred: all others then have no weight
OUTLIER = 20.0  # a loss counts as at most this many times the best expert's mean: one wild label must not decide


def loss(errors: Floats) -> Floats:
    """|e|^1.5: between the absolute loss (its weights serve the MAE) and the squared one (the MSE)."""
    size = np.abs(errors)
    product: Floats = size * np.sqrt(size)
    return product


def effective_steps(labels: NDArray[np.int64], stride: int) -> Floats:
    """(n,) steps that the discounted mean of that many labels, one every ``stride`` steps, stands for."""
    discount = DISCOUNT**stride
    steps: Floats = stride * (1.0 - discount ** labels.astype(np.float64)) / (1.0 - discount)
    return steps


def weigh(mean_losses: Floats, steps: Floats, prior: Floats) -> Floats:
    """(n, E, M) weights, which sum to one over E.

    Args:
        mean_losses: (n, E, M) discounted means; steps: (n,) of ``effective_steps``; prior: (E,) weights before any
            label. Its influence fades as labels come in.
    """
    best = mean_losses.min(axis=1, keepdims=True)
    excess = (mean_losses - best) / np.maximum(best, LEAST_LOSS)
    left = 1.0 - steps * (1.0 - DISCOUNT)  # 1 before any label, 0 in the end
    logit = np.log(prior)[None, :, None] * left[:, None, None] - RATE * steps[:, None, None] * excess
    weights = np.exp(np.ascontiguousarray(logit - logit.max(axis=1, keepdims=True)))
    shares: Floats = weights / weights.sum(axis=1, keepdims=True)
    return shares


def observe(mean_losses: Floats, losses: Floats, labels: NDArray[np.int64], stride: int) -> Floats:
    """(n, E, M) the discounted means after one more label.

    Args:
        losses: (n, E, M), NaN where the label is missing (the mean is kept); labels: (n,) how many came before.
    """
    discount = DISCOUNT**stride
    rate = ((1.0 - discount) / (1.0 - discount ** (labels.astype(np.float64) + 1.0)))[:, None, None]
    bound = OUTLIER * mean_losses.min(axis=1, keepdims=True)
    # Before the first labels, and where the best expert never erred, there is no measure of an outlier.
    bound = np.where((labels[:, None, None] < 10) | (bound <= 0.0), np.inf, bound)
    losses = np.minimum(losses, np.maximum(bound, np.nanmin(losses, axis=1, keepdims=True, initial=np.inf)))
    return np.where(np.isnan(losses), mean_losses, mean_losses + rate * (losses - mean_losses))
