"""Recursive least squares: it finds the weights, and stays bounded whatever comes."""

import numpy as np

from model import least_squares


def test_it_stays_bounded_over_a_million_labels_without_excitation() -> None:
    # 200 problems for 5,000 labels each at a forgetting that makes 5,000 count as a million at the one in use.
    n, D = 200, 6
    rng = np.random.default_rng(4)
    root = np.tile(least_squares.blank_root(D), (n, 1, 1)).astype(np.float32)
    weights = np.zeros((n, 1, D, 1), np.float32)
    for _ in range(5000):
        x = np.zeros((n, D))
        x[:, 0] = 1.0
        x[:, 1] = 1e-9 * rng.standard_normal(n)
        error = rng.standard_normal((n, 1, 1)) - np.matmul(x[:, None, None], weights)[:, :, 0]
        new = least_squares.update(root.astype(float), weights.astype(float), x, error, 0.9995**200)
        root, weights = new[0].astype(np.float32), new[1].astype(np.float32)
    variance = np.linalg.eigvalsh(root.astype(float) @ root.astype(float).transpose(0, 2, 1))
    assert variance.min() >= -1e-6
    assert variance.max() <= D * least_squares.PRIOR_VARIANCE
    assert np.abs(weights).max() < 10.0


def test_it_finds_the_weights() -> None:
    rng = np.random.default_rng(5)
    truth = rng.standard_normal((3, 2, 4, 5))
    root = np.tile(least_squares.blank_root(4), (3, 1, 1))
    weights = np.zeros_like(truth)
    for _ in range(300):
        x = rng.standard_normal((3, 4))
        error = np.matmul(x[:, None, None], truth - weights)[:, :, 0]
        root, weights = least_squares.update(root, weights, x, error, 1.0)
    np.testing.assert_allclose(weights, truth, atol=0.01)
