"""Remarks propose bounds that the readings suggest, count readings outside, and notice models with other bounds."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from model.bounds import Bounds
from model.config import ModelConfig
from model.sequences import Sequences
from pipeline.remarks.bounds import bounds_difference, bounds_findings, bounds_remarks, facts_as_text
from pipeline.settings import Settings
from tests.series import HOUR_US, joined


def of_values(*columns: np.ndarray) -> Sequences:
    names = tuple(f"f{number}" for number in range(len(columns)))
    values = np.column_stack(columns)
    return joined([np.arange(len(values)) * HOUR_US], [values], names, HOUR_US, max_gap_steps=24)


def settings_for(count: int, **bounds: dict[str, Any]) -> Settings:
    names = tuple(f"f{number}" for number in range(count))
    return Settings(features=names, targets=names, bounds=bounds)  # type: ignore[arg-type]


def remarks_on(sequences: Sequences, settings: Settings, known: str = "") -> list[str]:
    return bounds_remarks(bounds_findings(sequences, settings), known)


def test_bounds_are_proposed_for_targets_that_never_fall_below_zero() -> None:
    random = np.random.default_rng(0)
    skewed = random.exponential(50.0, 2_000)
    skewed[7] = np.nan
    far = random.normal(1_000.0, 10.0, 2_000)  # pressure: forecasts do not reach 0
    negative = random.normal(0.0, 10.0, 2_000)
    share = np.clip(random.normal(70.0, 40.0, 2_000), 3.0, 100.0)
    cars = random.poisson(2.0, 2_000).astype(float)
    assert remarks_on(of_values(skewed, far, negative, share, cars), settings_for(5)) == [
        "f0 is never below 0 in 1,999 readings; if it cannot be, set minimum = 0 under [bounds.f0]",
        (
            "f3 is never below 0 or above 100 in 2,000 readings; if it cannot be, set minimum = 0 and maximum = 100 "
            "under [bounds.f3]"
        ),
        (
            "f4 is never below 0 in 2,000 readings; if it cannot be, set minimum = 0 under [bounds.f4], and "
            "count = true if it counts things"
        ),
    ]
    assert remarks_on(of_values(skewed[:900]), settings_for(1)) == []  # too few
    assert remarks_on(of_values(np.full(2_000, 3.0)), settings_for(1)) == []  # constant


def test_readings_that_break_the_bounds_are_counted() -> None:
    values = np.abs(np.random.default_rng(0).normal(5.0, 1.0, 100))
    values[[3, 50]] = -2.5
    assert remarks_on(of_values(values), settings_for(1, f0={"minimum": 0})) == [
        "f0 breaks its bounds (minimum 0) in 2 of 100 readings, for example with -2.5; forecasts keep the bounds"
    ]
    assert remarks_on(of_values(np.abs(values)), settings_for(1, f0={"minimum": 0})) == []


def test_the_remarks_are_bounded() -> None:
    skewed = [np.random.default_rng(seed).exponential(50.0, 2_000) for seed in range(8)]
    remarks = remarks_on(of_values(*skewed), settings_for(8))
    assert len(remarks) == 6
    assert remarks[-1] == "3 more targets have remarks about their bounds"


def test_a_remark_comes_again_only_if_its_fact_changes() -> None:
    random = np.random.default_rng(0)
    rain = random.exponential(5.0, 2_000)
    level = np.abs(random.normal(5.0, 1.0, 2_000))
    level[3] = -2.5
    settings = settings_for(2, f1={"minimum": 0})
    known = facts_as_text(bounds_findings(of_values(rain, level), settings))
    assert json.loads(known) == {"f0": "minimum = 0", "f1": "1 break minimum 0"}
    longer = of_values(np.append(rain, 4.0), np.append(level, 4.0))
    assert remarks_on(longer, settings, known) == []
    level[7] = -1.0
    assert [remark[:22] for remark in remarks_on(of_values(rain, level), settings, known)] == ["f1 breaks its bounds ("]
    whole = of_values(np.rint(rain), level)
    assert ["count = true" in remark for remark in remarks_on(whole, settings, known)] == [True, False]
    assert len(remarks_on(longer, settings_for(2, f1={"minimum": -1}), known)) == 1  # other bounds


@pytest.mark.parametrize("known", ["", "{", "[1]", '{"f0": 3}'])
def test_a_tag_that_someone_changed_hides_no_remark(known: str) -> None:
    assert len(remarks_on(of_values(np.random.default_rng(0).exponential(5.0, 2_000)), settings_for(1), known)) == 1


def test_facts_of_many_targets_fit_into_a_tag() -> None:
    columns = [np.random.default_rng(seed).exponential(50.0, 1_000) for seed in range(300)]
    findings = bounds_findings(of_values(*columns), settings_for(300))
    text = facts_as_text(findings)
    assert 3_900 < len(text) <= 4_000
    more = len(findings) - len(json.loads(text))
    assert bounds_remarks(findings, text)[-1] == f"{more - 5} more targets have remarks about their bounds"


def test_a_name_with_a_dot_is_quoted_in_the_proposal() -> None:
    sequences = replace(of_values(np.random.default_rng(0).exponential(50.0, 2_000)), features=("PM2.5",))
    settings = Settings(features=("PM2.5",), targets=("PM2.5",))
    assert remarks_on(sequences, settings)[0].endswith('under [bounds."PM2.5"]')


def test_a_model_with_other_bounds_than_the_settings_is_noticed() -> None:
    config = ModelConfig(("f0",), ("f0",), HOUR_US, 3)
    assert bounds_difference(config, settings_for(1)) is None
    assert bounds_difference(config, settings_for(1, f0={"minimum": 0})) == (
        "was trained with no bounds, which its forecasts have too. The settings have bounds for f0 (minimum 0); "
        "`streamgru retrain` trains a version with them"
    )
    bounded = replace(config, bounds=(Bounds(0, 3, True),))
    assert bounds_difference(bounded, settings_for(1)) == (
        "was trained with bounds for f0 (minimum 0, maximum 3, a count), which its forecasts have too. The settings "
        "have no bounds; `streamgru retrain` trains a version with them"
    )
