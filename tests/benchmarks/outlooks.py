"""``python -m tests.benchmarks.outlooks``: the effect of outlooks of TEMP and WSPM on the forecasts of Beijing.

The outlooks are made from later readings and noise (``made_outlooks``). Models are trained without outlooks, with them,
and with the same outlooks without noise, and the product's evaluator scores all of them on the same labels of the test
part. Then the command checks that later outlooks change no earlier forecast and no earlier score, and that
``assert_causal`` catches outlooks that come before their time.

The tables go to OUTLOOKS.md beside this file. Trained models are kept in the folder ``--runs`` and used again. The exit
code is 1 if a check fails, or if the outlooks do not make the forecasts of TEMP better.

Letters: K targets, Q quantiles, h horizon steps, n steps.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.backtest import Metric, Scores, backtest, model_predictor
from model.config import ModelConfig
from model.forecaster import Forecaster
from model.outlooks import NO_OUTLOOK
from model.sequences import Sequences, Split
from pipeline.evaluation.evaluate import split_by
from pipeline.files.reading_table import ReadingTable, read_readings
from pipeline.settings import Settings, load_settings
from tests.benchmarks.case import kept_model
from tests.benchmarks.made_outlooks import (
    COVARIATES,
    EVERY_STEPS,
    NOISE,
    STEPS,
    MadeOutlooks,
    Weather,
    joined,
    with_group,
)
from tests.benchmarks.markdown import mean, table
from tests.benchmarks.outlook_leaks import check_leaks, check_revisions
from tests.benchmarks.quality import BEIJING_LAYOUT, BEIJING_SETTINGS, BEIJING_SPLIT, beijing_parser

Floats = NDArray[np.float64]
BySeed = Mapping[str, Sequence["Losses"]]  # variant -> the losses of each seed

REPORT: Final = Path(__file__).with_name("OUTLOOKS.md")
WITHOUT: Final = "without"
WITH: Final = "with outlooks"
EXACT: Final = "outlooks without noise"
ITSELF: Final = "the outlook itself"  # its value as the forecast
AHEAD: Final = (1, 6, 12, 24)
MUST_HELP: Final = ("TEMP", (12, 24))  # target and steps ahead where the outlooks must make forecasts better
METRICS: Final[dict[Metric, str]] = {"pinball": "pinball loss", "mae": "mean absolute error"}
INTRO: Final = """\
`python -m tests.benchmarks.outlooks` wrote this page. **The outlooks are made from the readings to come, with noise.**
No weather forecast is behind them. The figures show how models use outlooks of this quality, not how good the forecasts
of a weather service are. Each outlook tells {covariates} of the next {steps} hours, as means over the stations of
Beijing. One comes every {every} hours, for all stations as a group, after the readings of its hour. Its errors are a
random walk over the hours ahead, so their deviation grows with the root of the hours. At 24 hours it is {share:g} of
the root mean square of the covariate's change over 24 hours, here {deviations}. A negative speed of
the wind becomes 0. Every outlook has noise of its own.

All models have the same settings and are scored on the same labels; the newest fifth of the readings is the test part.
*Outlooks without noise* are a bound: their models are trained and scored with the exact means to come. *The outlook
itself* is the newest outlook's value as the forecast of a station, so its error contains the station's distance from
the mean. All figures are in the target's unit. Seeds: {seeds}."""
CHECKED: Final = """\
The same run checked two things with the models of the column *with outlooks*. If all outlooks from the
middle of the test part on are changed, and as many are added, no byte of an earlier forecast or score changes. And
`assert_causal`, which finds forecasts that depend on the future, accepts the outlooks, and catches the same outlooks if
they come six hours before their time."""


@dataclass(frozen=True)
class Losses:
    """The mean losses of one model by target and step ahead."""

    targets: tuple[str, ...]
    by_metric: Mapping[Metric, Floats]  # each (K, h), in the unit of the target
    labels: NDArray[np.int64]  # (K, h)

    @classmethod
    def of(cls, scores: Scores) -> "Losses":
        """The means over all sensors' labels."""
        labels = scores.count.sum(axis=0)
        return cls(scores.targets, {name: scores.sums[name].sum(axis=0) / labels for name in METRICS}, labels)

    def at(self, metric: Metric, target: str, step: int | None) -> float:
        """The loss at a step ahead; None: the mean over all steps."""
        by_step, labels = (each[self.targets.index(target)] for each in (self.by_metric[metric], self.labels))
        return float(by_step[step - 1] if step is not None else (by_step * labels).sum() / labels.sum())


class OutlookItself:
    """Forecasts the value of the newest outlook, with intervals of no width; 0 where no outlook tells it."""

    name = ITSELF

    def __init__(self, config: ModelConfig) -> None:
        self._config = config

    def forecasts(self, sequences: Sequences, sensor: int, lo: int, hi: int) -> Floats:
        """(hi-lo, K, Q, h); 0 for targets without a covariate."""
        config, outlooks = self._config, sequences.outlooks
        assert outlooks is not None
        assert sequences.outlook is not None
        assert config.outlook is not None
        row = sequences.outlook[lo:hi]
        since = (sequences.timestamp_us[lo:hi] - outlooks.first_us[row]) // config.cadence_us
        cell = since[:, None] + np.arange(1, config.horizon_steps + 1)
        known = (row != NO_OUTLOOK)[:, None] & (cell >= 0) & (cell < config.outlook.steps)
        values = outlooks.values[row[:, None], np.where(known, cell, 0)]  # (n, h, C)
        values = np.nan_to_num(np.where(known[..., None], values, 0.0))
        found = np.zeros((hi - lo, config.target_count, len(config.quantiles), config.horizon_steps))
        for number, target in enumerate(config.targets):
            if target in config.outlook.covariates:
                found[:, number] = values[:, None, :, config.outlook.covariates.index(target)]
        return found


