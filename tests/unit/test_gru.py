"""The GRU core follows its equations, steps equal a pass, and weights fit the class of PyTorch tutorials."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from model.gru import GRUModel

FLOAT32_TOLERANCE = 1e-5


def step_by_equations(model: GRUModel, x: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One step by the equations in the docstring of ``GRUModel``, layer by layer."""
    nexts = []
    for layer in range(model.gru.num_layers):
        W_r, W_z, W_n = getattr(model.gru, f"weight_ih_l{layer}").chunk(3)
        U_r, U_z, U_n = getattr(model.gru, f"weight_hh_l{layer}").chunk(3)
        b_r, b_z, b_n = getattr(model.gru, f"bias_ih_l{layer}").chunk(3)
        c_r, c_z, c_n = getattr(model.gru, f"bias_hh_l{layer}").chunk(3)
        before = h[layer]
        z = torch.sigmoid(x @ W_z.T + b_z + before @ U_z.T + c_z)
        r = torch.sigmoid(x @ W_r.T + b_r + before @ U_r.T + c_r)
        candidate = torch.tanh(x @ W_n.T + b_n + r * (before @ U_n.T + c_n))
        x = (1 - z) * candidate + z * before
        nexts.append(x)
    return x @ model.fc.weight.T + model.fc.bias, torch.stack(nexts)


class TutorialGRU(nn.Module):
    """The GRU model of PyTorch tutorials."""

    def __init__(self, input_size: int, hidden_size: int, output_size: int, num_layers: int = 2) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.gru = nn.GRU(input_size, hidden_size, num_layers, batch_first=True)
        self.fc = nn.Linear(hidden_size, output_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h0 = torch.zeros(self.num_layers, x.size(0), self.hidden_size)
        out, _ = self.gru(x, h0)
        predicted: torch.Tensor = self.fc(out[:, -1, :])
        return predicted


@pytest.mark.parametrize(("source", "target"), [(TutorialGRU, GRUModel), (GRUModel, TutorialGRU)])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_weights_of_a_tutorials_class_load_both_ways_and_give_equal_outputs(
    source: type[TutorialGRU] | type[GRUModel], target: type[TutorialGRU] | type[GRUModel], layers: int
) -> None:
    torch.manual_seed(0)
    original, loaded = source(5, 16, 3, num_layers=layers), target(5, 16, 3, num_layers=layers)
    loaded.load_state_dict(original.state_dict(), strict=True)
    x = torch.randn(7, 20, 5)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), original(x), atol=1e-6, rtol=0)


def test_the_core_has_the_attributes_and_defaults_of_a_tutorials_class() -> None:
    model = GRUModel(input_size=5, hidden_size=16, output_size=3)
    assert (model.num_layers, model.hidden_size) == (2, 16)
    assert isinstance(model.gru, nn.GRU)
    assert model.gru.batch_first
    assert isinstance(model.fc, nn.Linear)
    assert (model.fc.in_features, model.fc.out_features) == (16, 3)


def test_a_window_of_many_sensors_gives_one_output_each() -> None:
    assert GRUModel(3, 64, 1)(torch.randn(5, 32, 3)).shape == torch.Size([5, 1])


def test_a_step_follows_the_equations() -> None:
    torch.manual_seed(0)
    model = GRUModel(4, 16, 3, num_layers=3)
    h = torch.randn(3, 7, 16)
    with torch.no_grad():
        for _ in range(5):
            x = torch.randn(7, 4)
            expected_y, expected_h = step_by_equations(model, x, h)
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


def test_a_call_changes_no_state_of_the_model() -> None:
    torch.manual_seed(0)
    model = GRUModel(3, 8, 1).eval()
    x = torch.randn(2, 6, 3)
    with torch.no_grad():
        first = model(x)
        model.step(torch.randn(4, 3), torch.randn(2, 4, 8))
        assert torch.equal(model(x), first)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_written_out_gradient_equals_that_of_autograd(layers: int) -> None:
    torch.manual_seed(0)
    model = GRUModel(5, 8, 3, num_layers=layers).double()
    x = torch.randn(4, 9, 5, dtype=torch.float64, requires_grad=True)
    h = torch.randn(layers, 4, 8, dtype=torch.float64, requires_grad=True)
    weights = [x, h, *model.gru.parameters()]
    of_states, of_last = torch.randn(4, 9, 8, dtype=torch.float64), torch.randn(layers, 4, 8, dtype=torch.float64)

    def gradients(found: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad((found[0] * of_states).sum() + (found[1] * of_last).sum(), weights)

    found, expected = model.unroll(x, h), model.gru(x, h)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found), gradients(expected))


def test_dropout_between_layers_acts_in_training_alone() -> None:
    torch.manual_seed(0)
    model = GRUModel(5, 8, 3, num_layers=2, dropout=0.5)
    x, h = torch.randn(4, 9, 5), model.zeros(4)
    assert not torch.equal(model.unroll(x, h)[0], model.unroll(x, h)[0])
    model.eval()
    torch.testing.assert_close(model.unroll(x, h), model.gru(x, h), atol=1e-6, rtol=0)
