"""Invalid parameters of flows are refused, even if a user enters them on Prefect's pages."""

import math

import pytest
from prefect.exceptions import ParameterTypeError

from flows.retrain import retrain


@pytest.mark.parametrize(
    ("name", "value"),
    [("budget_s", math.inf), ("budget_s", math.nan), ("budget_s", 0.0), ("seed", -1), ("seed", 2**63)],
)
def test_a_retraining_refuses_an_invalid_budget_or_seed(name: str, value: float) -> None:
    with pytest.raises(ParameterTypeError, match=name):
        retrain.validate_parameters({name: value})


def test_a_retraining_takes_the_largest_seed() -> None:
    assert retrain.validate_parameters({"seed": 2**63 - 1})["seed"] == 2**63 - 1
