"""The inputs of the network that are known ahead: calendar covariates and outlooks, from a step's own time to h ahead.

Training, back-test and stream call the same functions, on one device or another, so their inputs have equal bits.

Letters: n steps, h horizon steps, H hidden, m outlooks, C covariates of outlooks, A inputs known ahead.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .config import ModelConfig
from .known_ahead import OutlookConfig
from .normaliser import Floats
from .outlooks import NO_ISSUE_US, NO_OUTLOOK, Outlooks, nearest_cell
from .sequences import Sequences

AHEAD_WIDTH: Final = 64  # hidden numbers of the term that the inputs known ahead add to the raw outputs
LARGEST_COVARIATE: Final = 8.0  # standard deviations that values of outlooks are clipped to
_MOST_FITTED_OUTLOOKS: Final = 20_000  # enough for a mean and a standard deviation


def ahead_size(config: ModelConfig) -> int:
    """A: the inputs known ahead; 0 without covariates."""
    points = config.horizon_steps + 1
    outlook = 2 * config.outlook.covariate_count * points + 1 if config.outlook is not None else 0
    return len(config.calendar) * points + outlook


def fit_standard(config: OutlookConfig, sequences: Sequences, until_us: int) -> Floats:
    """(2, C) mean and standard deviation of each covariate, over the outlooks of the steps before ``until_us``.

    They are 0 and 1 for a covariate without values; the deviation of a constant is 1.
    """
    standard = np.repeat([[0.0], [1.0]], config.covariate_count, axis=1)
    if sequences.outlooks is None or sequences.outlook is None:
        return standard
    rows = np.unique(sequences.outlook[sequences.timestamp_us < until_us])
    rows = rows[rows != NO_OUTLOOK]
    rows = rows[:: max(1, len(rows) // _MOST_FITTED_OUTLOOKS)]
    for covariate in range(config.covariate_count):
        values = sequences.outlooks.values[rows, :, covariate].astype(np.float64)
        values = values[~np.isnan(values)]
        if len(values):
            standard[0, covariate] = values.mean()
            standard[1, covariate] = values.std()
    standard[1, ~(standard[1] > 0.0)] = 1.0
    return standard


@dataclass(frozen=True)
class OutlookTensors:
    """At least one outlook on a device; on a CPU it shares the arrays' memory."""

    issued_us: Tensor  # (m,)
    first_us: Tensor  # (m,)
    values: Tensor  # (m·steps, C)
    steps: int

    @classmethod
    def of(cls, outlooks: Outlooks, device: torch.device) -> "OutlookTensors":
        """The outlooks; a single one without values instead of an empty list."""
        values = outlooks.values
        issued_us, first_us = outlooks.issued_us, outlooks.first_us
        if not len(outlooks):
            values = np.zeros((1, *values.shape[1:]), np.float32)
            issued_us, first_us = np.full(1, NO_ISSUE_US), np.zeros(1, np.int64)
        arrays = (issued_us, first_us, values.reshape(-1, values.shape[2]))
        issued, first, cells = (torch.from_numpy(np.ascontiguousarray(each)).to(device) for each in arrays)
        return cls(issued, first, cells, values.shape[1])


class AheadInputs:
    """Builds the inputs of a model that are known ahead (calendar, outlooks), on one device.

    Args:
        config: with covariates known ahead.
        standard: (2, C) of ``fit_standard``; not used without outlooks.
    """

    def __init__(self, config: ModelConfig, standard: Floats, device: torch.device) -> None:
        self.device = device
        self._config = config
        self._standard = torch.from_numpy(standard).to(device)
        self._changes = [torch.from_numpy(each.changes_us).to(device) for each in config.calendar]
        self._points = torch.arange(config.horizon_steps + 1, device=device)
        self._none = OutlookTensors.of(Outlooks.none(config.outlook), device) if config.outlook is not None else None

    def __call__(self, timestamp_us: Tensor, outlooks: OutlookTensors | None, row: Tensor | None) -> Tensor:
        """(..., A) for steps at these times (...,).

        Args:
            outlooks: without them, no step has one.
            row: (...,) the outlook of each step; ``NO_OUTLOOK`` for none.
        """
        ahead_us = timestamp_us[..., None] + self._points * self._config.cadence_us
        parts = [(torch.searchsorted(changes, ahead_us, right=True) % 2).float() for changes in self._changes]
        if self._none is not None:
            if outlooks is None or row is None:
                outlooks, row = self._none, torch.full_like(timestamp_us, NO_OUTLOOK)
            parts += self._of_outlooks(timestamp_us, outlooks, row)
        return torch.cat(parts, dim=-1)

    def of_arrays(
        self, timestamp_us: NDArray[np.int64], outlooks: Outlooks | None, row: NDArray[np.int32] | None
    ) -> Tensor:
        """(n, A) for steps at these times (n,); the arguments are those of a call."""
        time = torch.from_numpy(np.ascontiguousarray(timestamp_us)).to(self.device)
        if outlooks is None or row is None:
            return self(time, None, None)
        rows = torch.from_numpy(np.ascontiguousarray(row)).to(self.device)
        return self(time, OutlookTensors.of(outlooks, self.device), rows)

    def _of_outlooks(self, timestamp_us: Tensor, outlooks: OutlookTensors, row: Tensor) -> list[Tensor]:
        """Standardised values and masks (..., (h+1)·C), and the age (..., 1)."""
        row, there = row.long().clamp(min=0), row >= 0
        issued_us = outlooks.issued_us[row]
        there = there & (issued_us != NO_ISSUE_US)
        since_us = torch.where(there, timestamp_us - outlooks.first_us[row], 0)
        cadence_us = self._config.cadence_us
        cell = nearest_cell(since_us, cadence_us)[..., None] + self._points
        inside = (cell >= 0) & (cell < outlooks.steps) & there[..., None]
        values = outlooks.values[torch.where(inside, row[..., None] * outlooks.steps + cell, 0)]
        seen = inside[..., None] & ~values.isnan()
        location, scale = self._standard
        scaled = ((values.double() - location) / scale).clamp_(-LARGEST_COVARIATE, LARGEST_COVARIATE).float()
        age = torch.where(there, timestamp_us - issued_us, 0).clamp_(min=0).double() / cadence_us
        age = torch.where(there, age / (age + self._config.horizon_steps), 1.0).float()
        return [scaled.masked_fill_(~seen, 0.0).flatten(-2), seen.float().flatten(-2), age[..., None]]


class AheadTerm(nn.Module):
    """The term that the inputs known ahead add to the raw outputs; 0 in an untrained model.

    Args:
        hidden_size: H; outputs: the raw outputs of the head.
    """

    def __init__(self, config: ModelConfig, hidden_size: int, outputs: int) -> None:
        super().__init__()
        self.take_in = nn.Linear(hidden_size + ahead_size(config), AHEAD_WIDTH)
        self.give_out = nn.Linear(AHEAD_WIDTH, outputs, bias=False)
        nn.init.zeros_(self.give_out.weight)

    def forward(self, hidden: Tensor, ahead: Tensor) -> Tensor:
        """(..., outputs) from the last layer's hidden states (..., H) and the inputs (..., A)."""
        out: Tensor = self.give_out(torch.relu(self.take_in(torch.cat([hidden, ahead], dim=-1))))
        return out