@dataclass(frozen=True)
class Case:
    """A data set with the settings of a variant of the outlooks."""

    settings: Settings
    sequences: Sequences
    split: Split


def report(by_seed: BySeed, targets: Sequence[str]) -> str:
    """A table for each metric: targets and steps ahead, with a column for each variant."""
    parts = []
    for metric, name in METRICS.items():
        rows = []
        for target in targets:
            for step in (*AHEAD, None):
                losses = {
                    variant: [each.at(metric, target, step) for each in found] for variant, found in by_seed.items()
                }
                itself = losses.pop(ITSELF) if target in COVARIATES else None
                losses.pop(ITSELF, None)
                base = mean(losses[WITHOUT])
                figures = [f"{base:.3f}"]
                for variant in list(losses)[1:]:
                    changes = [
                        after / before - 1.0 for after, before in zip(losses[variant], losses[WITHOUT], strict=True)
                    ]
                    figures += [f"{mean(losses[variant]):.3f}", _range(changes)]
                figures.append("" if itself is None else f"{itself[0]:.3f}")
                rows.append([target, f"1 to {_horizon(by_seed)}" if step is None else str(step), *figures])
        variants = [each for each in by_seed if each not in (WITHOUT, ITSELF)]
        header = ["target", "hours ahead", WITHOUT, *(each for name in variants for each in (name, "change")), ITSELF]
        parts.append(f"{name.capitalize()}:\n\n{table(header, rows)}")
    return "\n\n".join(parts)


def unmet(by_seed: BySeed) -> list[str]:
    """A line for each place where the outlooks must help and do not, on average over the seeds."""
    target, steps = MUST_HELP
    found = []
    for step in steps:
        without, with_them = (
            mean([each.at("pinball", target, step) for each in by_seed[name]]) for name in (WITHOUT, WITH)
        )
        if not with_them < without:
            found.append(f"{target}, {step} hours ahead: {with_them:.3f} with outlooks and {without:.3f} without")
    return found


def main() -> None:
    options = _options()
    settings = load_settings(BEIJING_SETTINGS)
    readings = read_readings([options.file], BEIJING_LAYOUT, settings.features)
    weather = Weather.of(readings, settings.cadence_us)
    noisy, exact = (MadeOutlooks.of(weather, noise, seed=0) for noise in (NOISE, 0.0))
    known_ahead = with_group(settings, readings.sensors)
    cases = {
        WITHOUT: _case(settings, readings, None),
        WITH: _case(known_ahead, readings, noisy),
        EXACT: _case(known_ahead, readings, exact),
    }
    by_seed: dict[str, list[Losses]] = {name: [] for name in (*cases, ITSELF)}
    for seed in options.seeds:
        for name, case in cases.items():
            forecaster = _trained(name, case, seed, options)
            predictors = [model_predictor(forecaster, name, settings.adaptation)]
            if name == WITH:
                middle_us = (case.split.validation_end_us + int(case.sequences.timestamp_us.max())) // 2
                check_revisions(forecaster, readings, known_ahead, noisy, noisy.issue_before(middle_us))
                check_leaks(forecaster, readings, known_ahead, noisy, noisy.issue_before(middle_us))
                predictors.append(OutlookItself(forecaster.config))
            scores = backtest(predictors, case.sequences, forecaster.config, case.split.validation_end_us)
            for variant, each in scores.items():
                by_seed[variant].append(Losses.of(each))
    deviations = " and ".join(
        f"{NOISE * change:.1f} {unit}" for change, unit in zip(weather.daily_change(), ("°C", "m/s"), strict=True)
    )
    intro = INTRO.format(
        covariates=" and ".join(COVARIATES),
        steps=STEPS,
        every=EVERY_STEPS,
        share=NOISE,
        deviations=deviations,
        seeds=", ".join(map(str, options.seeds)),
    )
    text = f"# Outlooks\n\n{intro}\n\n{report(by_seed, settings.targets)}\n\n{CHECKED}\n"
    options.report.write_text(text, encoding="utf-8")
    print(f"the tables are in {os.path.relpath(options.report)}")
    if missed := unmet(by_seed):
        sys.exit("\n".join(missed))


def _case(settings: Settings, readings: ReadingTable, made: MadeOutlooks | None) -> Case:
    return Case(settings, *split_by(BEIJING_SPLIT, joined(readings, settings, made)))


def _trained(name: str, case: Case, seed: int, options: argparse.Namespace) -> Forecaster:
    """The kept model of a variant; a missing one is trained."""
    folder: Path = options.runs / f"seed-{seed}" / name.replace(" ", "-")
    training = case.settings.training.model_copy(update={"seed": seed, "budget_s": options.budget})
    settings = case.settings.model_copy(update={"training": training})
    return kept_model(folder, settings, case.sequences, case.split)


def _horizon(by_seed: BySeed) -> int:
    return by_seed[WITHOUT][0].labels.shape[1]


def _range(shares: Sequence[float]) -> str:
    """The mean share, and the lowest and highest if there are several."""
    text = f"{100.0 * mean(shares):+.1f} %"
    low, high = (f"{100.0 * each:+.1f}" for each in (min(shares), max(shares)))
    return text if len(shares) == 1 else f"{text} ({low} to {high})"


def _options() -> argparse.Namespace:
    parser = beijing_parser(
        "outlooks",
        REPORT,
        "Forecast Beijing with and without outlooks that are made from later readings and noise.",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
