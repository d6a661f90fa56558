"""The value of carrying a state: losses of restarted states against those of a carried state."""

import numpy as np
import pytest

from model.autoregression import Autoregression
from model.backtest import backtest, model_predictor
from model.config import Adaptation
from model.sequences import Split
from model.state_age import loss_by_age, loss_of_restarts
from model.training import TrainingOptions, train
from tests.series import CONFIG, HOUR_US, noisy_days

SCALE = np.ones((3, 1))


def test_a_state_restarted_at_the_first_reading_equals_the_carried_one() -> None:
    sequences = noisy_days()
    found = loss_by_age(
        lambda: Autoregression(CONFIG), [Autoregression(CONFIG)], sequences, CONFIG, [0, 250 * HOUR_US], SCALE
    )
    alone = loss_by_age(lambda: Autoregression(CONFIG), [Autoregression(CONFIG)], sequences, CONFIG, [0], SCALE)
    np.testing.assert_allclose(alone.restarted, alone.carried["adaptive AR(24)"])
    young = found.edges[:-1] >= 32
    assert (found.restarted[young] > found.carried["adaptive AR(24)"][young]).mean() > 0.7


def test_every_label_counts_once_by_the_steps_since_the_restart() -> None:
    sequences = noisy_days(sensors=1)
    found = loss_by_age(lambda: Autoregression(CONFIG), [], sequences, CONFIG, [0], SCALE)
    lo, hi = sequences.span(0)
    labels = sequences.labels(lo, hi, np.arange(1, 7), [0])
    known = (~np.isnan(labels[sequences.observed[lo:hi]])).sum()
    assert found.count.sum() == known
    assert found.edges[0] == 1
    assert found.edges[-1] > hi - lo


def test_a_restart_after_the_last_reading_is_skipped() -> None:
    sequences = noisy_days(sensors=1)
    restarts_us = [0, 400 * HOUR_US]
    ended = sequences.slice_time(0, 400 * HOUR_US)
    found = loss_by_age(lambda: Autoregression(CONFIG), [Autoregression(CONFIG)], ended, CONFIG, restarts_us, SCALE)
    assert found.count.sum() > 0


def test_a_trained_model_is_restarted_within_the_test_part() -> None:
    sequences = noisy_days()
    options = TrainingOptions(hidden_size=4, epochs=1, updates_per_epoch=4, device="cpu")
    forecaster = train(CONFIG, options, sequences, Split(300 * HOUR_US, 350 * HOUR_US)).forecaster
    found = loss_of_restarts(forecaster, Adaptation("light", True), sequences, 350 * HOUR_US, SCALE)
    assert np.isfinite(found.restarted).all()
    assert found.edges[-1] - 1 == pytest.approx(
        37, abs=9
    )  # a quarter of the 150 hours, rounded to an edge of the age classes
    assert set(found.carried) == {"model"}
    used = model_predictor(forecaster, "used", Adaptation("light", True))
    backtest([used], sequences, CONFIG, 350 * HOUR_US)
    again = loss_of_restarts(forecaster, Adaptation("light", True), sequences, 350 * HOUR_US, SCALE, carried=used)
    np.testing.assert_array_equal(again.carried["used"], found.carried["model"])
    np.testing.assert_array_equal(again.restarted, found.restarted)
