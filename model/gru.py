"""The GRU core: a pass over a window, or one step of a hidden state that the caller carries.

Letters: B sensors, T steps, I inputs, H hidden, L layers, O outputs.
"""

import torch
from torch import Tensor, nn

from . import gru_gradient


class GRUModel(nn.Module):
    """``num_layers`` of GRU, and a linear layer ``fc`` on the last layer's hidden state.

    It has the layout of the class in PyTorch tutorials: their ``state_dict`` (``gru.weight_ih_l0`` to ``fc.bias``)
    loads into this class, and this class's into theirs, with equal outputs.

    The gates are PyTorch's (Cho et al., 2014, with the reset gate applied after the product)::

        z = σ(W_z x + b_z + U_z h + c_z)
        r = σ(W_r x + b_r + U_r h + c_r)
        h~ = tanh(W x + b + r ∘ (U h + c))
        h' = (1 - z) ∘ h~ + z ∘ h

    No state is kept between calls: T calls of ``step`` from zeros equal one ``forward`` over T steps.
    """

    def __init__(
        self, input_size: int, hidden_size: int, output_size: int, num_layers: int = 2, *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.hidden_size = hidden_size
        self.gru = nn.GRU(
            input_size, hidden_size, num_layers, batch_first=True, dropout=dropout if num_layers > 1 else 0.0
        )
        self.fc = nn.Linear(hidden_size, output_size)

    def zeros(self, batch: int) -> Tensor:
        """(L, B, H): the hidden state of sensors before their first step."""
        return self.fc.weight.new_zeros(self.num_layers, batch, self.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, O) after the last step of windows ``x`` (B, T, I), each from a zero state."""
        hidden, _ = self.unroll(x, self.zeros(x.shape[0]))
        return self.predict(hidden[:, -1])

    def step(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs (B, O) and the next ``h`` after one step of ``x`` (B, I) from ``h`` (L, B, H)."""
        hidden, h = self.unroll(x[:, None], h)
        return self.predict(hidden[:, -1]), h

    def unroll(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The last layer's hidden states (B, T, H) over ``x`` (B, T, I) from ``h`` (L, B, H), and the next ``h``."""
        if torch.is_grad_enabled() and x.device.type == "cpu":
            return gru_gradient.unroll(x, h, self.gru.all_weights, self.gru.dropout if self.training else 0.0)
        hidden, h = self.gru(x, h)
        return hidden, h

    def predict(self, hidden: Tensor) -> Tensor:
        """The outputs (..., O) from the last layer's hidden states (..., H)."""
        out: Tensor = self.fc(hidden)
        return out
