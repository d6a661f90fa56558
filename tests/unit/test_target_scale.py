"""A model by roots forecasts as if the roots were the readings; its forecasts are in the sensors' units."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.bounds import NO_BOUNDS, Bounds
from model.config import Adaptation, ModelConfig
from model.forecaster import Forecaster
from model.sequences import Sequences, Split
from model.target_scale import from_model_scale, scale_in_unit, to_model_scale
from model.training import TrainingOptions, train
from model.unit_kernel import FACTOR
from tests.random_models import batched, stepped
from tests.series import CONFIG, HOUR_US, noisy_days
from tests.unit.test_bounds import ADAPTATIONS

MINIMUM = 2.0
BOUNDED = replace(CONFIG, hidden_size=8, sensors=("s0", "s2"), lag_steps=5, bounds=(Bounds(minimum=MINIMUM),))
ROOTS = replace(BOUNDED, roots=(True,))


def with_weights(config: ModelConfig) -> Forecaster:
    torch.manual_seed(0)
    made = Forecaster(config)
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn_like(weight) * 0.3)
    return made.eval()


def skewed(hours: int = 150) -> tuple[Sequences, Sequences]:
    """Readings whose target is skewed and seldom below its minimum; and the same with its roots as values."""
    roots = noisy_days(hours=hours)
    values = roots.values.copy()
    root = values[:, 0] + 3.0
    values[:, 0] = root
    roots = replace(roots, values=values.copy())
    values[:, 0] = root * np.abs(root) + MINIMUM
    raw = replace(roots, values=values)
    return raw, replace(raw, values=to_model_scale(ROOTS, values))


@given(values=st.lists(st.floats(-1e15, 1e15), min_size=1, max_size=20))
def test_the_scale_rises_with_the_values_and_is_inverted(values: list[float]) -> None:
    given_values = np.sort(np.array(values))
    scaled = to_model_scale(ROOTS, np.column_stack([given_values, given_values]))
    assert (np.diff(scaled[:, 0]) >= 0.0).all()
    np.testing.assert_array_equal(scaled[:, 1], given_values)  # not a target
    back = from_model_scale(ROOTS, scaled[:, :1])[:, 0]
    np.testing.assert_allclose(back, given_values, rtol=1e-14, atol=1e-14 * MINIMUM)


def test_missing_values_stay_missing() -> None:
    assert np.isnan(to_model_scale(ROOTS, np.full((1, 2), np.nan))).all()
    assert np.isnan(from_model_scale(ROOTS, np.full((1, 1, 3, 2), np.nan))).all()


def test_another_scale_has_no_copy() -> None:
    values = np.zeros((3, 2))
    assert to_model_scale(BOUNDED, values) is values
    assert from_model_scale(BOUNDED, values) is values
    assert scale_in_unit(BOUNDED, values, values) is values


@pytest.mark.parametrize("adaptation", ADAPTATIONS, ids=lambda each: f"{each.level} {each.calibrated}")
def test_a_model_by_roots_forecasts_as_if_the_roots_were_the_readings(adaptation: Adaptation) -> None:
    raw, of_roots = skewed()
    made, states, _ = stepped(with_weights(ROOTS), raw, adaptation)
    free = replace(ROOTS, bounds=(), roots=())
    plain, plain_states, _ = stepped(with_weights(free), of_roots, adaptation)
    expected = np.maximum(plain.quantiles * np.abs(plain.quantiles) + MINIMUM, MINIMUM)
    np.testing.assert_array_equal(made.quantiles, expected)
    for name in ("hidden", "levels", "lags"):
        np.testing.assert_array_equal(states[name], plain_states[name])
    assert (made.scale > 0.0)[plain.scale > 0.0].all()


@pytest.mark.parametrize("adaptation", ADAPTATIONS[::2], ids=lambda each: each.level)
def test_the_evaluator_forecasts_by_roots_like_the_stream(adaptation: Adaptation) -> None:
    raw, _ = skewed()
    made, _, read = stepped(with_weights(ROOTS), raw, adaptation)
    found = batched(with_weights(ROOTS), raw, adaptation)[read]
    apart = np.abs(made.quantiles - found)
    assert (apart <= 1e-5 * np.maximum(made.scale[:, :, None, None], np.abs(found))).all()
    assert found.min() >= MINIMUM
    assert (np.diff(found, axis=2) >= 0.0).all()


def test_after_a_change_of_unit_forecasts_by_roots_are_in_the_new_unit() -> None:
    adaptation = Adaptation("light", True)
    config = replace(ROOTS, bounds=(Bounds(minimum=0.0),))
    raw, _ = skewed(500)
    lo, hi = raw.span(0)
    values = raw.values.copy()
    values[(lo + hi) // 2 : hi, 0] *= 1_000.0
    changed, states, read = stepped(with_weights(config), replace(raw, values=values), adaptation)
    assert states["units"][0, 0, FACTOR] == 1_000.0
    same, _, _ = stepped(with_weights(config), raw, adaptation)
    late = (read < hi) & (np.arange(len(read)) > len(read) - 100)
    factor = np.median(changed.quantiles[late] / same.quantiles[late])
    assert 500.0 < factor < 2_000.0
    assert changed.quantiles.min() >= 0.0


def test_training_by_roots_is_training_on_the_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    # The rule for changes of unit sees the readings themselves, and may withhold other values of the roots.
    monkeypatch.setattr("model.inputs.in_own_units", lambda starts, reset, values: values)
    raw, of_roots = skewed(400)
    split = Split(250 * HOUR_US, 320 * HOUR_US)
    options = TrainingOptions(hidden_size=4, epochs=1, updates_per_epoch=4, device="cpu", threads=1)
    base = replace(CONFIG, bounds=(Bounds(minimum=MINIMUM),), roots=(True,))
    mine = train(base, options, raw, split).forecaster
    theirs = train(replace(base, bounds=(), roots=()), options, of_roots, split).forecaster
    for name, weight in theirs.state_dict().items():
        assert torch.equal(mine.state_dict()[name], weight), name


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"bounds": ()}, "level needs a minimum"),
        ({"bounds": (Bounds(maximum=3.0),)}, "level needs a minimum"),
        ({"roots": (True, True)}, "roots must be those of all 1 targets, not of 2"),
        ({"roots": (1,)}, "roots must be true or false for each target, not 1"),
    ],
)
def test_impossible_scales_are_refused(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        replace(ROOTS, **changes)  # type: ignore[arg-type]


def test_the_scale_is_in_the_configuration() -> None:
    import json

    assert ModelConfig.from_dict(json.loads(ROOTS.to_json())) == ROOTS
    two = replace(ROOTS, targets=("level", "other"), bounds=(NO_BOUNDS, Bounds(count=True)), roots=(False, True))
    assert ModelConfig.from_dict(json.loads(two.to_json())) == two
