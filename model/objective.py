"""The losses that training minimises and chooses the best epoch by, in the sensors' scales.

Letters: B lanes, T steps, K targets, Q quantiles, h horizon steps.
"""

import warnings
from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .batches import Chunk, Lane, chunks
from .config import ModelConfig
from .forecaster import Forecaster

VALIDATION_LANES: Final = 64  # lanes side by side
VALIDATION_CHUNK_STEPS: Final = 96


def pinball(predicted: Tensor, chunk: Chunk, config: ModelConfig) -> Tensor:
    """Mean pinball loss of quantiles (B, T, K, Q, h) over the valid labels, in scales."""
    total = _pinball_sum(predicted, chunk, config)
    return total / (chunk.valid.sum().clamp(min=1.0) * len(config.quantiles))


def _pinball_sum(predicted: Tensor, chunk: Chunk, config: ModelConfig) -> Tensor:
    levels = predicted.new_tensor(config.quantiles)[:, None]
    error = chunk.labels[..., None, :] - predicted
    return (torch.maximum(levels * error, (levels - 1.0) * error) * chunk.valid[..., None, :]).sum()


def squared_error(median: Tensor, chunk: Chunk) -> Tensor:
    """Mean squared error of point forecasts (B, T, K, h) over the valid labels, in squared scales."""
    return ((chunk.labels - median).square() * chunk.valid).sum() / chunk.valid.sum().clamp(min=1.0)


@torch.no_grad()
def pinball_of(forecaster: Forecaster, lanes: list[Lane], device: torch.device) -> float:
    """Mean pinball loss over the lanes' valid labels, in scales; infinite without a label."""
    total, count = 0.0, 0.0
    for predicted, chunk in _forecasts_along(forecaster, lanes, device):
        total += float(_pinball_sum(predicted, chunk, forecaster.config))
        count += float(chunk.valid.sum()) * len(forecaster.config.quantiles)
    return total / count if count else float("inf")


def _forecasts_along(forecaster: Forecaster, lanes: list[Lane], device: torch.device) -> Iterator[tuple[Tensor, Chunk]]:
    """Forecasts (B, T, K, Q, h) of all lanes, chunk by chunk, with the state carried along each lane."""
    forecaster.eval()
    for first in range(0, len(lanes), VALIDATION_LANES):
        group = lanes[first : first + VALIDATION_LANES]
        hidden = forecaster.gru.zeros(len(group))
        for chunk in chunks(group, VALIDATION_CHUNK_STEPS):
            there = chunk.to(device)
            predicted, hidden = forecaster.unroll(there.x, there.past, there.rows, hidden, there.scored)
            yield predicted, there


@torch.no_grad()
def fit_intervals(forecaster: Forecaster, lanes: list[Lane]) -> None:
    """Set the quantiles of a plain ``forecaster``, in place: its squared error trains the median alone.

    The other quantiles become constant distances from the median, in scales, per target and horizon step: those of the
    median's residuals on the validation ``lanes``.
    """
    config = forecaster.config
    K, Q, h = config.target_count, len(config.quantiles), config.horizon_steps
    device = forecaster.gru.fc.weight.device
    residuals: list[NDArray[np.float32]] = []
    for predicted, chunk in _forecasts_along(forecaster, lanes, device):
        error = chunk.labels - predicted[..., config.median_index, :]
        residuals.append(torch.where(chunk.valid > 0, error, torch.nan).flatten(0, 1).cpu().numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a target without labels gives NaN, replaced by 1
        found = np.nanquantile(np.concatenate(residuals), config.quantiles, axis=0)
    offsets = found.transpose(1, 0, 2)  # (K, Q, h)
    gaps = np.maximum(np.diff(offsets, axis=1), 1e-4)
    distance = np.ones((K, Q, h))
    m = config.median_index
    distance[:, :m], distance[:, m + 1 :] = gaps[:, :m], gaps[:, m:]
    bias = torch.from_numpy(np.log(np.expm1(np.nan_to_num(distance, nan=1.0)))).float()
    outer = torch.arange(Q) != m
    forecaster.gru.fc.weight.view(K, Q, h, -1)[:, outer] = 0.0
    forecaster.gru.fc.bias.view(K, Q, h)[:, outer] = bias[:, outer].to(device)
