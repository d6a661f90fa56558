"""Plots of a training and of a back-test, as matplotlib figures without its global state.

Series differ in line style, marker and colour (Okabe and Ito's palette for colour-blind readers).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import matplotlib.dates
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray

from model.backtest import ForecastRequest, Predictor, ask
from model.config import ModelConfig
from model.metrics import Scores
from model.sequences import Sequences
from model.state_age import LossByAge
from model.training import EpochReport
from pipeline.evaluation.plot_text import LONGEST_NAME, draw_legend, drawable, legend_name, set_labels

_dates: Any = matplotlib.dates  # ships no types

_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_DASHES: Final = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
_MARKERS: Final = ("o", "s", "^", "D", "v", "P")
_INK: Final = "#333333"
_ROW_IN: Final = 3.2
_WIDTH_IN: Final = 9.0
_POINTS_OFF: Final = 20.0  # percentage points of coverage shown on both sides of the nominal value
# Past shown before a forecast: the longer of this many horizons and this many seasons.
_PAST_HORIZONS: Final = 1
_PAST_SEASONS: Final = 2


def draw_loss(epochs: Sequence[EpochReport]) -> Figure:
    """Training and validation loss by epoch; a line marks the epoch whose weights were kept."""
    figure = Figure(figsize=(_WIDTH_IN, 3.6), layout="constrained")
    axes = figure.subplots()
    numbers = [epoch.epoch for epoch in epochs]
    for number, (label, losses) in enumerate(
        {
            "training": [epoch.train_loss for epoch in epochs],
            "validation": [epoch.validation_loss for epoch in epochs],
        }.items()
    ):
        axes.plot(numbers, losses, **_series(number), label=label)
    if epochs:
        best = min(epochs, key=lambda epoch: epoch.validation_loss)
        axes.axvline(best.epoch, color=_INK, lw=0.8, ls=":", label=f"best: epoch {best.epoch}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _label(axes, "Loss while training", "epoch", "loss (scaled by sensor)")
    draw_legend(axes, frameon=False)
    return figure


def draw_scores(scores: Mapping[str, Scores]) -> Figure:
    """For each target: error of the median and coverage of the interval by horizon step, and calibration."""
    first = next(iter(scores.values()))
    figure = Figure(figsize=(_WIDTH_IN * 1.4, _ROW_IN * len(first.targets)), layout="constrained")
    grid = figure.subplots(len(first.targets), 3, squeeze=False)
    for row, target in enumerate(first.targets):
        error, coverage, calibration = grid[row]
        ahead = np.arange(1, first.n.shape[1] + 1)
        for number, (name, score) in enumerate(scores.items()):
            style = _series(number, markers=len(ahead) <= 48)
            label = legend_name(name)
            error.plot(ahead, score.by_horizon("mae")[row], **style, label=label)
            coverage.plot(ahead, 100.0 * score.by_horizon("coverage")[row], **style, label=label)
            off = 100.0 * (score.calibration()[row] - np.array(score.quantiles))
            calibration.plot(score.quantiles, off, **_series(number), label=label)
        nominal = 100.0 * first.nominal_coverage
        coverage.axhline(nominal, color=_INK, lw=0.8, ls=":")
        # The same range in every plot, so that deviations compare by eye; wider if a curve needs it.
        lowest, highest = coverage.get_ylim()
        coverage.set_ylim(min(lowest, nominal - _POINTS_OFF), max(highest, min(nominal + _POINTS_OFF, 101.0)))
        calibration.axhline(0.0, color=_INK, lw=0.8, ls=":")
        lowest, highest = calibration.get_ylim()
        calibration.set(xlim=(0.0, 1.0), ylim=(min(lowest, -_POINTS_OFF / 2), max(highest, _POINTS_OFF / 2)))
        error.set_ylim(bottom=0.0)
        name = drawable(target, LONGEST_NAME)
        _label(error, f"{name}: error", "steps ahead", f"mean absolute error ({drawable(target, 12)}'s unit)")
        _label(coverage, f"{name}: {first.nominal_coverage:.0%} interval", "steps ahead", "values within it (%)")
        _label(calibration, f"{name}: calibration", "quantile level", "values below it, less the level (points)")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    draw_legend(figure, handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def draw_state_age(losses: LossByAge, warmup_steps: int) -> Figure:
    """Loss by steps since a reset of the state, and the loss with states that were never reset."""
    figure = Figure(figsize=(_WIDTH_IN, 3.6), layout="constrained")
    axes = figure.subplots()
    curves = {"state reset": losses.restarted}
    curves |= {f"{name}, never reset": curve for name, curve in losses.carried.items()}
    for number, (name, curve) in enumerate(curves.items()):
        axes.plot(losses.ages, curve, **_series(number), label=legend_name(name))
    axes.axvline(warmup_steps, color=_INK, lw=0.8, ls=":", label="counts as warm")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_ylim(bottom=0.0)
    _label(axes, "Loss by age of the state, at the same readings", "steps since the reset", "pinball loss (scaled)")
    draw_legend(axes, frameon=False)
    return figure


def draw_forecasts(
    predictor: Predictor,
    sequences: Sequences,
    config: ModelConfig,
    scores: Scores,
    start_us: int,
    beside: Sequence[Predictor] = (),
) -> Figure:
    """Quantile fans and readings for the sensors with the worst, the median and the best loss; a row per target.

    Each forecast follows the middle reading from ``start_us`` on with a whole horizon. For the predictors ``beside``
    only medians are drawn.
    """
    chosen = _worst_middle_best(scores)
    rows, columns = len(config.targets), max(len(chosen), 1)
    figure = Figure(figsize=(1.0 + 4.4 * columns, _ROW_IN * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    steps = [_middle_step(sequences, config, sensor, start_us) for _, sensor in chosen]
    pasts = [sequences.past(sensor, step + 1) for (_, sensor), step in zip(chosen, steps, strict=True)]
    fans = ask(predictor, [ForecastRequest(past, len(past) - 1) for past in pasts])
    for column, ((rank, sensor), step, past, (fan,)) in enumerate(zip(chosen, steps, pasts, fans, strict=True)):
        others = {one.name: one.forecasts(past, 0, len(past) - 1, len(past))[0] for one in beside}
        for row, target in enumerate(config.targets):
            medians = {name: found[row, config.median_index] for name, found in others.items()}
            _draw_fan(grid[row, column], sequences, config, sensor, step, fan[row], medians, row)
            name = drawable(sequences.sensors[sensor], LONGEST_NAME)
            title = f"{name} ({rank})" if rank else name
            _label(grid[row, column], title, "UTC", target if column == 0 else "")
    if chosen:
        handles, labels = grid[0, 0].get_legend_handles_labels()
        draw_legend(figure, handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def _draw_fan(
    axes: Axes,
    sequences: Sequences,
    config: ModelConfig,
    sensor: int,
    step: int,
    fan: NDArray[np.float64],
    medians: Mapping[str, NDArray[np.float64]],
    row: int,
) -> None:
    """One target's quantiles (Q, h) issued after ``step``, with the readings before and after."""
    issued_us = int(sequences.timestamp_us[step])
    past = max(_PAST_HORIZONS * config.horizon_steps, _PAST_SEASONS * config.season_steps)
    lo, hi = sequences.span(
        sensor, issued_us - past * config.cadence_us, issued_us + (config.horizon_steps + 1) * config.cadence_us
    )
    column = config.target_indices[row]
    axes.plot(
        _moments(sequences.timestamp_us[lo:hi]), sequences.values[lo:hi, column], color=_INK, lw=1.0, label="readings"
    )
    ahead = _moments(issued_us + np.arange(1, config.horizon_steps + 1) * config.cadence_us)
    median = config.median_index
    for below in range(median):
        above = len(config.quantiles) - 1 - below
        if above > median:
            label = f"{config.quantiles[below]:g} to {config.quantiles[above]:g}"
            axes.fill_between(ahead, fan[below], fan[above], color=_COLOURS[0], alpha=0.22, lw=0, label=label)
    single: dict[str, Any] = {"marker": "o", "ms": 4} if len(ahead) == 1 else {}  # one point needs a marker
    for number, (name, values) in enumerate(medians.items(), start=1):
        style: dict[str, Any] = {"color": _COLOURS[number], "ls": _DASHES[number], "lw": 1.0}
        axes.plot(ahead, values, **style, **single, label=legend_name(name))
    axes.plot(ahead, fan[median], color=_COLOURS[0], lw=1.6, ls="--", **single, label="median forecast")
    axes.axvline(_moments(np.array([issued_us]))[0], color=_INK, lw=0.8, ls=":", label="issued")
    # These limits fit a tick interval to any length of time; smaller ones leave some axes without ticks.
    locator = _dates.AutoDateLocator(minticks=3, maxticks=7)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(_dates.ConciseDateFormatter(locator))


