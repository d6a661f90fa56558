"""The weight of each sensor in the gate: absurd or tiny values in its past neither remove it nor make scores NaN."""

from dataclasses import replace

import numpy as np
import pytest

from model.config import NO_ADAPTATION
from model.metrics import METRICS
from model.sequences import Sequences, Split
from pipeline.evaluation.evaluate import Evaluation, evaluate
from pipeline.settings import Settings
from tests.integration.stream_rig import small_forecaster
from tests.series import HOUR_US, noisy_days

SPLIT = Split(200 * HOUR_US, 300 * HOUR_US)


@pytest.fixture(scope="module")
def days() -> Sequences:
    return noisy_days(sensors=3, hours=420)


def scored(sequences: Sequences, *, robust: bool) -> Evaluation:
    settings = Settings(features=sequences.features, targets=sequences.features[:1], horizon_steps=3)
    forecaster = small_forecaster(settings, hidden_size=4)
    return evaluate(forecaster, sequences, SPLIT, NO_ADAPTATION, robust=robust, scale_until_us=SPLIT.validation_end_us)


def with_value(sequences: Sequences, sensor: int, value: float) -> Sequences:
    """The same data set, with one value of a sensor replaced, before the test part."""
    values = sequences.values.copy()
    lo, hi = sequences.span(sensor, None, SPLIT.train_end_us)
    step = lo + int(np.flatnonzero(~np.isnan(values[lo:hi, 0]))[50])
    values[step, 0] = value
    return replace(sequences, values=values)


def test_a_sensor_with_one_absurd_value_keeps_its_weight_in_the_gate(days: Sequences) -> None:
    before = scored(days, robust=True).model_scores.scale
    spoiled = with_value(days, 1, 1e9)
    np.testing.assert_allclose(scored(spoiled, robust=True).model_scores.scale, before, rtol=0.3)
    # The published definition, which figures in reports keep, takes nearly all weight from the sensor.
    assert scored(spoiled, robust=False).model_scores.scale[1] > 1e5 * before[1]


def test_the_robust_scale_changes_nothing_for_ordinary_sensors(days: Sequences) -> None:
    robust, plain = scored(days, robust=True), scored(days, robust=False)
    np.testing.assert_array_equal(robust.model_scores.scale, plain.model_scores.scale)


@pytest.mark.parametrize("size", [1e-310, 1e-200, 1e-160])
def test_a_sensor_of_denormal_values_has_finite_scores(days: Sequences, size: float) -> None:
    values = days.values.copy()
    values[slice(*days.span(1))] *= size
    done = scored(replace(days, values=values), robust=True)
    for name, scores in done.scores.items():
        for metric in METRICS:
            assert np.isfinite(scores.by_sensor(metric)).all(), (name, metric)
