"""The training loss and its written-out gradient equal those of the quantiles that a forecaster returns."""

import pytest
import torch

from model.batches import Chunk
from model.config import ModelConfig
from model.forecaster import Forecaster
from model.objective import pinball


def config(quantiles: tuple[float, ...]) -> ModelConfig:
    return ModelConfig(("a", "b"), ("a", "b"), 1, 5, quantiles, hidden_size=4)


@pytest.mark.parametrize("quantiles", [(0.1, 0.5, 0.9), (0.5,), (0.5, 0.9), (0.1, 0.2, 0.5), (0.1, 0.3, 0.5, 0.6, 0.9)])
def test_the_loss_from_raw_outputs_has_the_value_and_gradient_of_the_loss_of_the_quantiles(
    quantiles: tuple[float, ...],
) -> None:
    torch.manual_seed(0)
    chosen = config(quantiles)
    forecaster = Forecaster(chosen)
    raw = torch.randn(3, 4, 2 * len(quantiles) * 5, dtype=torch.float64, requires_grad=True)
    labels = torch.randn(3, 4, 2, 5, dtype=torch.float64)
    valid = (torch.rand(3, 4, 2, 5) < 0.7).double()
    chunk = Chunk(raw, raw, raw, slice(None), labels * valid, valid, 12, True)
    found = pinball(raw, chunk, chosen)
    (gradient,) = torch.autograd.grad(found, raw)
    error = chunk.labels[..., None, :] - forecaster.uncrossed(raw)
    levels = torch.tensor(quantiles, dtype=torch.float64)[:, None]
    each = torch.maximum(levels * error, (levels - 1.0) * error)
    expected = (each * valid[..., None, :]).sum() / len(quantiles)
    (wanted,) = torch.autograd.grad(expected, raw)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, wanted)


def test_a_chunk_without_labels_has_no_loss_and_no_gradient() -> None:
    chosen = config((0.1, 0.5, 0.9))
    raw = torch.randn(1, 4, 30, requires_grad=True)
    nothing = torch.zeros(1, 4, 2, 5)
    loss = pinball(raw, Chunk(raw, raw, raw, slice(None), nothing, nothing, 4, False), chosen)
    (gradient,) = torch.autograd.grad(loss, raw)
    assert loss.item() == 0.0
    assert not gradient.any()
