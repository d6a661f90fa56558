"""The input example of a registered model: the newest readings of two sensors, in the columns that the model reads."""

from typing import Final

import numpy as np
import pandas as pd

from model.feature_columns import input_column
from model.sequences import Sequences
from pipeline.messages import iso_timestamp

EXAMPLE_SENSORS: Final = 2
EXAMPLE_READINGS: Final = 48  # of a sensor; MLflow keeps the example as JSON beside the model


def input_example(sequences: Sequences) -> pd.DataFrame:
    """A row per reading: the sensor, its time in ISO 8601, and a column per feature; a missing value is None.

    Args:
        sequences: with at least one reading.
    """
    frames = []
    for sensor, name in enumerate(sequences.sensors[:EXAMPLE_SENSORS]):
        lo, hi = sequences.span(sensor)
        rows = lo + np.flatnonzero(sequences.observed[lo:hi])[-EXAMPLE_READINGS:]
        columns: dict[str, object] = {
            "sensor_id": name,
            "timestamp": [iso_timestamp(int(moment)) for moment in sequences.timestamp_us[rows]],
        }
        for number, feature in enumerate(sequences.features):
            columns[input_column(feature)] = sequences.values[rows, number]
        frames.append(pd.DataFrame(columns))
    example = pd.concat(frames, ignore_index=True).astype(object)
    return example.where(example.notna(), None)  # MLflow would write NaN, which is invalid JSON
