"""Plots have labels and every series, and leave matplotlib's global state unchanged."""

import io
import warnings
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from model.backtest import Persistence, Scores, SeasonalNaive, backtest
from model.state_age import LossByAge
from model.training import EpochReport
from pipeline.evaluation.plots import draw_forecasts, draw_loss, draw_scores, draw_state_age
from tests.series import CONFIG, HOUR_US, noisy_days

TRAIN_END_US = 300 * HOUR_US
TEST_START_US = 400 * HOUR_US


def written(figure: Figure) -> str:
    """The text in the drawn figure."""
    picture = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(picture, format="svg")
    return picture.getvalue()


@pytest.fixture(scope="module")
def scores() -> dict[str, Scores]:
    sequences = noisy_days(sensors=4)
    predictors = [SeasonalNaive(CONFIG).fit(sequences, TRAIN_END_US), Persistence(CONFIG).fit(sequences, TRAIN_END_US)]
    return backtest(predictors, sequences, CONFIG, TEST_START_US)


def test_the_loss_curve_names_both_losses_and_the_best_epoch() -> None:
    epochs = [EpochReport(n, 1.0 / n, abs(n - 3) + 0.5, n * 1.0, 1e-3) for n in range(1, 6)]
    text = written(draw_loss(epochs))
    for words in ("training", "validation", "best: epoch 3", "epoch", "loss (scaled by sensor)"):
        assert words in text


def test_the_scores_show_every_predictor_and_carry_units(scores: dict[str, Scores]) -> None:
    text = written(draw_scores(scores))
    for words in ("seasonal naive", "persistence", "steps ahead", "unit)", "values within it (%)", "quantile level"):
        assert words in text


def test_forecasts_show_the_worst_middle_and_best_sensor(scores: dict[str, Scores]) -> None:
    sequences = noisy_days(sensors=4)
    predictor = SeasonalNaive(CONFIG).fit(sequences, TRAIN_END_US)
    figure = draw_forecasts(predictor, sequences, CONFIG, scores["seasonal naive"], TEST_START_US)
    text = written(figure)
    for words in ("(worst)", "(median)", "(best)", "0.1 to 0.9", "median forecast", "issued", "level"):
        assert words in text
    assert len(figure.axes) == 3


def test_medians_of_other_predictors_are_drawn_beside_the_fan(scores: dict[str, Scores]) -> None:
    sequences = noisy_days(sensors=4)
    predictor, other = (kind(CONFIG).fit(sequences, TRAIN_END_US) for kind in (SeasonalNaive, Persistence))
    figure = draw_forecasts(predictor, sequences, CONFIG, scores["seasonal naive"], TEST_START_US, [other])
    assert "persistence" in written(figure)


def test_the_state_age_shows_both_states_and_when_they_are_warm() -> None:
    losses = LossByAge(np.array([1, 2, 4, 8]), np.ones(3, np.int64), np.array([3.0, 2.0, 1.0]), {"mine": np.ones(3)})
    text = written(draw_state_age(losses, warmup_steps=5))
    for words in ("state reset", "mine, never reset", "counts as warm", "steps since the reset"):
        assert words in text


@pytest.mark.parametrize("cadence_us", [1_000_000, 60_000_000, HOUR_US, 24 * HOUR_US])
@pytest.mark.parametrize("horizon", [1, 6, 60])
def test_times_of_any_length_are_labelled_without_a_warning(cadence_us: int, horizon: int) -> None:
    config = replace(CONFIG, cadence_us=cadence_us, horizon_steps=horizon)
    days = noisy_days(sensors=1)
    sequences = replace(days, timestamp_us=days.timestamp_us // HOUR_US * cadence_us, cadence_us=cadence_us)
    start_us = 300 * cadence_us
    predictor = Persistence(config).fit(sequences, start_us)
    alone = backtest([predictor], sequences, config, start_us)["persistence"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        written(draw_forecasts(predictor, sequences, config, alone, start_us))


def test_one_sensor_is_shown_without_a_rank() -> None:
    sequences = noisy_days(sensors=1)
    predictor = Persistence(CONFIG).fit(sequences, TRAIN_END_US)
    alone = backtest([predictor], sequences, CONFIG, TEST_START_US)["persistence"]
    figure = draw_forecasts(predictor, sequences, CONFIG, alone, TEST_START_US)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["s0"]


def test_no_figure_is_left_in_the_global_state(scores: dict[str, Scores]) -> None:
    draw_scores(scores)
    from matplotlib._pylab_helpers import Gcf

    assert not Gcf.get_all_fig_managers()
