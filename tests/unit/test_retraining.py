"""Periodic retraining: each model forecasts its own period, and is trained only on earlier readings."""

from dataclasses import replace

import numpy as np
import pytest

from model.backtest import Leak, assert_causal, backtest, model_predictor
from model.config import Adaptation
from model.forecaster import Forecaster
from model.retraining import RetrainedPredictor, Retraining, retrain_every
from model.sequences import Sequences, Split
from model.training import TrainingOptions, train
from tests.series import CONFIG, HOUR_US, noisy_days

SPLIT = Split(250 * HOUR_US, 300 * HOUR_US)
EVERY_US = 80 * HOUR_US
OPTIONS = TrainingOptions(hidden_size=4, epochs=1, updates_per_epoch=8, device="cpu", threads=1)
ADAPTATION = Adaptation("light", True)


def first_model(sequences: Sequences) -> Forecaster:
    return train(CONFIG, OPTIONS, sequences.slice_time(None, SPLIT.validation_end_us), SPLIT).forecaster


def predictor(sequences: Sequences, early_us: int = 0) -> RetrainedPredictor:
    """Retrained models; with ``early_us`` > 0 each is used that much before its time, which is a leak."""
    models = list(retrain_every(EVERY_US, first_model(sequences), OPTIONS, sequences, SPLIT))
    models[1:] = [replace(model, from_us=model.from_us - early_us) for model in models[1:]]
    return RetrainedPredictor(models, "retrained", ADAPTATION)


def test_a_model_is_trained_after_each_period_of_the_test_part() -> None:
    sequences = noisy_days()
    told: list[int] = []
    models = list(
        retrain_every(EVERY_US, first_model(sequences), OPTIONS, sequences, SPLIT, lambda at, _: told.append(at))
    )
    assert [model.from_us // HOUR_US for model in models][1:] == [380, 460]
    assert told == [380 * HOUR_US, 460 * HOUR_US]


def test_each_model_forecasts_its_own_period() -> None:
    sequences = noisy_days()
    models = list(retrain_every(EVERY_US, first_model(sequences), OPTIONS, sequences, SPLIT))
    lo, hi = sequences.span(1)
    found = RetrainedPredictor(models, "retrained", ADAPTATION).forecasts(sequences, 1, lo, hi)
    for model, until_us in zip(models, [380 * HOUR_US, 460 * HOUR_US, None], strict=True):
        a, b = sequences.span(1, model.from_us, until_us)
        alone = model_predictor(model.forecaster, "alone", ADAPTATION).forecasts(sequences, 1, lo, hi)
        np.testing.assert_array_equal(found[a - lo : b - lo], alone[a - lo : b - lo])


def assert_no_leak(early_us: int) -> None:
    """Cut at hour 320: the second model's training part ends at hour 330, its validation part at 380."""
    sequences = noisy_days(sensors=1, hours=420)
    assert_causal(lambda s: predictor(s, early_us), sequences, CONFIG, [320 * HOUR_US])


def test_a_retrained_model_does_not_depend_on_later_readings() -> None:
    assert_no_leak(0)


def test_a_model_used_before_the_end_of_its_training_readings_is_found() -> None:
    with pytest.raises(Leak, match="retrained: the forecast for sensor"):
        assert_no_leak(early_us=70 * HOUR_US)


def test_retrained_copies_of_one_model_have_the_scores_of_that_model() -> None:
    sequences = noisy_days()
    same = [Retraining(0, first_model(sequences)), Retraining(400 * HOUR_US, first_model(sequences))]
    predictors = [
        RetrainedPredictor(same, "retrained", ADAPTATION),
        model_predictor(same[0].forecaster, "one", ADAPTATION),
    ]
    scores = backtest(predictors, sequences, CONFIG, 350 * HOUR_US)
    assert scores["retrained"].mean("pinball") == pytest.approx(scores["one"].mean("pinball"))
