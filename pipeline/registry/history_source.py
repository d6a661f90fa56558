"""MLflow's description of a training set: a version of the history table and its next Kafka offsets.

Only ``pipeline.registry.training_run`` imports this module, while it logs a run, because it imports MLflow.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import polars as pl
from mlflow.data.dataset_source import DatasetSource

from pipeline.history.table import History
from pipeline.registry.training_set import TrainingSet


@dataclass(frozen=True)
class HistorySource(DatasetSource):  # type: ignore[misc]  # MLflow ships no types
    """The source of a training set; ``load`` reads it again."""

    training_set: TrainingSet

    @staticmethod
    def _get_source_type() -> str:
        return "streamgru_history"

    def load(self) -> pl.LazyFrame:
        """The history table at the version of the training set."""
        return History(Path(self.training_set.table), features=()).scan(self.training_set.version)

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        return isinstance(raw_source, TrainingSet)

    @classmethod
    def _resolve(cls, raw_source: TrainingSet) -> Self:
        return cls(raw_source)

    def to_dict(self) -> dict[str, Any]:
        """The fields that MLflow stores with the run."""
        return asdict(self.training_set)

    @classmethod
    def from_dict(cls, source_dict: dict[Any, Any]) -> Self:
        """The source from the fields of ``to_dict``."""
        return cls(TrainingSet(**source_dict))
