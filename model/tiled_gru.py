"""The GRU and the head in tiles of one size: a sensor's bits do not depend on the rest of its batch.

The order of the additions in a matrix product may depend on its shape. It may also differ between the rows of one
product, if the columns do not fill the processor's vectors (seen with MKL at 5 to 11 columns). Therefore every product
has ``tile`` rows, padded if necessary, and columns padded to whole vectors. All other arithmetic is element by element,
also over whole vectors.

Letters: B sensors, M steps, n readings, I inputs of a layer, L layers, H hidden, O outputs of the head.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_LANES: Final = 16  # float32 numbers in the widest vectors (AVX-512)
TILE_MULTIPLE: Final = 2 * _LANES  # rows; elementwise loops take two vectors at a time
# Tiles whose gates are computed together: few calls, and the numbers stay in a core's cache.
_TILES_PER_BLOCK: Final = 4


@contextmanager
def using_threads(threads: int) -> Iterator[None]:
    """Let torch use this many threads for the calling thread's work.

    With 1, no result depends on the number of cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def padded(size: int, multiple: int) -> int:
    """The smallest multiple of ``multiple`` that is at least ``size``."""
    return -(-size // multiple) * multiple


class TiledLinear:
    """``x @ weight.T + bias``, a tile of rows at a time.

    Raises:
        ValueError: ``tile`` is not a multiple of ``TILE_MULTIPLE``.
    """

    def __init__(self, weight: Tensor, bias: Tensor, tile: int) -> None:
        if tile < 1 or tile % TILE_MULTIPLE:
            raise ValueError(f"tile must be a multiple of {TILE_MULTIPLE}, not {tile}")
        self.width = padded(len(bias), _LANES)  # columns of the product: the outputs, then zeros
        self._weight = weight.new_zeros(weight.shape[1], self.width)
        self._weight[:, : len(bias)] = weight.detach().t()
        self._bias = bias.new_zeros(self.width)
        self._bias[: len(bias)] = bias.detach()
        self._tile = tile

    def __call__(self, x: Tensor, out: Tensor) -> None:
        """Fill ``out`` (rows, width) from ``x`` (rows, I); the rows are whole tiles."""
        for first in range(0, x.shape[0], self._tile):
            here = slice(first, first + self._tile)
            torch.addmm(self._bias, x[here], self._weight, out=out[here])


class TiledGRU:
    """A GRU that steps many sensors, in rounds."""

    def __init__(self, rnn: nn.GRU, tile: int) -> None:
        self._tile = tile
        self._hidden = rnn.hidden_size
        self._layers = [
            tuple(
                TiledLinear(
                    _double_candidate(getattr(rnn, f"weight_{side}_l{layer}")),
                    _double_candidate(getattr(rnn, f"bias_{side}_l{layer}")),
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
            reset: (M,) whether the sensor's state is set to zero before the step.

        Returns:
            (padded M, H); rows from M on are padding.
        """
        breaks = _resets_by_round(reset, sizes)
        # The last tile of a round also reads rows of the next round. In the last round it reads rows past the end.
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
        """One step of a layer's first ``rows`` sensors; ``projected`` holds the inputs' part of the gates."""
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
            new.sigmoid_().mul_(2.0).sub_(1.0)  # tanh(a) from the doubled weights' 2a
            # (1 - z) n + z h, as n + z (h - n); rows past the active ones keep their state
            kept = torch.sub(h, new).mul_(opened[:, H:]).add_(new)
            h[:count] = kept[:count]


def _double_candidate(parameter: Tensor) -> Tensor:
    """A weight or bias of the three gates, the candidate's part doubled; doubling is exact.

    The candidate's tanh is computed as tanh(a) = 2 σ(2a) - 1: torch's sigmoid takes a sixth of the time of its tanh.
    """
    doubled = parameter.detach().clone()
    doubled[len(doubled) * 2 // 3 :] *= 2.0
    return doubled


def _resets_by_round(reset: NDArray[np.bool_], sizes: Sequence[int]) -> dict[int, Tensor]:
    """The rows to set to zero before each round, by round."""
    marked = np.flatnonzero(reset)
    if not len(marked):
        return {}
    ends = np.cumsum(sizes)
    numbers = np.searchsorted(ends, marked, side="right")
    rows = marked - (ends - np.asarray(sizes))[numbers]
    return {int(number): torch.from_numpy(rows[numbers == number]) for number in np.unique(numbers)}
