"""A back-test on data of one's own: split it, train on the oldest part, score the newest, write down what came out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.backtest import Predictor, backtest, baselines, is_constant, model_predictor, seasonal_scale
from model.config import Adaptation, ModelConfig
from model.forecaster import Forecaster
from model.metrics import Scores
from model.retraining import RetrainedPredictor, retrain_every
from model.sequences import Sequences, Split, split_by_time
from model.training import EpochReport, TrainingOptions, TrainingResult, train
from pipeline.messages import iso_timestamp
from pipeline.settings import Settings
from pipeline.settings_sections import TrainingSettings

MODEL: Final = "streamgru"
PLAIN: Final = "plain GRU"
_DAY_US: Final = 86_400_000_000
_MONTH_US: Final = 30 * _DAY_US  # the literature's months, in which splits such as 12/4/4 are given


def split_by(text: str, sequences: Sequences) -> tuple[Sequences, Split]:
    """The parts that a text asks for: fractions of the readings (``0.7,0.1,0.2``) or months of 30 days (``12/4/4``).

    Months are counted from the first reading on; what was read after the last of them is left out of the sequences.

    Raises:
        ValueError: it is neither, or a part would be empty.
    """
    months = "/" in text
    try:
        sizes = [float(part) for part in text.split("/" if months else ",")]
    except ValueError:
        sizes = []
    if len(sizes) != 3 or not all(size > 0.0 and math.isfinite(size) for size in sizes):
        raise ValueError(f"a split is three positive numbers, as 0.7,0.1,0.2 or, in months, 12/4/4; this is {text!r}")
    if not months:
        if not math.isclose(sum(sizes), 1.0, abs_tol=1e-6):
            raise ValueError(f"the fractions of a split must sum to 1; {text!r} sums to {sum(sizes):g}")
        return sequences, split_by_time(sequences, sizes[1], sizes[2])
    first_us = int(sequences.timestamp_us.min())
    last_us = int(sequences.timestamp_us.max())
    train_end_us, validation_end_us, end_us = (first_us + round(sum(sizes[:n]) * _MONTH_US) for n in (1, 2, 3))
    if last_us < validation_end_us:
        raise ValueError(
            f"the test part of {text} would begin at {iso_timestamp(validation_end_us)}, and the last reading is of "
            f"{iso_timestamp(last_us)}"
        )
    return sequences.slice_time(None, end_us), Split(train_end_us, validation_end_us)


@dataclass(frozen=True)
class Selection:
    """What a model was made on, as far as that is known."""

    name: str  # of the model, as messages have it
    config: ModelConfig  # the model's
    until: str | None  # ISO 8601: readings before this took part in training or choosing it


def unseen_part(split: Split, sequences: Sequences, made: Selection, least: int = 1) -> tuple[Split, str]:
    """The split with nothing in its test part that a model was trained or chosen on, and what there is to say of it.

    That is nothing where the split can stay; where it stays because nothing is known of the model, a warning. The rest
    is as for ``after_selection``.
    """
    if made.until is None:
        return split, (
            f"{made.name} does not say until when it was trained and chosen (validate_until): it may be scored here on "
            "readings that it has seen, which flatters it"
        )
    moved = after_selection(split, sequences, made.config, made.until, least)
    if moved == split:
        return split, ""
    return moved, (
        f"{made.name} was trained and chosen on readings until {made.until}: the test part begins there instead of "
        f"{iso_timestamp(split.validation_end_us)}"
    )


def after_selection(
    split: Split, sequences: Sequences, config: ModelConfig, selected_until: str, least: int = 1
) -> Split:
    """The split, its test part no earlier than ``selected_until``: what came before it took part in making the model.

    A model that was made without any of these sensors has seen nothing of them, and the split stays as it is.

    Args:
        config: the model's.
        selected_until: ISO 8601, as in the version's tag.
        least: forecasts of one sensor whose whole horizon lies behind that.

    Raises:
        ValueError: it is no such time, or less is left to test on.
    """
    if not set(config.sensors) & set(sequences.sensors):
        return split
    try:
        since_epoch = datetime.fromisoformat(selected_until) - datetime.fromtimestamp(0, UTC)
    except (ValueError, TypeError) as error:
        raise ValueError(f"until when the model was chosen cannot be read, {selected_until!r}: {error}") from error
    selected_until_us = since_epoch // timedelta(microseconds=1)
    if selected_until_us <= split.validation_end_us:
        return split
    left = _most_forecasts_from(sequences, config, selected_until_us)
    if left < least:
        raise ValueError(
            f"the model was trained and chosen on readings until {selected_until}, and the last one here is of "
            f"{iso_timestamp(int(sequences.timestamp_us.max()))}: of {left} forecasts of a sensor, at most, it has not "
            f"seen the outcome, and at least {least} are needed; take newer readings"
        )
    return replace(split, validation_end_us=selected_until_us)


def _most_forecasts_from(sequences: Sequences, config: ModelConfig, start_us: int) -> int:
    """From how many readings of a sensor forecasts are scored when scores start there: of the one with most."""
    most = 0
    for sensor in range(len(sequences.sensors)):
        _, end = sequences.span(sensor)
        last_us = int(sequences.timestamp_us[end - 1]) + 1 - config.horizon_steps * config.cadence_us
        lo, hi = sequences.span(sensor, start_us - config.cadence_us, last_us)
        most = max(most, int(sequences.observed[lo:hi].sum()))
    return most


def model_config(settings: Settings) -> ModelConfig:
    """What the settings ask of a model."""
    return ModelConfig(
        features=settings.features,
        targets=settings.targets,
        cadence_us=settings.cadence_us,
        horizon_steps=settings.horizon_steps,
        quantiles=settings.quantiles,
        max_gap_steps=settings.max_gap_steps,
        season_steps=settings.season,
    )


def training_options(training: TrainingSettings) -> TrainingOptions:
    """How the settings ask to train."""
    return TrainingOptions(
        preset=training.preset,
        hidden_size=training.hidden_size,
        epochs=training.epochs,
        budget_s=training.budget_s,
        seed=training.seed,
        device=training.device,
    )


def train_on(
    settings: Settings,
    sequences: Sequences,
    split: Split,
    report: Callable[[EpochReport], None] | None = None,
    checkpoint: Path | None = None,
) -> TrainingResult:
    """A model trained by the settings on the training part; it is not shown the test part.

    Raises:
        ValueError: a part has too few readings, or no target that could be learned.
    """
    seen = sequences.slice_time(None, split.validation_end_us)
    config, options = model_config(settings), training_options(settings.training)
    return train(config, options, seen, split, report=report, checkpoint=checkpoint)


def plain_predictor(
    settings: Settings, sequences: Sequences, split: Split, report: Callable[[EpochReport], None]
) -> Predictor:
    """The plain preset, trained by the same settings otherwise, as one more thing to beat; its state is carried too."""
    plain = settings.training.model_copy(update={"preset": "plain"})
    result = train_on(settings.model_copy(update={"training": plain}), sequences, split, report)
    return model_predictor(result.forecaster, PLAIN)


def retrained_predictor(
    settings: Settings,
    first: Forecaster,
    sequences: Sequences,
    split: Split,
    every_days: float,
    report: Callable[[int, EpochReport], None],
) -> Predictor:
    """The model, retrained (warm) every so many days of the test part on what had been read by then."""
    options = training_options(settings.training)
    models = list(retrain_every(round(every_days * _DAY_US), first, options, sequences, split, report))
    return RetrainedPredictor(models, f"{MODEL}, every {every_days:g} days", settings.adaptation)


@dataclass(frozen=True)
class Evaluation:
    """What a back-test found; ``scores`` by name, the model's under ``name``."""

    name: str
    forecaster: Forecaster
    sequences: Sequences
    split: Split
    scores: dict[str, Scores]
    adaptation: Adaptation

    @property
    def config(self) -> ModelConfig:
        """The model's."""
        return self.forecaster.config

    @property
    def model_scores(self) -> Scores:
        """The model's."""
        return self.scores[self.name]


