"""Recursive least squares for many small problems at once, in a form that rounding cannot break.

The covariance P of the weights is held as a root: P = root @ rootᵀ, which is positive semi-definite whatever is rounded
away, so float32 is enough to store it (P itself in float32 loses that property and diverges). The update is Potter's
(Bierman, "Factorization Methods for Discrete Sequential Estimation", 1977, ch. V).

Every product is a sum within one problem, so a problem's result does not depend on which others share the call.

Letters: n problems, D regressors, R regressions that share the regressors, P points of the horizon.
"""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PRIOR_VARIANCE = 1.0  # of each weight, in squared scales: wide for regressors of order one, and the bound for ever


def blank_root(regressors: int) -> Floats:
    """(D, D) root of the covariance before any label."""
    return np.eye(regressors) * math.sqrt(PRIOR_VARIANCE)


def update(root: Floats, weights: Floats, x: Floats, errors: Floats, forgetting: float) -> tuple[Floats, Floats]:
    """Root and weights after one more label.

    Without excitation, forgetting alone would let P grow until it overflows ("wind-up"). Each weight's variance is
    therefore held at the prior's: its row of the root is shrunk, which keeps P positive semi-definite.

    Args:
        root: (n, D, D); weights: (n, R, D, P); x: (n, D); errors: (n, R, P) label less prediction, 0 where the label
            is missing (that regression then keeps its weights); forgetting: in (0, 1], 1 forgets nothing.
    """
    f = np.matmul(x[:, None, :], root)[:, 0]  # rootᵀ x, (n, D)
    gain = np.matmul(root, f[:, :, None])[:, :, 0]  # P x, (n, D)
    a = 1.0 / (forgetting + (f * f).sum(axis=1))
    weights = weights + (gain * a[:, None])[:, None, :, None] * errors[:, :, None, :]
    shrink = a / (1.0 + np.sqrt(forgetting * a))
    root = (root - (gain * shrink[:, None])[:, :, None] * f[:, None, :]) / math.sqrt(forgetting)
    variance = (root * root).sum(axis=2)
    root *= np.minimum(1.0, np.sqrt(PRIOR_VARIANCE / np.maximum(variance, PRIOR_VARIANCE)))[:, :, None]
    return root, weights
