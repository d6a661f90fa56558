"""The reports of a retraining: curves for MLflow, scores for the version, and a page for Prefect."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from flows.model_card import CardFacts
from flows.prefect_text import publish_link, publish_page
from model.autoregression import Autoregression
from model.baselines import Persistence, SeasonalNaive
from model.metrics import Metric, Scores
from model.training import EpochReport
from pipeline.best_effort import best_effort
from pipeline.evaluation.gate import Decision
from pipeline.history.unused import LATE_REMEDY, describe_sensors
from pipeline.registry.metric_names import metric_names
from pipeline.registry.training_set import TrainingSet
from pipeline.registry.versions import CHALLENGER, CHAMPION
from pipeline.text.markdown_text import markdown, markdown_link, markdown_table
from pipeline.text.plural import counted

log = logging.getLogger("streamgru.flows")

_MOST_PARTITIONS: Final = 50  # on a page that is read in a minute
SCORED: Final[tuple[Metric, ...]] = ("pinball", "mae", "mse", "coverage")
# Name of a score -> its name in metrics.
NAMES: Final = {
    CHALLENGER: "challenger",
    CHAMPION: "champion",
    Autoregression.name: "rls",
    SeasonalNaive.name: "naive",
    Persistence.name: "persistence",
}

Curves = dict[str, dict[int, float]]


@dataclass(frozen=True)
class RetrainReport:
    """The outcome of a retraining."""

    model_name: str
    version: int
    decision: Decision
    scores: dict[str, float]
    device: str
    run_url: str
    late: str = ""  # a sentence about late readings, if there are any
    version_url: str = ""  # page of the version in MLflow

    def __str__(self) -> str:
        alias = "champion" if self.decision.promote else "challenger"
        return f"version {self.version} of {self.model_name} is {alias}. {self.decision.reason}. {self.run_url}"


def describe_late(late: Mapping[str, int], treatment: str) -> str:
    """A sentence about the late readings of each sensor, with the remedy if they are left out."""
    counts = f"{sum(late.values()):,} readings are late ({describe_sensors(late)})"
    if treatment == "train":
        return f"{counts}; training used the readings of each sensor in order of time"
    return f"{counts} and not used in training; {LATE_REMEDY}"


def summarise(scores: Mapping[str, Scores]) -> dict[str, float]:
    """The version's scores: means on the held-out tail, scaled by sensor; ``METRIC.NAME`` for its rivals."""
    summary: dict[str, float] = {metric: scores[CHALLENGER].mean(metric) for metric in SCORED}
    for name, score in scores.items():
        if name != CHALLENGER:
            summary |= {f"{metric}.{NAMES[name]}": score.mean(metric) for metric in ("pinball", "mae")}
    return {name: value for name, value in summary.items() if math.isfinite(value)}


def epoch_curves(epochs: Sequence[EpochReport]) -> Curves:
    """Losses and learning rate by epoch."""
    return {
        "train_loss": {epoch.epoch: epoch.train_loss for epoch in epochs},
        "validation_loss": {epoch.epoch: epoch.validation_loss for epoch in epochs},
        "learning_rate": {epoch.epoch: epoch.learning_rate for epoch in epochs},
    }


def horizon_curves(scores: Mapping[str, Scores]) -> Curves:
    """Scores by horizon step in the target's unit (``naive/mae/TEMP``), and scaled means (``naive/mae``)."""
    curves: Curves = {}
    for name, score in scores.items():
        names = metric_names(score.targets)
        for metric in SCORED:
            curves[f"{NAMES[name]}/{metric}"] = {0: score.mean(metric)}
            by_horizon = score.by_horizon(metric)
            for row, target in zip(by_horizon, score.targets, strict=True):
                curves[f"{NAMES[name]}/{metric}/{names[target]}"] = dict(enumerate(row.tolist(), start=1))
    return {
        name: {step: value for step, value in curve.items() if math.isfinite(value)} for name, curve in curves.items()
    }


def publish(report: RetrainReport, facts: CardFacts) -> None:
    """Publish the decision, its scores and its data on the run's page in Prefect; only warn if that fails.

    The alias has already moved, so a missing page must not fail the run.
    """
    with best_effort("the page retrain-gate in Prefect", log):
        publish_page(gate_page(report, facts), "retrain-gate", f"version {report.version} and the gate")
    words = f"Version {report.version} of {report.model_name} in MLflow"
    publish_link(report.version_url, words, "mlflow-version", "the model card, the scores and the promotions")


def gate_page(report: RetrainReport, facts: CardFacts) -> str:
    """The decision, the scores and the training data of a version, as Markdown."""
    decided = "promoted" if report.decision.promote else "declined"
    made_on, scores = facts.training_set, facts.done.scores
    name = markdown(report.model_name)
    in_mlflow = f"{markdown_link('Version in MLflow', report.version_url)}, {markdown_link('run', report.run_url)}"
    alias = "champion" if report.decision.promote else "challenger"
    paragraphs = [
        f"## Version {report.version} of {name}: {decided}",
        markdown(report.decision.reason),
        f"It is {alias}. {in_mlflow}.",
        *([] if report.decision.promote else [f"To promote it anyway, run `streamgru promote {report.version}`."]),
        "### Scores on the held-out tail",
        "Errors are in units of each sensor's scale.",
        markdown_table(["forecast", *SCORED], [_row(name, score) for name, score in scores.items()]),
        "### Training data",
        (
            f"Version {made_on.version} of the history: {counted(made_on.readings, 'reading')} of "
            f"{counted(made_on.sensors, 'sensor')}. Trained on {markdown(report.device)}."
        ),
        *([markdown(report.late)] if report.late else []),
        f"Next offsets: {_offsets(made_on)}.",
    ]
    return "\n\n".join(paragraphs)


def _offsets(made_on: TrainingSet) -> str:
    ordered = sorted(made_on.next_offsets.items(), key=lambda item: int(item[0]))
    shown = [f"partition {partition}: {offset}" for partition, offset in ordered[:_MOST_PARTITIONS]]
    return ", ".join(shown) + (f" and {len(ordered) - len(shown)} more" if len(ordered) > len(shown) else "")


def _row(name: str, score: Scores) -> list[str]:
    return [markdown(name), *(f"{score.mean(metric):.5g}" for metric in SCORED)]
