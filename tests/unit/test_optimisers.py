"""The optimisers update as the published methods do, and continue from their ``state_dict``."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.optimisers import Adam, AdamW

RATE, DECAY = 0.01, 0.1


def adam(weights: list[float], gradients: list[list[float]], decay: float) -> NDArray[np.float64]:
    """The weights after Adam's updates (Kingma and Ba, 2015), with decoupled decay (Loshchilov and Hutter, 2019)."""
    w, mean, square = np.array(weights), np.zeros(len(weights)), np.zeros(len(weights))
    for t, gradient in enumerate(np.array(gradients), start=1):
        w *= 1.0 - RATE * decay
        mean += 0.1 * (gradient - mean)
        square += 0.001 * (gradient**2 - square)
        w -= RATE * (mean / (1.0 - 0.9**t)) / (np.sqrt(square / (1.0 - 0.999**t)) + 1e-8)
    return w


@pytest.mark.parametrize("decay", [0.0, DECAY])
def test_updates_are_those_of_adam_before_and_after_a_restart(decay: float) -> None:
    def optimiser(weight: torch.nn.Parameter) -> torch.optim.Optimizer:
        if decay:
            return AdamW([weight], lr=RATE, weight_decay=decay, fused=True)
        return Adam([weight], lr=RATE)

    start, gradients = [1.0, -2.0, 0.0], [[0.5, -3.0, 1e-3], [-0.1, 2.0, 1e3], [0.0, 1.0, 1.0]]
    weight = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    one = optimiser(weight)
    for number, gradient in enumerate(gradients):
        if number == 2:
            kept, one = one.state_dict(), optimiser(weight)
            one.load_state_dict(kept)
        one.zero_grad(set_to_none=True)
        weight.grad = torch.tensor(gradient, dtype=torch.float64)
        one.step()
    np.testing.assert_allclose(weight.detach().numpy(), adam(start, gradients, decay), rtol=1e-12)
