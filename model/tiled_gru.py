"""The network's arithmetic in tiles of one fixed size, for results whose bits do not depend on who shares a batch.

A matrix product of another shape may add in another order, and so may rows of one product whose columns do not fill
the processor's vectors (seen with MKL at 5 to 11 columns). Products here have ``tile`` rows, whatever these are filled
with, and columns padded to whole vectors; all else is element by element, over whole vectors too.

Letters: B sensors, M steps, n readings, I inputs of a layer, L layers, H hidden, O outputs of the head.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Floats32 = NDArray[np.float32]

# Float32 lanes of the widest vectors (AVX-512), and of the two that elementwise loops take at a time.
_LANES: Final = 16
TILE_MULTIPLE: Final = 2 * _LANES
# Tiles whose gates are computed together: fewer calls, and still within a core's cache.
_TILES_PER_BLOCK: Final = 4


@contextmanager
def using_threads(threads: int) -> Iterator[None]:
    """Torch shares out the calling thread's work among so many; with one, no result depends on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def padded(size: int, multiple: int) -> int:
    """The least multiple that is no smaller than ``size``."""
    return -(-size // multiple) * multiple


class TiledLinear:
    """``x @ weight.T + bias``, a tile of rows at a time.

    Raises:
        ValueError: ``tile`` is not a multiple of ``TILE_MULTIPLE``.
    """

    def __init__(self, weight: Tensor, bias: Tensor, tile: int) -> None:
        if tile < 1 or tile % TILE_MULTIPLE:
            raise ValueError(f"tile must be a multiple of {TILE_MULTIPLE}, and is {tile}")
        self.width = padded(len(bias), _LANES)  # columns of the product; those past the outputs are zero
        self._weight = weight.new_zeros(weight.shape[1], self.width)
        self._weight[:, : len(bias)] = weight.detach().t()
        self._bias = bias.new_zeros(self.width)
        self._bias[: len(bias)] = bias.detach()
        self._tile = tile

    def __call__(self, x: Tensor, out: Tensor) -> None:
        """Fills ``out`` (rows, width) from ``x`` (rows, I); rows fill whole tiles."""
        for first in range(0, x.shape[0], self._tile):
            here = slice(first, first + self._tile)
            torch.addmm(self._bias, x[here], self._weight, out=out[here])


class TiledGRU:
    """Steps of a GRU for many sensors, in rounds."""

    def __init__(self, rnn: nn.GRU, tile: int) -> None:
        self._tile = tile
        self._hidden = rnn.hidden_size
        self._layers = [
            tuple(
                TiledLinear(
                    _candidate_doubled(getattr(rnn, f"weight_{side}_l{layer}")),
                    _candidate_doubled(getattr(rnn, f"bias_{side}_l{layer}")),
                    tile,
                )
                for side in ("ih", "hh")
            )
            for layer in range(rnn.num_layers)
        ]
        rows = tile * _TILES_PER_BLOCK
        self._gates = torch.zeros(rows, self._layers[0][1].width)
        self._opened = torch.zeros(rows, 2 * self._hidden)
        self._candidate = torch.zeros(rows, self._hidden)

    def run(self, x: Tensor, states: Tensor, sizes: Sequence[int], reset: NDArray[np.bool_]) -> Tensor:
        """The last layer's hidden states after each of M steps.

        Args:
            x: (padded M, I), round after round: round r steps the first ``sizes[r]`` sensors, ``sizes`` never rising.
            states: (L, padded B, H), stepped in place.
            reset: (M,) steps before which a sensor's state is zeroed.

        Returns:
            (padded M, H); rows from M on are padding.
        """
        breaks = _resets_by_round(reset, sizes)
        # The last tile of a round reads on into the next round's rows, and that of the last beyond the end.
        projected = x.new_empty(len(x) + self._tile, self._layers[0][0].width)
        projected[len(x) :] = 0.0
        for (take_in, recur), state in zip(self._layers, states, strict=True):
            take_in(x, projected[: len(x)])
            x = x.new_empty(len(x), self._hidden)
            position = 0
            for number, rows in enumerate(sizes):
                if number in breaks:
                    state[breaks[number]] = 0.0
                self._round(recur, projected[position:], state, rows)
                x[position : position + rows] = state[:rows]
                position += rows
            x[position:] = 0.0
        return x

    def _round(self, recur: TiledLinear, projected: Tensor, state: Tensor, rows: int) -> None:
        """One step of the first ``rows`` sensors of a layer; ``projected`` holds what its inputs give to the gates."""
        H = self._hidden
        for first in range(0, rows, len(self._gates)):
            count = min(rows - first, len(self._gates))
            size = padded(count, self._tile)
            h = state[first : first + size]
            inward = projected[first : first + size]
            gates, opened, new = self._gates[:size], self._opened[:size], self._candidate[:size]
            recur(h, gates)
            torch.add(inward[:, : 2 * H], gates[:, : 2 * H], out=opened).sigmoid_()
            torch.mul(opened[:, :H], gates[:, 2 * H : 3 * H], out=new).add_(inward[:, 2 * H : 3 * H])
            new.sigmoid_().mul_(2.0).sub_(1.0)  # tanh, of half of what the doubled weights gave
            # (1 - z) n + z h, as n + z (h - n); rows behind the active ones keep what they hold
            kept = torch.sub(h, new).mul_(opened[:, H:]).add_(new)
            h[:count] = kept[:count]


def _candidate_doubled(parameter: Tensor) -> Tensor:
    """A weight or bias of the three gates with the candidate's part doubled, which is exact.

    tanh(a) = 2 σ(2a) - 1, and Torch's sigmoid takes a sixth of the time of its tanh.
    """
    doubled = parameter.detach().clone()
    doubled[len(doubled) * 2 // 3 :] *= 2.0
    return doubled


def _resets_by_round(reset: NDArray[np.bool_], sizes: Sequence[int]) -> dict[int, Tensor]:
    """Rows to zero, by round."""
    marked = np.flatnonzero(reset)
    if not len(marked):
        return {}
    ends = np.cumsum(sizes)
    numbers = np.searchsorted(ends, marked, side="right")
    rows = marked - (ends - np.asarray(sizes))[numbers]
    return {int(number): torch.from_numpy(rows[numbers == number]) for number in np.unique(numbers)}
