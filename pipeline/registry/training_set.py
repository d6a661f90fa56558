"""The training set of a model, by table version and Kafka offsets, so that it can be trained again."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingSet:
    """A version of the history table. ``next_offsets`` is the first offset after it, by partition."""

    table: str
    version: int
    topic: str
    next_offsets: dict[str, int]  # partition as text, as JSON keys must be -> offset
    readings: int
    sensors: int
