"""The losses that training minimises and chooses the best epoch by, in the sensors' scales.

Letters: B lanes, T steps, K targets, Q quantiles, h horizon steps.
"""

import math
import warnings
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from .batches import Chunk, Lane, chunks
from .config import ModelConfig
from .device_data import DeviceData
from .forecaster import Forecaster

VALIDATION_LANES: Final = 64  # lanes side by side
VALIDATION_CHUNK_STEPS: Final = 96


def pinball(raw: Tensor, chunk: Chunk, config: ModelConfig) -> Tensor:
    """The sum over the valid labels of their mean pinball loss, in scales, from raw outputs (B, T, K·Q·h)."""
    raw = raw.view(*raw.shape[:-1], config.target_count, len(config.quantiles), config.horizon_steps)
    total: Tensor = _Pinball.apply(raw, chunk.labels, chunk.valid, config.quantiles, config.median_index)
    return total / len(config.quantiles)


class _Pinball(torch.autograd.Function):
    """The sum of pinball losses over the valid labels, from raw outputs (..., Q, h); see ``Forecaster.uncrossed``.

    The gradient is written out: a third of the passes over memory that autograd makes.
    """

    @staticmethod
    def forward(ctx: Any, raw: Tensor, labels: Tensor, valid: Tensor, levels: tuple[float, ...], median: int) -> Tensor:
        """The sum; the gradient is computed here, too."""
        raw = raw.movedim(-2, 0).contiguous()  # (Q, ..., h): each level in one piece of memory
        gradient = torch.empty_like(raw)
        total = raw.new_zeros(())

        def moved(quantile: Tensor, level: float) -> Tensor:
            """The gradient of one quantile; its loss is added to the total."""
            error = labels - quantile
            slope = torch.where(error < 0.0, error.new_full((), 1.0 - level), error.new_full((), -level)).mul_(valid)
            total.sub_(torch.dot(slope.flatten(), error.flatten()))
            return slope

        of_median = moved(raw[median], levels[median])
        for side, sign in ((range(median + 1, len(levels)), 1.0), (range(median - 1, -1, -1), -1.0)):
            quantile = raw[median]
            found = []  # the gradient of each quantile of this side, from the median outwards
            for number in side:
                quantile = torch.add(quantile, functional.softplus(raw[number]), alpha=sign)
                found.append(moved(quantile, levels[number]))
            # A raw output moves its own quantile and all quantiles beyond it.
            beyond: Tensor | None = None
            for number in reversed(side):
                beyond = found.pop() if beyond is None else beyond.add_(found.pop())
                torch.mul(torch.sigmoid(raw[number]), beyond, out=gradient[number])
                if sign < 0.0:
                    gradient[number].neg_()
            if beyond is not None:
                of_median += beyond
        gradient[median] = of_median
        ctx.save_for_backward(gradient.movedim(0, -2))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of ``raw``."""
        (gradient,) = ctx.saved_tensors
        scaled = torch.mul(gradient, gradients[0], out=gradient.new_empty(gradient.shape))  # contiguous, in one pass
        return scaled, None, None, None, None


def _pinball_sum(predicted: Tensor, chunk: Chunk, config: ModelConfig) -> Tensor:
    levels = predicted.new_tensor(config.quantiles)[:, None]
    error = chunk.labels[..., None, :] - predicted
    return (torch.maximum(levels * error, (levels - 1.0) * error) * chunk.valid[..., None, :]).sum()


def squared_error(raw: Tensor, chunk: Chunk, config: ModelConfig) -> Tensor:
    """The sum of the median's squared errors, in squared scales, from raw outputs (B, T, K·Q·h)."""
    raw = raw.view(*raw.shape[:-1], config.target_count, len(config.quantiles), config.horizon_steps)
    median = raw[..., config.median_index, :]
    return ((chunk.labels - median).square() * chunk.valid).sum()


@torch.no_grad()
def pinball_of(forecaster: Forecaster, lanes: list[Lane], data: DeviceData, stride: int = 1) -> float:
    """Mean pinball loss of every ``stride``-th step over the valid labels, in scales; infinite without a label."""
    totals, counts = [], []
    for predicted, chunk in forecasts_along(forecaster, lanes, data, stride):
        totals.append(_pinball_sum(predicted, chunk, forecaster.config))
        counts.append(chunk.valid.sum())
    if not totals:
        return math.inf
    total, labels = (float(torch.stack(numbers).cpu().double().sum()) for numbers in (totals, counts))
    return total / (labels * len(forecaster.config.quantiles)) if labels else math.inf


def forecasts_along(
    forecaster: Forecaster, lanes: list[Lane], data: DeviceData, stride: int = 1
) -> Iterator[tuple[Tensor, Chunk]]:
    """Forecasts (B, S, K, Q, h) of all chunks with labels, with the state carried along each lane."""
    forecaster.eval()
    for first in range(0, len(lanes), VALIDATION_LANES):
        group = lanes[first : first + VALIDATION_LANES]
        hidden = forecaster.gru.zeros(len(group))
        for chunk in chunks(group, VALIDATION_CHUNK_STEPS, stride, data=data):
            if not chunk.labelled:
                hidden = forecaster.advance(chunk.x, chunk.rows, hidden)
                continue
            predicted, hidden = forecaster.unroll(chunk.x, chunk.past, chunk.rows, hidden, chunk.scored, chunk.ahead)
            yield predicted, chunk


@torch.no_grad()
def fit_intervals(forecaster: Forecaster, lanes: list[Lane], data: DeviceData) -> None:
    """Set the quantiles of a plain ``forecaster``, in place: its squared error trains the median alone.

    The other quantiles become constant distances from the median, in scales, per target and horizon step: those of the
    median's residuals on the validation ``lanes``.
    """
    config = forecaster.config
    K, Q, h = config.target_count, len(config.quantiles), config.horizon_steps
    residuals: list[NDArray[np.float32]] = []
    for predicted, chunk in forecasts_along(forecaster, lanes, data):
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
    if forecaster.ahead is not None:
        forecaster.ahead.give_out.weight.view(K, Q, h, -1)[:, outer] = 0.0
    forecaster.gru.fc.bias.view(K, Q, h)[:, outer] = bias[:, outer].to(data.device)
