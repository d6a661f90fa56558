"""What a model was trained on, so that it can be trained again: table version and Kafka offsets."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingSet:
    """A version of the history table. ``next_offsets`` is, by partition, the first offset that is not in it."""

    table: str
    version: int
    topic: str
    next_offsets: dict[str, int]  # the partition as text: JSON has no other keys
    readings: int
    sensors: int
