"""Ablations: scores on ETTh1 at horizon 96 with one part of the model or its training changed at a time.

Choices are made by the validation scores; the test scores only show their effect.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from model.artefact import load_artefact, save_artefact
from model.backtest import backtest, model_predictor
from model.config import NO_ADAPTATION, Adaptation, ModelConfig
from model.metrics import Metric
from model.sequences import Sequences, Split
from model.training import TrainingOptions, train
from pipeline.evaluation.evaluate import model_config, split_by, standard_deviations
from pipeline.files.file_layout import FileLayout
from pipeline.files.reading_table import read_readings
from pipeline.settings import Settings
from pipeline.windows import sequences_from_table

NAME: Final = "ablation"
HORIZON: Final = 96
SPLIT: Final = "12/4/4"
METRICS: Final[tuple[Metric, ...]] = ("mse", "mae", "pinball")
_WEEK_US: Final = 7 * 86_400_000_000


@dataclass(frozen=True)
class Variant:
    """The default model with one change."""

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    calendar: bool = True
    adaptation: Adaptation = NO_ADAPTATION

    @property
    def trained_as_default(self) -> bool:
        """Whether the variant needs no training of its own, because only its adaptation differs."""
        return not self.config and not self.options and self.calendar


VARIANTS: Final = (
    Variant("default"),
    Variant("default, adaptation light", adaptation=Adaptation("light", True)),
    Variant("default, adaptation full", adaptation=Adaptation("full", True)),
    Variant("default, only calibrated", adaptation=Adaptation("off", True)),
    Variant("no lags", config={"lag_steps": 0}),
    Variant("no seasonal profile", config={"profile_slots": 0}),
    Variant("no lags, no profile", config={"lag_steps": 0, "profile_slots": 0}),
    Variant("no calendar", calendar=False),
    Variant("no sensor embedding", config={"embedding_size": 0}),
    Variant("hidden 32", options={"hidden_size": 32}),
    Variant("hidden 128", options={"hidden_size": 128}),
    Variant("one weight set (no averaging)", options={"averaging": 0.0}),
    Variant("no dropout", options={"dropout": 0.0}),
    Variant("short chunks (24)", options={"chunk_steps": 24}),
    Variant("plain recipe", options={"preset": "plain"}),
)


def run_all(data: Path, seed: int, runs: Path, budget_s: float | None) -> None:
    """Train and score every variant that has no result in ``runs``."""
    settings = Settings(horizon_steps=HORIZON)
    sequences: Sequences | None = None
    for variant in VARIANTS:
        result = result_path(runs, variant, seed)
        if result.exists():
            continue
        if sequences is None:
            table = read_readings([data], FileLayout(timezone="UTC", columns_as_sensors=True), settings.features)
            sequences, split = split_by(SPLIT, sequences_from_table(table, settings))
        print(f"ablation: {variant.name}, seed {seed}", flush=True)
        options = TrainingOptions(seed=seed)
        options = replace(options, **{**variant.options, **({"budget_s": budget_s} if budget_s else {})})
        found = _scores(variant, model_config(settings), options, sequences, split, runs / NAME / f"default-seed{seed}")
        result.parent.mkdir(parents=True, exist_ok=True)
        result.write_text(json.dumps(found, indent=2), encoding="utf-8")


def result_path(runs: Path, variant: Variant, seed: int) -> Path:
    """The file of a variant's scores."""
    return runs / NAME / f"{variant.name.replace(' ', '-')}-seed{seed}.json"


def _scores(
    variant: Variant,
    config: ModelConfig,
    options: TrainingOptions,
    sequences: Sequences,
    split: Split,
    default: Path,
) -> dict[str, Any]:
    """Scores of one variant. Variants that differ in adaptation alone share the model in ``default``."""
    config = replace(config, **variant.config)
    if not variant.calendar:
        config, sequences, split = _without_calendar(config, sequences, split)
    began = time.monotonic()
    if variant.trained_as_default and default.exists():
        forecaster = load_artefact(default)
    else:
        seen = sequences.slice_time(None, split.validation_end_us)
        forecaster = train(config, options, seen, split).forecaster
    seconds = time.monotonic() - began
    if variant.trained_as_default:
        save_artefact(forecaster, default)
    scale = standard_deviations(sequences, config, split.train_end_us)
    parts = {
        "validation": (split.train_end_us, split.validation_end_us),
        "test": (split.validation_end_us, None),
    }
    found: dict[str, Any] = {"seconds": seconds}
    for part, bounds in parts.items():
        predictor = model_predictor(forecaster, "model", variant.adaptation)
        scores = backtest([predictor], sequences, forecaster.config, *bounds, scale=scale)["model"]
        found[part] = {metric: scores.mean(metric) for metric in METRICS}
    return found


def _without_calendar(config: ModelConfig, sequences: Sequences, split: Split) -> tuple[ModelConfig, Sequences, Split]:
    """The same readings a week apart: hour and weekday become constant, steps and labels stay."""

    def stretched(moment_us: Any) -> Any:
        return moment_us // config.cadence_us * _WEEK_US

    return (
        replace(config, cadence_us=_WEEK_US),
        replace(sequences, timestamp_us=stretched(sequences.timestamp_us), cadence_us=_WEEK_US),
        Split(stretched(split.train_end_us), stretched(split.validation_end_us)),
    )
