"""PyTorch's optimisers without PyTorch's compiler.

``torch.optim`` imports the compiler (``torch._dynamo``) in these methods, to keep them out of compiled graphs. The
import takes 150 MB and two seconds of each training, and a training compiles no graph.
"""

import inspect
from typing import Any

import torch
from torch.optim import Optimizer


class _WithoutCompiler(Optimizer):
    """The methods of an optimiser as they are before ``torch.optim`` wraps them."""

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)


class Adam(_WithoutCompiler, torch.optim.Adam):
    """``torch.optim.Adam``, with the same bits and the same ``state_dict``."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the weights."""
        inspect.unwrap(torch.optim.Adam.step)(self, closure)


class AdamW(_WithoutCompiler, torch.optim.AdamW):
    """``torch.optim.AdamW``, with the same bits and the same ``state_dict``."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the weights."""
        inspect.unwrap(torch.optim.AdamW.step)(self, closure)
