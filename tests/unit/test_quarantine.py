"""Remedies for a non-finite state come in order: rebuild, reset, give up."""

from typing import Any

import numpy as np

from model.config import ModelConfig
from model.state import blank_states, non_finite
from pipeline.forecaster.quarantine import Quarantine

UNUSED: Any = None


def test_each_sensor_goes_through_the_remedies_in_order() -> None:
    quarantine = Quarantine("model", UNUSED)
    first = quarantine.next_remedies({0: ["a"], 1: ["b"]})
    assert (first.rebuild, first.reset, first.unrecoverable) == ({0: ["a"], 1: ["b"]}, {}, {})
    second = quarantine.next_remedies({0: ["a", "c"]})
    assert (second.rebuild, second.reset, second.unrecoverable) == ({0: ["c"]}, {0: ["a"]}, {})
    third = quarantine.next_remedies({0: ["a"]})
    assert (third.rebuild, third.reset, third.unrecoverable) == ({}, {}, {0: ["a"]})


def test_a_commit_restarts_the_remedies_of_its_partitions() -> None:
    quarantine = Quarantine("model", UNUSED)
    quarantine.next_remedies({0: ["a"], 1: ["a"]})
    quarantine.clear([0])
    after = quarantine.next_remedies({0: ["a"], 1: ["a"]})
    assert (after.rebuild, after.reset) == ({0: ["a"]}, {1: ["a"]})
    quarantine.clear()
    assert quarantine.next_remedies({1: ["a"]}).rebuild == {1: ["a"]}


def test_a_state_with_a_nan_or_infinite_number_is_non_finite() -> None:
    config = ModelConfig(features=("a",), targets=("a",), cadence_us=3_600_000_000, horizon_steps=2, hidden_size=4)
    for name in ("hidden", "levels", "scale", "profile", "lags", "last"):
        for value in (np.nan, np.inf, -np.inf):
            states = blank_states(config, 3)
            assert not non_finite(states).any()
            states[name][1].flat[-1] = value
            assert non_finite(states).tolist() == [False, True, False]
