"""``python -m tests.benchmarks.held_out``: sensors that training has not seen, on the Beijing stations.

Each of three folds holds out a third of the stations. A model that is trained without them forecasts them as unknown
sensors. Beside it, a model that is trained on all stations forecasts the same stations. Both begin with blank states at
the same readings, at many moments of the test part, and the product's evaluator scores both on the same labels.

The tables go to HELD_OUT.md beside this file. Trained models are kept in the folder ``--runs`` and used again. The exit
code is 1 if the held-out stations lose more than the promised share.

Letters: S sensors, A ages, K targets, h horizon steps.
"""

import argparse
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.backtest import Scores, backtest, model_predictor
from model.config import Adaptation
from model.forecaster import Forecaster
from model.sequences import Sequences, Split
from pipeline.evaluation.evaluate import split_by
from pipeline.files.reading_table import read_readings
from pipeline.settings import Settings, load_settings
from pipeline.windows import sequences_from_table
from tests.benchmarks.case import kept_model
from tests.benchmarks.markdown import mean, table
from tests.benchmarks.quality import BEIJING_LAYOUT, BEIJING_SETTINGS, BEIJING_SPLIT, beijing_parser

Floats = NDArray[np.float64]

REPORT: Final = Path(__file__).with_name("HELD_OUT.md")
SETTINGS: Final = BEIJING_SETTINGS
FOLDS: Final = 3
# Bounds of the ages in steps since the first reading: the warm-up, the day after it, the rest of that week, later.
EDGES: Final = (0, 24, 48, 192, 672)
# Steps between two beginnings: a week and five hours, so that all hours of the day and days of the week occur.
BEGIN_EVERY_STEPS: Final = 173
MOST_WORSE: Final = 0.15  # share that held-out stations may lose, at the ages of the promise
INTRO: Final = """\
`python -m tests.benchmarks.held_out` wrote this page. Each of three folds holds out four of the twelve stations of
Beijing: a model that is trained on the other eight forecasts them as unknown sensors. A station is compared with itself
in a model that is trained on all twelve. Both models begin with blank states at the same readings, and run for four
weeks. They begin at {begins} moments of the test part, which lie a week and five hours apart. The losses are mean
pinball losses over the next 24 hours, in the target's unit. Wanted: at most {most:g} % worse over the first day and the
first week after a day of warm-up. Seeds: {seeds}. In brackets: the lowest and the highest of the seeds."""


@dataclass(frozen=True)
class Age:
    """A row of the tables."""

    name: str
    bins: slice  # of EDGES
    promised: bool  # whether MOST_WORSE holds


AGES: Final = (
    Age("day 1, the warm-up", slice(0, 1), False),
    Age("day 2", slice(1, 2), True),
    Age("days 2 to 8", slice(1, 3), True),
    Age("days 9 to 28", slice(3, 4), False),
)


@dataclass(frozen=True)
class Losses:
    """Pinball losses of one model, summed over sensors, moments and steps ahead."""

    loss: Floats  # (A, K) in the unit of the target
    labels: NDArray[np.int64]  # (A, K)

    @classmethod
    def of(cls, scores: Sequence[Scores]) -> "Losses":
        """The sums of the scores of all ages."""
        return cls(
            np.stack([each.sums["pinball"].sum(axis=(0, 2)) for each in scores]),
            np.stack([each.count.sum(axis=(0, 2)) for each in scores]),
        )

    def __add__(self, other: "Losses") -> "Losses":
        return Losses(self.loss + other.loss, self.labels + other.labels)

    def mean(self, age: Age, target: int) -> float:
        """The mean loss in the unit of the target."""
        return float(self.loss[age.bins, target].sum() / self.labels[age.bins, target].sum())


@dataclass(frozen=True)
class Pair:
    """The losses of the same sensors over the same labels, in two models."""

    held_out: Losses  # of a model that was trained without the sensors
    trained_on: Losses  # of a model that was trained on them

    def __add__(self, other: "Pair") -> "Pair":
        return Pair(self.held_out + other.held_out, self.trained_on + other.trained_on)

    def worse(self, age: Age, target: int) -> float:
        """The share by which the held-out sensors lose more."""
        return self.held_out.mean(age, target) / self.trained_on.mean(age, target) - 1.0


def of_sensors(sequences: Sequences, sensors: Sequence[int]) -> Sequences:
    """The steps of some sensors."""
    spans = [sequences.span(sensor) for sensor in sensors]
    index = np.concatenate([np.arange(lo, hi) for lo, hi in spans])
    starts = np.cumsum([0, *(hi - lo for lo, hi in spans)])
    return sequences.select(index, starts, tuple(sequences.sensors[sensor] for sensor in sensors))


def beginnings(start_us: int, end_us: int, cadence_us: int, horizon_steps: int) -> range:
    """Moments from ``start_us`` on after which all ages and the last horizon fit before ``end_us``."""
    last_us = end_us - (EDGES[-1] + horizon_steps) * cadence_us
    return range(start_us, last_us + 1, BEGIN_EVERY_STEPS * cadence_us)


