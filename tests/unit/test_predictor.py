"""A model's forecasts over a data set are the stream's to the bit, the same for any stretches, and causal."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from model import carrying_predictor
from model import predictor as predictor_module
from model.backtest import Predictor, assert_causal, backtest, model_predictor
from model.carrying_predictor import ForecastRequest
from model.config import Adaptation, ModelConfig
from model.forecaster import Forecaster
from model.sequences import Sequences
from model.unit_kernel import FACTOR
from tests.random_models import batched, random_forecaster, step_by_step, stepped
from tests.series import CONFIG, HOUR_US, noisy_days

TEST_START_US = 400 * HOUR_US
ADAPTATIONS = [Adaptation(), Adaptation("light", True), Adaptation("full")]


@pytest.fixture(scope="module")
def forecaster() -> Forecaster:
    return random_forecaster(CONFIG)


def with_resets(sequences: Sequences) -> Sequences:
    reset = sequences.reset.copy()
    reset[[50, 51, 130, 230, 400]] = True
    return replace(sequences, reset=reset)


@pytest.mark.parametrize(("season_steps", "lag_steps"), [(24, 5), (1, 0), (24, 40)])
def test_forecasts_equal_single_steps_of_the_network(season_steps: int, lag_steps: int) -> None:
    torch.manual_seed(1)
    config: ModelConfig = replace(CONFIG, hidden_size=8, season_steps=season_steps, lag_steps=lag_steps)
    model = Forecaster(config)
    sequences = with_resets(noisy_days())
    for sensor in range(3):
        lo, hi = sequences.span(sensor)
        found = model_predictor(model).forecasts(sequences, sensor, lo, hi)
        np.testing.assert_allclose(found, step_by_step(model, sequences, sensor), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bound", [("_ROUNDS", 1), ("_ROUNDS", 7), ("_NUMBERS", 500), ("_ROUNDS", 256)])
@pytest.mark.parametrize("adaptation", ADAPTATIONS, ids=lambda adaptation: adaptation.level)
def test_any_stretches_give_the_same_forecasts(
    forecaster: Forecaster, adaptation: Adaptation, bound: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences = with_resets(noisy_days(hours=150))
    whole = [
        model_predictor(forecaster, adaptation=adaptation).forecasts(sequences, s, *sequences.span(s)) for s in range(3)
    ]
    monkeypatch.setattr(predictor_module, *bound)
    predictor = model_predictor(forecaster, adaptation=adaptation)
    random = np.random.default_rng(0)
    at = [lo for lo, _ in map(sequences.span, range(3))]
    ends = [hi for _, hi in map(sequences.span, range(3))]
    for _ in range(4):
        reach = [min(hi, lo + int(random.integers(0, 60))) for lo, hi in zip(at, ends, strict=True)]
        requests = [
            ForecastRequest(sequences.past(s, reach[s]), at[s] - int(sequences.starts[s]))
            for s in range(3)
            if reach[s] > at[s]
        ]
        for one, found in zip(requests, predictor.forecasts_together(requests), strict=True):
            s = sequences.sensors.index(one.sensor)
            np.testing.assert_array_equal(found, whole[s][one.lo : len(one.steps)])
        at = reach
    found = predictor.forecasts(sequences, 0, 30, 40)  # earlier steps than before: it starts from scratch
    np.testing.assert_array_equal(found, whole[0][30:40])


def test_a_predictor_keeps_the_states_of_the_last_requested_sensors_only(forecaster: Forecaster) -> None:
    """Memory is bounded: of ten thousand sensors the evaluator requests a few hundred at a time."""
    sequences = with_resets(noisy_days(hours=150))
    predictor = model_predictor(forecaster)
    first = predictor.forecasts(sequences, 0, *sequences.span(0))
    predictor.forecasts(sequences, 1, *sequences.span(1))
    assert list(predictor._carried) == [sequences.sensors[1]]
    np.testing.assert_array_equal(predictor.forecasts(sequences, 0, *sequences.span(0)), first)


def test_a_stretch_that_is_asked_for_again_begins_at_a_kept_state(
    forecaster: Forecaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor_module, "_ROUNDS", 16)
    monkeypatch.setattr(carrying_predictor, "_KEPT_SENSORS", 2)
    sequences = with_resets(noisy_days(hours=150))
    predictor = model_predictor(forecaster, adaptation=Adaptation("light", True))
    ends = [sequences.span(sensor)[1] - int(sequences.starts[sensor]) for sensor in range(3)]
    requests = [ForecastRequest(sequences.past(s, int(sequences.starts[s]) + ends[s]), 100) for s in range(3)]
    first = predictor.forecasts_together(requests)
    steps = count_steps(monkeypatch)
    for again, found in zip(predictor.forecasts_together(requests), first, strict=True):
        np.testing.assert_array_equal(again, found)
    assert sum(steps) == ends[0] - 96 + ends[1] - 96 + ends[2]  # the third sensor is one more than are kept


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets the number of steps of each sensor whenever the network steps."""
    steps: list[int] = []
    step_group = predictor_module.ModelPredictor._step_group

    def counted(self: predictor_module.ModelPredictor, group: Any) -> Any:
        steps.extend(length for _, _, length in group)
        return step_group(self, group)

    monkeypatch.setattr(predictor_module.ModelPredictor, "_step_group", counted)
    return steps


def with_changed_units(sequences: Sequences) -> Sequences:
    """The target of the first sensor times 1,000 from the middle on, and its other feature raised."""
    lo, hi = sequences.span(0)
    values = sequences.values.copy()
    values[(lo + hi) // 2 : hi, 0] *= 1_000.0
    values[(lo + hi) // 2 : hi, 1] += 300.0
    return replace(sequences, values=values)


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("adaptation", ADAPTATIONS, ids=lambda adaptation: adaptation.level)
def test_forecasts_over_a_data_set_equal_those_of_the_stream(
    forecaster: Forecaster, adaptation: Adaptation, changed: bool
) -> None:
    sequences = with_changed_units(noisy_days()) if changed else noisy_days()
    streamed, states, read = stepped(forecaster, sequences, adaptation)
    if changed and adaptation.active:
        assert states["units"][0, :, FACTOR].tolist() == [1_000.0, 1.0]
    found = batched(forecaster, sequences, adaptation)[read]
    np.testing.assert_array_equal(found, streamed.quantiles)


@pytest.mark.parametrize("adaptation", ADAPTATIONS, ids=lambda adaptation: adaptation.level)
def test_the_model_is_causal(forecaster: Forecaster, adaptation: Adaptation) -> None:
    def build(sequences: Sequences) -> Predictor:
        return model_predictor(forecaster, adaptation=adaptation)

    assert_causal(build, noisy_days(), CONFIG, [330 * HOUR_US])


def test_a_model_is_scored_beside_the_baselines(forecaster: Forecaster) -> None:
    sequences = noisy_days()
    scores = backtest([model_predictor(forecaster, "mine")], sequences, CONFIG, TEST_START_US, 490 * HOUR_US)
    assert scores["mine"].n.min() > 0
    assert np.isfinite(scores["mine"].mean("pinball"))
