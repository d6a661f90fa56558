"""The comparison of a recorded state with a recomputed one."""

import pytest

from model.config import Adaptation, ModelConfig
from model.state import States, blank_states
from pipeline.audit.recompute import TOLERANCE
from pipeline.audit.state_audit import state_differences

CONFIG = ModelConfig(features=("value",), targets=("value",), cadence_us=1, horizon_steps=2, hidden_size=3)


def states() -> States:
    return blank_states(CONFIG, 2, Adaptation("light", calibrated=True))


@pytest.mark.parametrize("field", ["losses", "levels", "pending_quantiles"])
def test_adapted_numbers_are_compared_within_the_tolerance_and_named(field: str) -> None:
    found, expected = states()
    found["adaptation"][field] += TOLERANCE / 2
    assert state_differences(found, expected, TOLERANCE) == []
    found["adaptation"][field] += TOLERANCE
    assert state_differences(found, expected, TOLERANCE) == [f"adaptation.{field}"]


@pytest.mark.parametrize("field", ["labels", "seen"])
def test_counts_must_be_equal(field: str) -> None:
    found, expected = states()
    found["adaptation"][field] += 1
    assert state_differences(found, expected, TOLERANCE) == [f"adaptation.{field}"]


def test_a_difference_outside_the_adaptation_has_the_fields_own_name() -> None:
    found, expected = states()
    found["accepted"] += 1
    found["hidden"] += 0.1
    assert set(state_differences(found, expected, TOLERANCE)) == {"accepted", "hidden"}
