"""A back-test: split the data, train on the oldest part, and score on the newest part."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
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
from model.scale_choice import scaled_config
from model.sequences import Sequences, Split, split_by_time
from model.training import EpochReport, TrainingOptions, TrainingResult, train
from pipeline.messages import iso_timestamp
from pipeline.settings import Settings
from pipeline.settings.sections import TrainingSettings

MODEL: Final = "streamgru"
PLAIN: Final = "plain GRU"
_DAY_US: Final = 86_400_000_000
_MONTH_US: Final = 30 * _DAY_US  # a month in the literature's splits, such as 12/4/4


def split_by(text: str, sequences: Sequences) -> tuple[Sequences, Split]:
    """The split that ``text`` describes: fractions (``0.7,0.1,0.2``) or months of 30 days (``12/4/4``).

    Months count from the first reading; later readings are left out of the returned sequences.

    Raises:
        ValueError: the text has another form, or a part would be empty.
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
    first_us, last_us = int(sequences.timestamp_us.min()), int(sequences.timestamp_us.max())
    train_end_us, validation_end_us, end_us = (first_us + round(sum(sizes[:n]) * _MONTH_US) for n in (1, 2, 3))
    if last_us < validation_end_us:
        raise ValueError(
            f"the test part of {text} would begin at {iso_timestamp(validation_end_us)}, after the last reading "
            f"({iso_timestamp(last_us)})"
        )
    return sequences.slice_time(None, end_us), Split(train_end_us, validation_end_us)


@dataclass(frozen=True)
class Selection:
    """The readings that a model was trained and selected on, if known."""

    name: str  # name of the model, for messages
    config: ModelConfig  # configuration of the model
    until: str | None  # ISO 8601: end of the readings for training and selection


def unseen_part(split: Split, sequences: Sequences, made: Selection, least: int = 1) -> tuple[Split, str]:
    """A split whose test part the model has not seen, and a remark for the user.

    The remark is empty if the split does not change, and a warning if ``made.until`` is unknown. The test part moves as
    in ``after_selection``, which also names the errors.
    """
    if made.until is None:
        return split, (
            f"{made.name} does not say until when it was trained and selected (validate_until): its scores may be too "
            "good, because it may have seen readings of the test part"
        )
    moved = after_selection(split, sequences, made.config, made.until, least)
    if moved == split:
        return split, ""
    return moved, (
        f"{made.name} was trained and selected on readings until {made.until}: the test part begins there instead of "
        f"at {iso_timestamp(split.validation_end_us)}"
    )


def after_selection(
    split: Split, sequences: Sequences, config: ModelConfig, selected_until: str, least: int = 1
) -> Split:
    """The split, with its test part moved to ``selected_until`` if it begins earlier: the model saw earlier readings.

    If the model was trained without these sensors, the split does not change.

    Args:
        config: of the model.
        selected_until: ISO 8601, as in the version's tag.
        least: forecasts of one sensor that must remain in the test part, with their whole horizon.

    Raises:
        ValueError: ``selected_until`` is not a time, or fewer forecasts remain.
    """
    if not set(config.sensors) & set(sequences.sensors):
        return split
    try:
        since_epoch = datetime.fromisoformat(selected_until) - datetime.fromtimestamp(0, UTC)
    except (ValueError, TypeError) as error:
        raise ValueError(f"the model's validate_until, {selected_until!r}, is not a time: {error}") from error
    selected_until_us = since_epoch // timedelta(microseconds=1)
    if selected_until_us <= split.validation_end_us:
        return split
    left = _most_forecasts_from(sequences, config, selected_until_us)
    if left < least:
        raise ValueError(
            f"the model was trained and selected on readings until {selected_until}, and the last reading here is of "
            f"{iso_timestamp(int(sequences.timestamp_us.max()))}: at most {left} forecasts of a sensor remain for the "
            f"test, and at least {least} are needed; use newer readings"
        )
    return replace(split, validation_end_us=selected_until_us)


def _most_forecasts_from(sequences: Sequences, config: ModelConfig, start_us: int) -> int:
    """The number of forecasts that are scored from ``start_us`` on, for the sensor with the most."""
    most = 0
    for sensor in range(len(sequences.sensors)):
        _, end = sequences.span(sensor)
        last_us = int(sequences.timestamp_us[end - 1]) + 1 - config.horizon_steps * config.cadence_us
        lo, hi = sequences.span(sensor, start_us - config.cadence_us, last_us)
        most = max(most, int(sequences.observed[lo:hi].sum()))
    return most


