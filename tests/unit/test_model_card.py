"""The model card: facts, intervals, and the length that MLflow keeps."""

import random
import re
from dataclasses import replace

import numpy as np
import pytest

from flows.model_card import LONGEST_DESCRIPTION, CardFacts, _duration, model_card
from model.metrics import Scores
from model.score_intervals import interval, resample
from pipeline.registry.versions import CHALLENGER
from tests.hostile_reports import Values, card_facts


def scores(errors: np.ndarray, name: str = "s") -> Scores:
    """Scores of one forecast per sensor and step, from errors (S, h) of the median."""
    sensors = tuple(f"{name}{number}" for number in range(len(errors)))
    found = Scores.empty(sensors, ("a",), (0.1, 0.5, 0.9), np.ones((len(errors), 1)), errors.shape[1])
    for sensor, row in enumerate(errors):
        found.add(sensor, np.zeros((1, 1, 3, len(row))), row[None, None])
    return found


@pytest.fixture
def facts() -> CardFacts:
    return replace(card_facts(Values(random.Random(1))), run_id="0a1b", run_url="http://127.0.0.1/run")


def test_an_interval_has_the_width_of_the_standard_error_over_sensors() -> None:
    losses = np.random.default_rng(0).exponential(size=(400, 1))
    found = resample({"model": scores(losses)}, "mae")
    assert found is not None
    low, high = interval(found["model"].overall)
    assert low < losses.mean() < high
    assert (high - low) / 2 == pytest.approx(1.96 * losses.std() / 20, rel=0.1)


def test_predictors_share_their_draws_and_a_sensor_without_labels_does_not_count() -> None:
    losses = np.array([[1.0, np.nan], [2.0, 4.0], [np.nan, np.nan], [6.0, 6.0]])
    found = resample({"model": scores(losses), "twice": scores(2 * losses)}, "mae")
    assert found is not None
    np.testing.assert_allclose(found["twice"].overall, 2 * found["model"].overall)
    assert found["model"].overall.max() == pytest.approx(6.0)
    again = resample({"model": scores(losses)}, "mae")
    assert again is not None
    np.testing.assert_array_equal(again["model"].overall, found["model"].overall)


def test_one_sensor_has_no_interval() -> None:
    assert resample({"model": scores(np.ones((1, 3)))}, "mae") is None


def test_the_card_states_data_scores_gate_and_limits(facts: CardFacts) -> None:
    card = model_card(facts).complete
    for fact in ("### Scores", "### Worst sensors", "### Training data", "### Not for", "partition 9: 1099511627776"):
        assert fact in card
    assert card.index("partition 9:") < card.index("partition 10:")
    assert f"version {facts.champion}, the champion" in card
    assert "](get-artifact?run_uuid=0a1b&path=plots/scores.png)" in card


def test_a_baseline_that_is_better_at_some_steps_is_a_limit(facts: CardFacts) -> None:
    ours = np.tile([1.0, 1.0, 3.0], (3, 1))
    theirs = np.tile([2.0, 2.0, 2.0], (3, 1))
    done = replace(facts.done, scores={CHALLENGER: scores(ours), "persistence": scores(theirs)})
    assert "Step 3 ahead: persistence has the lower pinball loss" in model_card(replace(facts, done=done)).complete


def test_a_baseline_without_errors_has_no_share_in_percent(facts: CardFacts) -> None:
    perfect_at_one = np.array([[0.0] * 3, [2.0] * 3])
    rivals = {"perfect": scores(np.zeros((2, 3))), "half perfect": scores(perfect_at_one)}
    done = replace(facts.done, scores={CHALLENGER: scores(np.ones((2, 3))), **rivals})
    with np.errstate(all="raise"):
        card = model_card(replace(facts, done=done)).complete
    assert re.search(r"\| perfect&emsp; \| .* \| &emsp; \|", card)
    assert re.search(r"\| half perfect&emsp; \| .* \| 0\.0&emsp; \|", card)


def test_a_description_that_is_too_long_has_shorter_lists_and_names_the_complete_card(facts: CardFacts) -> None:
    sensors = tuple(f"sensor-{number:05}" for number in range(3_000))
    long = replace(facts, trained=replace(facts.trained, sensors=sensors))
    assert sensors[-1] in model_card(long).complete
    shown = model_card(long).description
    assert len(shown) <= LONGEST_DESCRIPTION
    assert " and 2,9" in shown
    assert "The complete card is the file model\\_card.md of [the run](http://127.0.0.1/run)." in shown


def test_a_description_that_stays_too_long_loses_its_end_and_says_so(
    facts: CardFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.model_card.LONGEST_DESCRIPTION", 2_500)
    shown = model_card(facts).description
    assert len(shown) <= 2_500
    assert "This card is cut, because MLflow limits descriptions." in shown
    assert "### Plots" not in shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3_600, "1 h"), (86_400, "24 h"), (604_800, "7 days"), (300, "5 min"), (90, "90 s"), (0.5, "0.5 s")],
)
def test_a_duration_has_the_largest_unit_that_gives_a_whole_number(seconds: float, text: str) -> None:
    assert _duration(seconds) == text
