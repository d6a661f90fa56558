"""The files of a back-test: ``scores.json``, the model and plots."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure

from model.artefact import load_artefact, save_artefact
from model.autoregression import Autoregression
from model.backtest import SeasonalNaive, TogetherPredictor, model_predictor
from model.forecaster import Forecaster
from model.metrics import METRICS, Metric, Scores, skill
from model.sequences import Split
from model.state_age import loss_of_restarts
from model.training import EpochReport, TrainingResult
from pipeline.best_effort import best_effort
from pipeline.errors import DataFileError
from pipeline.evaluation.evaluate import Evaluation
from pipeline.evaluation.plots import draw_forecasts, draw_loss, draw_scores, draw_state_age
from pipeline.messages import iso_timestamp
from pipeline.text.json_text import json_text

log = logging.getLogger("streamgru.evaluation")

SCORES: Final = "scores.json"
MODEL_FOLDER: Final = "model"
_PREVIEW_PX: Final = 780  # MLflow's page of a version leaves a description this much room
SKILLS: Final[tuple[Metric, ...]] = ("mse", "mae", "pinball")


@dataclass(frozen=True)
class TrainedModel:
    """A model with, if known, the record of its training and the end of the readings that it has seen."""

    forecaster: Forecaster
    training: dict[str, Any] | None = None  # record of the training, as in ``scores.json``
    selected_until: str | None = None  # ISO 8601: end of the readings for training and selection

    @classmethod
    def of(cls, result: TrainingResult, split: Split) -> "TrainedModel":
        """The model and the record of a finished training."""
        return cls(
            result.forecaster,
            {
                "device": result.device,
                "seconds": result.epochs[-1].seconds,
                "sensor_steps_per_s": result.sensor_steps_per_s,
                "epochs": [asdict(epoch) for epoch in result.epochs],
            },
            iso_timestamp(split.validation_end_us),
        )


def read_trained_model(folder: Path) -> TrainedModel:
    """The model of an earlier report.

    Raises:
        DataFileError: the folder does not contain a report.
    """
    try:
        content = json.loads((folder / SCORES).read_text(encoding="utf-8"))
        # An older report lacks the field; its model was usually trained for it.
        selected_until = content.get("selected_until", content.get("validate_until"))
        return TrainedModel(load_artefact(folder / MODEL_FOLDER), content["training"], selected_until)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataFileError(
            f"{folder} does not contain the results of a back-test ({error}); name the folder that "
            "`streamgru backtest` printed for its scores"
        ) from error


def write_report(done: Evaluation, trained: TrainedModel, folder: Path, made_with: Mapping[str, Any]) -> None:
    """Write the model, ``scores.json`` and the plots to ``folder``; existing files of these names are replaced.

    A plot that cannot be drawn is left out with a warning.
    """
    folder.mkdir(parents=True, exist_ok=True)
    test_us = done.split.validation_end_us
    content = {
        **made_with,
        "readings": int(done.sequences.observed.sum()),
        "sensors": len(done.sequences.sensors),
        "train_until": iso_timestamp(done.split.train_end_us),
        "validate_until": iso_timestamp(test_us),
        "selected_until": trained.selected_until,  # earlier than validate_until if an earlier model is scored
        "model": asdict(replace(done.config, sensors=())),
        "adaptation": asdict(done.adaptation),
        "training": trained.training,
        "scores": {name: scores_content(score) for name, score in done.scores.items()},
        "skill": {name: _skill(done.model_scores, score) for name, score in done.scores.items() if name != done.name},
    }
    text = json_text(content, ascii_only=False)
    save_artefact(trained.forecaster, folder / MODEL_FOLDER)
    # If this file exists, the model beside it is complete. A sensor id may hold half of a surrogate pair.
    (folder / SCORES).write_text(text, encoding="utf-8", errors="backslashreplace")
    with best_effort("the plots", log):  # such as an unreadable record of an earlier training
        epochs = [EpochReport(**epoch) for epoch in trained.training["epochs"]] if trained.training else []
        write_plots(done, epochs, folder)


def write_plots(done: Evaluation, epochs: Sequence[EpochReport], folder: Path, *, previews: bool = False) -> None:
    """Write the plots to ``folder`` as PNG files; log a warning for each that cannot be drawn or written.

    With ``previews``, the folder ``previews`` gets each plot again, ``_PREVIEW_PX`` wide.
    """
    if previews:
        (folder / "previews").mkdir()
    for name, draw in plots(done, epochs).items():
        (folder / name).unlink(missing_ok=True)  # an earlier plot must not pass for the new one
        with best_effort(f"the plot {name}", log):
            figure = draw()
            figure.savefig(folder / name, dpi=120)
            if previews:
                figure.set_layout_engine("none")  # keep the layout, which takes half of the time
                figure.savefig(folder / "previews" / name, dpi=_PREVIEW_PX / figure.get_figwidth())


def plots(done: Evaluation, epochs: Sequence[EpochReport]) -> dict[str, Callable[[], Figure]]:
    """Functions that draw the plots of a back-test by file name, and of the training if its epochs are known."""
    config, sequences, test_us = done.config, done.sequences, done.split.validation_end_us
    scored = done.predictors.get(done.name)
    model = scored if isinstance(scored, TogetherPredictor) else None

    def forecasts() -> Figure:
        fans = model or model_predictor(done.forecaster, done.name, done.adaptation)
        naive = SeasonalNaive(config).fit(sequences, test_us)
        return draw_forecasts(fans, sequences, config, done.model_scores, test_us, [naive])

    def state_age() -> Figure:
        adaptive = done.predictors.get(Autoregression.name)
        if not isinstance(adaptive, Autoregression):
            adaptive = Autoregression(config).fit(sequences, test_us)
        scale = done.model_scores.scale
        by_age = loss_of_restarts(
            done.forecaster, done.adaptation, sequences, test_us, scale, carried=model, beside=[adaptive]
        )
        return draw_state_age(by_age, config.warmup_steps)

    figures: dict[str, Callable[[], Figure]] = {
        "scores.png": partial(draw_scores, done.scores),
        "forecasts.png": forecasts,
        "state_age.png": state_age,
    }
    if epochs:
        figures["loss.png"] = partial(draw_loss, epochs)
    return figures


def scores_content(score: Scores) -> dict[str, Any]:
    return {
        "labels": int(score.n.sum()),
        "scaled": {metric: score.mean(metric) for metric in METRICS},
        "scaled_by_horizon": {metric: score.pooled(metric).tolist() for metric in METRICS},
        "by_horizon": {
            target: {metric: score.by_horizon(metric)[row].tolist() for metric in METRICS}
            for row, target in enumerate(score.targets)
        },
        "calibration": dict(zip(score.targets, score.calibration().tolist(), strict=True)),
        "intervals": [asdict(interval) for interval in score.intervals()],
        "worst_sensors": dict(score.worst_sensors()),
    }


def _skill(model_scores: Scores, theirs: Scores) -> dict[str, Any]:
    """Skill of the model against another forecast, in total and by horizon step."""
    with np.errstate(divide="ignore", invalid="ignore"):  # NaN against a perfect reference
        return {
            metric: {
                "all": skill(model_scores, theirs, metric),
                "by_horizon": (1.0 - model_scores.pooled(metric) / theirs.pooled(metric)).tolist(),
            }
            for metric in SKILLS
        }