def model_config(settings: Settings) -> ModelConfig:
    """The model configuration from the settings."""
    return ModelConfig(
        features=settings.features,
        targets=settings.targets,
        cadence_us=settings.cadence_us,
        horizon_steps=settings.horizon_steps,
        quantiles=settings.quantiles,
        max_gap_steps=settings.max_gap_steps,
        season_steps=settings.season,
        bounds=settings.target_bounds,
        calendar=settings.calendar_covariates,
        attributes=settings.sensor_attributes,
        outlook=settings.outlook_config,
    )


def training_options(training: TrainingSettings) -> TrainingOptions:
    """The training options from the settings."""
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
    report: Callable[[EpochReport], None] | None,
    checkpoint: Path | None = None,
) -> TrainingResult:
    """A model trained on the training part; the training never sees the test part.

    Raises:
        ValueError: a part has too few readings, or no target can be learned.
    """
    seen = sequences.slice_time(None, split.validation_end_us)
    options = training_options(settings.training)
    config = scaled_config(model_config(settings), options, seen, split)
    return train(config, options, seen, split, report=report, checkpoint=checkpoint)


def plain_predictor(
    settings: Settings, sequences: Sequences, split: Split, report: Callable[[EpochReport], None]
) -> Predictor:
    """A predictor of the plain preset, otherwise with the same settings, as another baseline with carried state."""
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
    """A predictor that is retrained from its weights every ``every_days`` of the test part, on all earlier readings."""
    options = training_options(settings.training)
    models = list(retrain_every(round(every_days * _DAY_US), first, options, sequences, split, report))
    return RetrainedPredictor(models, f"{MODEL}, every {every_days:g} days", settings.adaptation)


@dataclass(frozen=True)
class Evaluation:
    """The result of a back-test: ``scores`` and ``predictors`` by predictor, the model's under ``name``.

    The predictors hold states from near the start of the test part, so that plots of the test part need not step
    through all earlier readings again.
    """

    name: str
    forecaster: Forecaster
    sequences: Sequences
    split: Split
    scores: dict[str, Scores]
    adaptation: Adaptation
    predictors: dict[str, Predictor] = field(default_factory=dict)

    @property
    def config(self) -> ModelConfig:
        """The configuration of the model."""
        return self.forecaster.config

    @property
    def model_scores(self) -> Scores:
        """The scores of the model."""
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
    robust: bool = False,
    scale_until_us: int | None = None,
) -> Evaluation:
    """Scores of a model and the baselines on the test part; the baselines are fitted on all earlier readings.

    The model's forecasts adapt with ``adaptation``, as in the stream. The model is scored again for each adaptation in
    ``also``, and the predictors in ``beside`` are scored too.

    The scale of scores is the seasonal difference of each sensor or, if ``standardise``, its standard deviation, from
    the readings before ``scale_until_us``, by default the training part. If ``robust``, a few absurd values do not
    inflate the seasonal difference, so that their sensor keeps its weight in means over sensors; published figures use
    the plain difference.

    Raises:
        ValueError: the test part has no forecast to score.
    """
    config, test_us = forecaster.config, split.validation_end_us
    models = [model_predictor(forecaster, name, adaptation)]
    models += [model_predictor(forecaster, f"{name}, {other.level}", other) for other in also]
    predictors = [*models, *beside, *baselines(config, sequences, test_us)]
    until_us = split.train_end_us if scale_until_us is None else scale_until_us
    if standardise:
        scale = standard_deviations(sequences, config, until_us)
    else:
        scale = seasonal_scale(sequences, config, until_us, robust=robust)
    scores = backtest(predictors, sequences, config, test_us, scale=scale)
    by_name = {predictor.name: predictor for predictor in predictors}
    return Evaluation(name, forecaster, sequences, split, scores, adaptation, by_name)


def standard_deviations(sequences: Sequences, config: ModelConfig, until_us: int) -> NDArray[np.float64]:
    """(sensors, targets): of the values before ``until_us``; 1 if there are no values or all are equal."""
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
