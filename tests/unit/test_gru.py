"""The GRU core: its equations, and that steps equal a pass."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.gru import GRUModel

FLOAT32_TOLERANCE = 1e-5


def written_out(model: GRUModel, x: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One step by the equations in the docstring, layer by layer."""
    nexts = []
    for layer in range(model.rnn.num_layers):
        W_r, W_z, W_n = getattr(model.rnn, f"weight_ih_l{layer}").chunk(3)
        U_r, U_z, U_n = getattr(model.rnn, f"weight_hh_l{layer}").chunk(3)
        b_r, b_z, b_n = getattr(model.rnn, f"bias_ih_l{layer}").chunk(3)
        c_r, c_z, c_n = getattr(model.rnn, f"bias_hh_l{layer}").chunk(3)
        before = h[layer]
        z = torch.sigmoid(x @ W_z.T + b_z + before @ U_z.T + c_z)
        r = torch.sigmoid(x @ W_r.T + b_r + before @ U_r.T + c_r)
        candidate = torch.tanh(x @ W_n.T + b_n + r * (before @ U_n.T + c_n))
        x = (1 - z) * candidate + z * before
        nexts.append(x)
    return x @ model.head.weight.T + model.head.bias, torch.stack(nexts)


def test_a_window_of_many_sensors_gives_one_output_each() -> None:
    assert GRUModel(3, 64, 1)(torch.randn(5, 32, 3)).shape == torch.Size([5, 1])


def test_a_step_follows_the_equations_written_out() -> None:
    torch.manual_seed(0)
    model = GRUModel(4, 16, 3, num_layers=3)
    h = torch.randn(3, 7, 16)
    with torch.no_grad():
        for _ in range(5):
            x = torch.randn(7, 4)
            expected_y, expected_h = written_out(model, x, h)
            y, h = model.step(x, h)
            torch.testing.assert_close(y, expected_y, atol=1e-6, rtol=0)
            torch.testing.assert_close(h, expected_h, atol=1e-6, rtol=0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), sensors=st.integers(1, 9), steps=st.integers(1, 40), cut=st.integers(0, 9))
def test_steps_from_zeros_equal_a_pass_for_any_micro_batching(seed: int, sensors: int, steps: int, cut: int) -> None:
    torch.manual_seed(seed)
    model = GRUModel(3, 12, 2)
    x = torch.randn(sensors, steps, 3)
    with torch.no_grad():
        passed = model(x)
        outputs = []
        for rows in (x[:cut], x[cut:]):
            h = model.zeros(len(rows))
            for t in range(steps):
                y, h = model.step(rows[:, t], h)
            outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs), passed, atol=FLOAT32_TOLERANCE, rtol=0)


def test_a_call_leaves_nothing_behind() -> None:
    torch.manual_seed(0)
    model = GRUModel(3, 8, 1).eval()
    x = torch.randn(2, 6, 3)
    with torch.no_grad():
        first = model(x)
        model.step(torch.randn(4, 3), torch.randn(2, 4, 8))
        assert torch.equal(model(x), first)
