"""Roots are chosen for a skewed target with a minimum, on the validation part alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.bounds import NO_BOUNDS, Bounds
from model.config import ModelConfig
from model.forecaster import Forecaster
from model.scale_choice import Choice, choose_scale, scaled_config
from model.sequences import Sequences, Split
from model.target_scale import same_shape
from model.training import TrainingOptions
from tests.series import CONFIG, HOUR_US, joined, noisy_days

HOURS = 900
SPLIT = Split(500 * HOUR_US, 700 * HOUR_US)
POSITIVE = replace(CONFIG, bounds=(Bounds(minimum=0.0),))
OPTIONS = TrainingOptions()


def skewed() -> Sequences:
    """A target whose root is a noisy day, so that it varies more at high values."""
    sequences = noisy_days(hours=HOURS)
    values = sequences.values.copy()
    values[:, 0] = (3.0 * np.exp(0.9 * values[:, 0])) ** 2
    return replace(sequences, values=values)


def test_roots_are_chosen_for_a_skewed_target() -> None:
    chosen, (choice,) = choose_scale(POSITIVE, skewed(), SPLIT)
    assert chosen == replace(POSITIVE, roots=(True,))
    assert choice.by_roots < 0.99 * choice.by_values
    assert str(choice).startswith("level is modelled by square roots: on the validation part, the pinball loss of an ")


def test_values_are_kept_for_a_target_that_is_far_from_its_minimum() -> None:
    sequences = noisy_days(hours=HOURS)
    raised = replace(sequences, values=sequences.values + 100.0)
    chosen, (choice,) = choose_scale(POSITIVE, raised, SPLIT)
    assert chosen == POSITIVE
    assert str(choice).startswith("level is modelled by its values: ")


@pytest.mark.parametrize("bounds", [(), (Bounds(maximum=3.0),)])
def test_a_target_without_a_minimum_is_not_tried(bounds: tuple[Bounds, ...]) -> None:
    config = replace(CONFIG, bounds=bounds)
    assert choose_scale(config, skewed(), SPLIT) == (config, [])


def test_each_target_has_its_own_scale() -> None:
    config = replace(POSITIVE, targets=("other", "level"), bounds=(NO_BOUNDS, Bounds(count=True)))
    assert choose_scale(config, skewed(), SPLIT)[0].roots == (False, True)


def test_later_readings_do_not_matter() -> None:
    sequences = skewed()
    values = sequences.values.copy()
    values[sequences.timestamp_us >= SPLIT.validation_end_us] = -1e6
    assert choose_scale(POSITIVE, replace(sequences, values=values), SPLIT) == choose_scale(POSITIVE, sequences, SPLIT)


def test_a_change_of_unit_does_not_matter() -> None:
    """The factor is exact, so that the converted values keep their bits."""
    sequences = skewed()
    values = sequences.values.copy()
    lo, hi = sequences.span(0)
    values[(lo + hi) // 3 : hi, 0] *= 1_024.0
    choice = choose_scale(POSITIVE, replace(sequences, values=values), SPLIT)[1][0]
    assert choice.roots


def test_without_a_forecast_to_score_values_are_kept() -> None:
    short = joined([np.arange(20) * HOUR_US], [np.ones((20, 2))], CONFIG.features, HOUR_US, max_gap_steps=24)
    assert choose_scale(POSITIVE, short, Split(18 * HOUR_US, 20 * HOUR_US)) == (POSITIVE, [])


def test_a_small_gain_is_not_enough() -> None:
    assert not Choice("level", 1.0, 0.995).roots
    assert Choice("level", 1.0, 0.98).roots


def test_a_warm_start_keeps_the_scale() -> None:
    torch.manual_seed(0)
    config = ModelConfig(**{**vars(POSITIVE), "roots": (True,), "hidden_size": 4})
    initial = Forecaster(config)
    far = replace(skewed(), values=skewed().values + 1e6)
    assert scaled_config(POSITIVE, OPTIONS, far, SPLIT, initial).roots == (True,)
    assert scaled_config(POSITIVE, OPTIONS, far, SPLIT).roots == ()


def test_the_plain_preset_is_trained_on_values() -> None:
    plain = TrainingOptions(preset="plain")
    assert scaled_config(POSITIVE, plain, skewed(), SPLIT) == POSITIVE


def test_weights_depend_on_the_minimum_of_roots_alone() -> None:
    trained = replace(POSITIVE, sensors=("s0",), roots=(True,))
    assert same_shape(trained, POSITIVE)
    assert same_shape(trained, replace(POSITIVE, bounds=(Bounds(0.0, 9.0),)))
    assert not same_shape(trained, replace(POSITIVE, bounds=(Bounds(minimum=1.0),)))
    assert not same_shape(trained, CONFIG)
    assert not same_shape(trained, replace(POSITIVE, hidden_size=32))
    assert same_shape(replace(POSITIVE, sensors=("s0",)), CONFIG)
