"""The input example of a version: MLflow keeps it as JSON that every parser reads."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
from mlflow.models import convert_input_example_to_serving_input

from pipeline.registry.input_example import input_example
from tests.series import noisy_days


def refuse(constant: str) -> object:
    raise ValueError(constant)


def test_missing_values_are_null_and_features_called_like_columns_have_other_names() -> None:
    days = noisy_days()
    values = np.column_stack([days.values[:, 0], np.full(len(days), np.nan)])
    example = input_example(replace(days, features=("timestamp", "a\n"), values=values))
    assert list(example) == ["sensor_id", "timestamp", "feature:timestamp", "a\n"]
    sent = json.loads(convert_input_example_to_serving_input(example), parse_constant=refuse)["dataframe_split"]
    assert {row[3] for row in sent["data"]} == {None}
    read = pd.to_numeric(pd.DataFrame(**sent)["a\n"]).to_numpy(dtype=np.float64, na_value=np.nan)
    assert np.isnan(read).all()
