"""The gate's decision and its reason."""

import math

import pytest

from pipeline.evaluation.gate import decide
from pipeline.settings.sections import GateSettings

PINBALL = GateSettings()


def baselines(best: float) -> dict[str, float]:
    return {"seasonal naive": best, "persistence": 2.0 * best, "adaptive AR(24)": math.nan}


def test_the_first_model_must_beat_every_baseline() -> None:
    assert decide(0.4, None, baselines(0.5), PINBALL).promote
    assert not decide(0.5, None, baselines(0.5), PINBALL).promote
    assert "0.5 of the seasonal naive forecast" in decide(0.6, None, baselines(0.5), PINBALL).reason
    nearer = decide(0.4, None, {"seasonal naive": 0.5, "persistence": 0.3}, PINBALL)
    assert not nearer.promote
    assert "0.3 of the persistence forecast" in nearer.reason


def test_a_later_model_must_beat_the_champion() -> None:
    decision = decide(0.4, 0.5, baselines(0.9), PINBALL)
    assert decision.promote
    assert decision.reason == (
        "promoted: mean pinball on the held-out tail is 0.4, against 0.5 of the champion, 20.00% lower; "
        "any lower loss suffices"
    )
    assert not decide(0.5, 0.5, baselines(0.9), PINBALL).promote
    assert not decide(0.6, 0.5, baselines(0.9), PINBALL).promote


def test_the_champion_is_the_rival_even_if_a_baseline_is_better_than_both() -> None:
    assert decide(0.7, 0.8, baselines(0.5), PINBALL).promote


def test_the_margin_is_a_fraction_of_the_rival() -> None:
    gate = GateSettings(metric="mae", margin=0.1)
    assert decide(0.89, 1.0, baselines(2.0), gate).promote
    declined = decide(0.91, 1.0, baselines(2.0), gate)
    assert not declined.promote
    assert declined.reason.startswith("declined: mean mae")
    assert "9.00% lower; it must be at least 10.00% lower" in declined.reason


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_non_finite_loss_is_never_promoted(loss: float) -> None:
    assert not decide(loss, 0.5, baselines(0.5), PINBALL).promote
    assert not decide(loss, None, baselines(0.5), PINBALL).promote
    assert not decide(0.1, loss, baselines(0.5), PINBALL).promote


def test_a_better_model_is_declined_if_the_gate_is_not_automatic() -> None:
    decision = decide(0.4, 0.5, baselines(0.9), GateSettings(automatic=False))
    assert not decision.promote
    assert decision.reason == (
        "declined: better, but gate.automatic = false leaves it to `streamgru promote`: "
        "mean pinball on the held-out tail is 0.4, against 0.5 of the champion, 20.00% lower"
    )
    assert decide(0.6, 0.5, baselines(0.9), GateSettings(automatic=False)).reason.startswith("declined: ")
