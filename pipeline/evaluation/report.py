"""A back-test written down: ``scores.json`` and the plots beside it."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from model.backtest import model_predictor
from model.metrics import METRICS, Metric, Scores, skill
from model.training import TrainingResult
from pipeline.evaluation.back_test import MODEL, Evaluation
from pipeline.evaluation.plots import draw_forecasts, draw_loss, draw_scores
from pipeline.messages import iso_timestamp

SKILLS: Final[tuple[Metric, ...]] = ("mse", "mae", "pinball")


def write_report(done: Evaluation, training: TrainingResult | None, folder: Path, made_with: Mapping[str, Any]) -> None:
    """``scores.json`` and the plots, in ``folder``; what was there under these names is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    test_us = done.split.validation_end_us
    content = {
        **made_with,
        "readings": int(done.sequences.observed.sum()),
        "sensors": len(done.sequences.sensors),
        "train_until": iso_timestamp(done.split.train_end_us),
        "validate_until": iso_timestamp(test_us),
        "model": asdict(replace(done.config, sensors=())),
        "training": _training(training) if training else None,
        "scores": {name: scores_content(score) for name, score in done.scores.items()},
        "skill": {name: _skill(done.scores[MODEL], score) for name, score in done.scores.items() if name != MODEL},
    }
    text = json.dumps(_without_nan(content), indent=2, ensure_ascii=False)
    (folder / "scores.json").write_text(text, encoding="utf-8")
    fans = model_predictor(done.forecaster, MODEL)
    figures = {
        "scores.png": draw_scores(done.scores),
        "forecasts.png": draw_forecasts(fans, done.sequences, done.config, done.scores[MODEL], test_us),
    }
    if training:
        figures["loss.png"] = draw_loss(training.epochs)
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=120)


def _training(training: TrainingResult) -> dict[str, Any]:
    return {
        "device": training.device,
        "seconds": training.epochs[-1].seconds,
        "sensor_steps_per_s": training.sensor_steps_per_s,
        "epochs": [asdict(epoch) for epoch in training.epochs],
    }


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


def _skill(ours: Scores, theirs: Scores) -> dict[str, Any]:
    """Of the model against another forecast: over all, and by horizon step."""
    with np.errstate(divide="ignore", invalid="ignore"):  # a perfect reference: no number
        return {
            metric: {
                "all": skill(ours, theirs, metric),
                "by_horizon": (1.0 - ours.pooled(metric) / theirs.pooled(metric)).tolist(),
            }
            for metric in SKILLS
        }


def _without_nan(content: Any) -> Any:
    """JSON knows no NaN: null instead."""
    if isinstance(content, dict):
        return {name: _without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
