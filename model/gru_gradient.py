"""A GRU layer whose backward pass is written out, which halves the time of training on a CPU.

Autograd would add up the gradient of the recurrent weights step by step, with some ten small operations for each. Here
each step takes one matrix product, and the weights' gradient is one product over all steps (back-propagation through
time: Werbos, 1990). On a GPU cuDNN does the same, so only CPUs use this module.

The gates are those of ``model.gru``. Letters: T steps, B sensors, H hidden.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Layer(torch.autograd.Function):
    """One layer over T steps; its inputs' part of the gates is computed outside."""

    @staticmethod
    def forward(ctx: Any, inward: Tensor, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The hidden states (T, B, H) after each step.

        Args:
            inward: (T, B, 3H) the inputs' part of the gates r, z and of the candidate.
            h: (B, H) the state before the steps.
            weight, bias: (3H, H) and (3H,) of the recurrent part.
        """
        T, B, H = len(inward), *h.shape
        states = inward.new_empty(T + 1, B, H)  # the state before each step, and the last one
        gates = inward.new_empty(T, B, 2 * H)  # r, z
        recurrent = inward.new_empty(T, B, 3 * H)
        candidate = inward.new_empty(T, B, H)
        states[0] = h
        into = weight.t().contiguous()
        for before, after, x_gates, x_new, opened, z, r, around, a_gates, a_new, new in zip(
            states[:-1].unbind(),
            states[1:].unbind(),
            inward[..., : 2 * H].unbind(),
            inward[..., 2 * H :].unbind(),
            gates.unbind(),
            gates[..., H:].unbind(),
            gates[..., :H].unbind(),
            recurrent.unbind(),
            recurrent[..., : 2 * H].unbind(),
            recurrent[..., 2 * H :].unbind(),
            candidate.unbind(),
            strict=True,
        ):
            torch.addmm(bias, before, into, out=around)
            torch.add(x_gates, a_gates, out=opened).sigmoid_()
            torch.addcmul(x_new, r, a_new, out=new).tanh_()
            torch.lerp(new, before, z, out=after)  # (1 - z) n + z h
        ctx.save_for_backward(states, gates, recurrent[..., 2 * H :], candidate, weight)
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gradients of ``inward``, ``h``, ``weight`` and ``bias``."""
        (of_states,) = gradients
        states, gates, recurrent_new, new, weight = ctx.saved_tensors
        T, B, H = new.shape
        r, z = gates[..., :H], gates[..., H:]
        # Factors of a step's dh in the gradients of r, z and the recurrent candidate before their activations.
        of_new = (1.0 - z) * (1.0 - new * new)
        factors = new.new_empty(T, B, 3, H)
        torch.mul(of_new * recurrent_new, r * (1.0 - r), out=factors[:, :, 0])
        torch.mul(states[:-1] - new, z * (1.0 - z), out=factors[:, :, 1])
        torch.mul(of_new, r, out=factors[:, :, 2])
        inward = new.new_empty(T, B, 3, H)  # the gradient of the recurrent part first, then of the inputs' part
        total = new.new_empty(T, B, H)  # the gradient of each step's state
        dh = new.new_zeros(B, H)
        steps = zip(
            of_states.unbind(),
            total.unbind(),
            total[:, :, None].unbind(),
            factors.unbind(),
            inward.unbind(),
            inward.view(T, B, 3 * H).unbind(),
            z.unbind(),
            strict=True,
        )
        for of_state, here, broadcast, factor, gates_gradient, flat, kept in reversed(list(steps)):
            torch.add(dh, of_state, out=here)
            torch.mul(broadcast, factor, out=gates_gradient)
            torch.mul(here, kept, out=dh)
            dh.addmm_(flat, weight)
        rows = inward.view(T * B, 3 * H)
        of_weight = rows.t() @ states[:-1].reshape(T * B, H)
        of_bias = rows.sum(0)
        torch.mul(total, of_new, out=inward[:, :, 2])
        return inward.view(T, B, 3 * H), dh, of_weight, of_bias


def unroll(x: Tensor, h: Tensor, layers: Sequence[Sequence[Tensor]], dropout: float) -> tuple[Tensor, Tensor]:
    """The last layer's hidden states (B, T, H) over ``x`` (B, T, I), and the state (L, B, H) after the last step.

    Args:
        x: the inputs; h: (L, B, H) the state before them.
        layers: the weights of each layer as ``nn.GRU.all_weights`` has them.
        dropout: probability of setting an output between two layers to 0; 0 outside training.
    """
    flow = x.transpose(0, 1).contiguous()
    last = []
    for number, (take_in, weight, bias_in, bias) in enumerate(layers):
        if number and dropout:
            flow = torch.dropout(flow, dropout, True)
        flow = _Layer.apply(torch.nn.functional.linear(flow, take_in, bias_in), h[number], weight, bias)
        last.append(flow[-1])
    return flow.transpose(0, 1), torch.stack(last)