def evaluate(
    forecaster: Forecaster,
    sequences: Sequences,
    split: Split,
    adaptation: Adaptation,
    *,
    name: str = MODEL,
    also: Sequence[Adaptation] = (),
    beside: Sequence[Predictor] = (),
    standardise: bool = False,
    scale_until_us: int | None = None,
) -> Evaluation:
    """Scores of a model and the baselines on the test part; the latter may know all that came before it.

    The model's forecasts are adapted as they are when it is served with ``adaptation``; its scores with other
    adaptations, ``also``, stand beside, under names that say which, and so do those of other predictors, ``beside``.

    Scaled scores are in seasonal differences of each sensor or, to ``standardise``, in standard deviations; either is
    of what lies before ``scale_until_us``, by default the training part.

    Raises:
        ValueError: there is nothing to score.
    """
    config, test_us = forecaster.config, split.validation_end_us
    measure = standard_deviations if standardise else seasonal_scale
    models = [model_predictor(forecaster, name, adaptation)]
    models += [model_predictor(forecaster, f"{name}, {other.level}", other) for other in also]
    predictors = [*models, *beside, *baselines(config, sequences, test_us)]
    scale = measure(sequences, config, split.train_end_us if scale_until_us is None else scale_until_us)
    scores = backtest(predictors, sequences, config, test_us, scale=scale)
    return Evaluation(name, forecaster, sequences, split, scores, adaptation)


def standard_deviations(sequences: Sequences, config: ModelConfig, until_us: int) -> NDArray[np.float64]:
    """(sensors, targets): of the values before ``until_us``; 1 where there are none or all are equal."""
    columns = sequences.columns(config.targets)
    found = np.ones((len(sequences.sensors), len(columns)))
    for sensor in range(len(sequences.sensors)):
        lo, hi = sequences.span(sensor, None, until_us)
        for number, column in enumerate(columns):
            known = sequences.values[lo:hi, column]
            known = known[~np.isnan(known)]
            deviation = float(known.std()) if len(known) else 0.0
            found[sensor, number] = 1.0 if is_constant(deviation, known) else deviation
    return found
