"""Published weights agree with recomputed weights only if they differ by rounding to three decimals."""

from datetime import UTC, datetime

import msgspec
import numpy as np
import pytest

from pipeline.audit.expert_weights import published_weights, weights_agree
from pipeline.messages import Forecast, InputPosition, ModelId, StateAge

EXPERTS = ("one", "other")
RECOMPUTED = np.array([[[0.2504, 0.7496]]])
NO_WEIGHTS = np.zeros((1, 1, 0))

Weights = dict[str, dict[str, float]]


def forecast(weights: Weights | msgspec.UnsetType) -> Forecast:
    return Forecast(
        sensor_id="s",
        issued_at=datetime(2020, 1, 1, tzinfo=UTC),
        cadence_s=60.0,
        quantiles={"a": {"0.5": [1.0]}},
        model=ModelId("m", 1),
        settings="",
        input=InputPosition("readings", 0, 0),
        state=StateAge(0, 1, True),
        weights=weights,
    )


@pytest.mark.parametrize(
    ("weights", "agrees"),
    [
        ({"a": {"one": 0.25, "other": 0.75}}, True),
        ({"a": {"other": 0.75, "one": 0.25}}, True),
        ({"a": {"one": 0.251, "other": 0.75}}, False),
        ({"a": {"one": 0.25}}, False),
        ({"a": {"one": 0.25, "third": 0.75}}, False),
        ({"b": {"one": 0.25, "other": 0.75}}, False),
        ({}, False),
        (msgspec.UNSET, False),
    ],
)
def test_weights_agree_only_with_the_recomputed_ones(weights: Weights | msgspec.UnsetType, agrees: bool) -> None:
    published = published_weights(forecast(weights), ("a",), EXPERTS)
    assert weights_agree(published[None], RECOMPUTED).tolist() == [agrees]


def test_a_forecast_without_experts_agrees_only_if_it_has_no_weights() -> None:
    for weights, agrees in ((msgspec.UNSET, True), ({}, False), ({"a": {"gru": 1.0}}, False)):
        published = published_weights(forecast(weights), ("a",), ("gru",))
        assert weights_agree(published[None], NO_WEIGHTS).tolist() == [agrees]