def _worst_middle_best(scores: Scores) -> list[tuple[str, int]]:
    loss = scores.by_sensor("pinball")
    ranked = [int(sensor) for sensor in np.argsort(-loss, kind="stable") if not np.isnan(loss[sensor])]
    if len(ranked) < 3:
        return [("", sensor) for sensor in ranked]
    return [("worst", ranked[0]), ("median", ranked[len(ranked) // 2]), ("best", ranked[-1])]


def _middle_step(sequences: Sequences, config: ModelConfig, sensor: int, start_us: int) -> int:
    """The middle reading of the sensor among those whose forecasts were scored."""
    end_us = int(sequences.timestamp_us.max()) + 1
    lo, hi = sequences.span(sensor, start_us - config.cadence_us, end_us - config.horizon_steps * config.cadence_us)
    readings = lo + np.flatnonzero(sequences.observed[lo:hi])
    return int(readings[len(readings) // 2])


def _moments(timestamp_us: NDArray[np.int64]) -> NDArray[np.datetime64]:
    return timestamp_us.astype("datetime64[us]")


def _series(number: int, markers: bool = True) -> dict[str, Any]:
    return {
        "color": _COLOURS[number % len(_COLOURS)],
        "ls": _DASHES[number % len(_DASHES)],
        "marker": _MARKERS[number % len(_MARKERS)] if markers else None,
        "ms": 3.5,
        "lw": 1.5,
    }


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    set_labels(axes, title, x, y, fontsize=10, loc="left")
    axes.grid(color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
