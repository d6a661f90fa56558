"""The flows' parameters, which also come from Prefect's pages: what cannot be worked with is refused there."""

import math

import pytest
from prefect.exceptions import ParameterTypeError

from flows.retrain import retrain


@pytest.mark.parametrize(
    ("name", "value"),
    [("budget_s", math.inf), ("budget_s", math.nan), ("budget_s", 0.0), ("seed", -1), ("seed", 2**63)],
)
def test_a_retraining_takes_no_endless_budget_and_no_seed_that_is_none(name: str, value: float) -> None:
    with pytest.raises(ParameterTypeError, match=name):
        retrain.validate_parameters({name: value})


def test_a_retraining_takes_the_largest_seed() -> None:
    assert retrain.validate_parameters({"seed": 2**63 - 1})["seed"] == 2**63 - 1