def compared(
    without: Forecaster, whole: Forecaster, adaptation: Adaptation, sequences: Sequences, begins_us: Sequence[int]
) -> Pair:
    """The losses of two models that begin with blank states at each of these moments, summed over the moments."""
    config = whole.config
    cadence_us, h = sequences.cadence_us, config.horizon_steps
    pairs = []
    for begin_us in begins_us:
        part = sequences.slice_time(begin_us, begin_us + (EDGES[-1] + h) * cadence_us)
        predictors = [
            model_predictor(without, "held out", adaptation),
            model_predictor(whole, "trained on", adaptation),
        ]
        # The evaluator chooses forecasts by the times of their labels, the first of which follows a step later.
        scores = [
            backtest(predictors, part, config, begin_us + (lo + 1) * cadence_us, begin_us + (hi + h) * cadence_us)
            for lo, hi in itertools.pairwise(EDGES)
        ]
        pairs.append(Pair(*(Losses.of([each[p.name] for each in scores]) for p in predictors)))
    return reduce(add, pairs)


def folds(settings: Settings, sequences: Sequences, split: Split, options: argparse.Namespace) -> list[Pair]:
    """The losses of the stations of each fold."""
    folder = options.runs / f"seed-{settings.training.seed}"
    whole = kept_model(folder / "all", settings, sequences, split)
    found = []
    for fold in range(FOLDS):
        held = range(fold, len(sequences.sensors), FOLDS)
        others = of_sensors(sequences, [each for each in range(len(sequences.sensors)) if each not in held])
        without = kept_model(folder / f"without-{fold}", settings, others, split)
        stations = of_sensors(sequences, held)
        assert not set(stations.sensors) & set(without.config.sensors)
        begins_us = _begins_us(sequences, split, settings, options)
        found.append(compared(without, whole, settings.adaptation, stations, begins_us))
    return found


def report(targets: Sequence[str], by_seed: Sequence[Sequence[Pair]]) -> str:
    """Tables of the losses by age, and of the shares by fold; ``by_seed`` has the folds of each seed."""
    totals = [reduce(add, pairs) for pairs in by_seed]
    rows, by_fold = [], []
    for target, name, age in _cells(targets):
        losses = [
            mean([total.held_out.mean(age, target) for total in totals]),
            mean([total.trained_on.mean(age, target) for total in totals]),
        ]
        shares = [total.worse(age, target) for total in totals]
        wanted = f"at most {_percent(MOST_WORSE)}" if age.promised else ""
        rows.append([name, age.name, *(f"{each:.3f}" for each in losses), _range(shares), wanted])
        by_fold.append(
            [name, age.name, *(_range([pairs[fold].worse(age, target) for pairs in by_seed]) for fold in range(FOLDS))]
        )
    header = ["target", "since the first reading", "held out", "trained on", "worse", "wanted"]
    fold_header = [*header[:2], *(f"worse in fold {fold + 1}" for fold in range(FOLDS))]
    return f"{table(header, rows)}\n\nBy fold:\n\n{table(fold_header, by_fold)}"


def unmet(targets: Sequence[str], by_seed: Sequence[Sequence[Pair]]) -> list[str]:
    """A line for each promise that is missed on average over the seeds."""
    totals = [reduce(add, pairs) for pairs in by_seed]
    shares = {
        f"{name}, {age.name}": mean([total.worse(age, target) for total in totals])
        for target, name, age in _cells(targets)
        if age.promised
    }
    return [
        f"{name}: {_percent(share)} worse, must be at most {_percent(MOST_WORSE)}"
        for name, share in shares.items()
        if not share <= MOST_WORSE
    ]


def main() -> None:
    options = _options()
    settings = load_settings(SETTINGS)
    table_of_readings = read_readings([options.file], BEIJING_LAYOUT, settings.features)
    sequences, split = split_by(BEIJING_SPLIT, sequences_from_table(table_of_readings, settings))
    by_seed = []
    for seed in options.seeds:
        training = settings.training.model_copy(update={"seed": seed, "budget_s": options.budget})
        by_seed.append(folds(settings.model_copy(update={"training": training}), sequences, split, options))
    text = report(settings.targets, by_seed)
    if options.part == "test":
        intro = INTRO.format(
            begins=len(_begins_us(sequences, split, settings, options)),
            most=100.0 * MOST_WORSE,
            seeds=", ".join(map(str, options.seeds)),
        )
        options.report.write_text(f"# Stations that training has not seen\n\n{intro}\n\n{text}\n", encoding="utf-8")
        print(f"the tables are in {os.path.relpath(options.report)}")
    else:
        print(text)
    if missed := unmet(settings.targets, by_seed):
        sys.exit("\n".join(missed))


def _begins_us(sequences: Sequences, split: Split, settings: Settings, options: argparse.Namespace) -> range:
    start_us, end_us = split.validation_end_us, int(sequences.timestamp_us.max()) + 1
    if options.part == "validation":
        start_us, end_us = split.train_end_us, split.validation_end_us
    return beginnings(start_us, end_us, sequences.cadence_us, settings.horizon_steps)


def _cells(targets: Sequence[str]) -> Iterator[tuple[int, str, Age]]:
    """The rows of the tables: index and name of the target, and the age."""
    return ((target, name, age) for target, name in enumerate(targets) for age in AGES)


def _percent(share: float) -> str:
    return f"{100.0 * share:+.1f} %"


def _range(shares: Sequence[float]) -> str:
    """The mean share, and the lowest and highest if there are several."""
    text = _percent(mean(shares))
    return text if len(shares) == 1 else f"{text} ({_percent(min(shares))} to {_percent(max(shares))})"


def _options() -> argparse.Namespace:
    parser = beijing_parser(
        "held_out",
        REPORT,
        "Forecast stations that training has not seen, and compare them with themselves trained on.",
    )
    parser.add_argument(
        "--part", choices=("test", "validation"), default="test", help="validation: choose by it; writes no page"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
