"""``python -m tests.benchmarks.gift_protocol FILE TERM``: accuracy by GIFT-Eval's protocol, on a wide hourly CSV file.

Each numeric column is a sensor. The test part consists of the last windows, each one horizon long. The model is trained
on the steps before the test part and forecasts only at the start of each window. Its state is carried from the first
reading on.

The scores are GIFT-Eval's, over all sensors, windows and steps, as gluonts' ``evaluate_model(axis=None)`` aggregates
them: MASE (season 24, scaled by the seasonal error of all readings before the window), and the mean weighted quantile
loss over nine levels, which GIFT-Eval calls CRPS. A seasonal naive forecast is scored, too; its quantiles
are all equal to its point forecast. Compare ratios to it: GIFT-Eval's own ett1/H sums 15-minute values, so absolute
scores are not comparable. On ETTh1.csv, short, the naive MASE is 1.0012.

Letters: S sensors, N steps of the shortest sensor, Q quantiles, h horizon steps.
"""

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.backtest import model_predictor
from model.config import Adaptation
from model.sequences import Sequences, Split
from model.training import EpochReport
from pipeline.evaluation.evaluate import train_on
from pipeline.files.file_layout import FileLayout
from pipeline.files.reading_table import read_readings
from pipeline.settings import Settings
from pipeline.windows import sequences_from_table

Floats = NDArray[np.float64]

TERMS: Final = {"short": 48, "medium": 480, "long": 720}  # horizon steps of hourly data
LEVELS: Final = tuple(round(0.1 * number, 1) for number in range(1, 10))
MEDIAN: Final = LEVELS.index(0.5)
SEASON_STEPS: Final = 24
TEST_PART: Final = 0.1
MOST_WINDOWS: Final = 20
VALIDATION_PART: Final = 0.1  # share of the steps before the test part


@dataclass
class Score:
    """Errors of one predictor, over all sensors and windows."""

    scaled_errors: dict[str, list[float]] = field(default_factory=dict)  # sensor -> one mean per window
    losses: Floats = field(default_factory=lambda: np.zeros(len(LEVELS)))
    absolute_labels: float = 0.0

    def add(self, sensor: str, labels: Floats, quantiles: Floats, seasonal_error: float) -> None:
        """Count one window: labels (h,) and quantiles (Q, h)."""
        errors = labels - quantiles
        levels = np.array(LEVELS)[:, None]
        self.losses += 2.0 * np.nansum(np.maximum(levels * errors, (levels - 1.0) * errors), axis=1)
        self.absolute_labels += float(np.nansum(np.abs(labels)))
        scaled = float(np.nanmean(np.abs(errors[MEDIAN]))) / seasonal_error
        self.scaled_errors.setdefault(sensor, []).append(scaled)

    @property
    def mase(self) -> float:
        """The mean absolute scaled error."""
        return float(np.mean([error for errors in self.scaled_errors.values() for error in errors]))

    @property
    def crps(self) -> float:
        """The mean weighted quantile loss."""
        return float(np.mean(self.losses / self.absolute_labels))


def window_starts(shortest: int, horizon_steps: int) -> list[int]:
    """Index of the first step of each test window, ascending.

    Raises:
        ValueError: fewer steps than the test part and two seasons before it need.
    """
    windows = min(max(1, math.ceil(TEST_PART * shortest / horizon_steps)), MOST_WINDOWS)
    first = shortest - windows * horizon_steps
    if first < 2 * SEASON_STEPS:
        raise ValueError(
            f"{shortest:,} steps are too few: the test part takes {windows * horizon_steps:,} of them, and at least "
            f"{2 * SEASON_STEPS} must lie before it"
        )
    return [first + window * horizon_steps for window in range(windows)]


def seasonal_naive(past: Floats, horizon_steps: int) -> Floats:
    """(Q, h): the last season repeated, on every level."""
    repeated = np.tile(past[-SEASON_STEPS:], horizon_steps // SEASON_STEPS + 1)[:horizon_steps]
    return np.tile(repeated, (len(LEVELS), 1))


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train, forecast and score; return the object to print."""
    began = time.monotonic()
    horizon_steps = TERMS[options.term]
    settings = Settings(
        features=("value",),
        targets=("value",),
        cadence_s=3_600,
        horizon_steps=horizon_steps,
        quantiles=LEVELS,
        forecaster={"adaptation": options.adaptation},
        training={"seed": options.seed, "budget_s": options.budget, "hidden_size": options.hidden},
    )
    layout = FileLayout(time_column=None, timezone="UTC", sensor_column=None, columns_as_sensors=True)
    sequences = sequences_from_table(read_readings([options.file], layout, settings.features), settings)
    starts = window_starts(int(np.diff(sequences.starts).min()), horizon_steps)
    times = sequences.timestamp_us[sequences.starts[0] : sequences.starts[1]]
    split = Split(int(times[int(starts[0] * (1.0 - VALIDATION_PART))]), int(times[starts[0]]))
    forecaster = train_on(settings, sequences, split, _report).forecaster
    predictor = model_predictor(forecaster, "streamgru", Adaptation(options.adaptation, True))
    model, naive = Score(), Score()
    for sensor, name in enumerate(sequences.sensors):
        values = _values(sequences, sensor)
        for start in starts:
            issued = int(sequences.starts[sensor]) + start - 1
            labels, past = values[start : start + horizon_steps], values[:start]
            seasonal_error = float(np.nanmean(np.abs(past[SEASON_STEPS:] - past[:-SEASON_STEPS])))
            quantiles = predictor.forecasts(sequences, sensor, issued, issued + 1)[0, 0]
            model.add(name, labels, quantiles, seasonal_error)
            naive.add(name, labels, seasonal_naive(past, horizon_steps), seasonal_error)
    return {
        "file": options.file.name,
        "term": options.term,
        "adaptation": options.adaptation,
        "seed": options.seed,
        "hidden": options.hidden,
        "windows": len(starts),
        "MASE": round(model.mase, 4),
        "CRPS": round(model.crps, 4),
        "naive MASE": round(naive.mase, 4),
        "naive CRPS": round(naive.crps, 4),
        "MASE by sensor": {name: round(float(np.mean(errors)), 3) for name, errors in model.scaled_errors.items()},
        "seconds": round(time.monotonic() - began),
    }


def main() -> None:
    print(json.dumps(run(_options())))


def _values(sequences: Sequences, sensor: int) -> Floats:
    values: Floats = sequences.values[sequences.starts[sensor] : sequences.starts[sensor + 1], 0]
    return values


def _report(epoch: EpochReport) -> None:
    losses = f"train {epoch.train_loss:.4f}, validation {epoch.validation_loss:.4f}"
    print(f"epoch {epoch.epoch}: {losses}, {epoch.seconds:.0f} s", file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gift_protocol",
        description="Train on a wide CSV file of hourly values, and score the forecasts by GIFT-Eval's protocol.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="CSV file: a column of times, and one per sensor")
    parser.add_argument(
        "term", choices=TERMS, help="horizon: " + ", ".join(f"{name} {steps} steps" for name, steps in TERMS.items())
    )
    parser.add_argument("--adaptation", choices=("off", "light", "full"), default="light", help="(default: light)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training (default: 0)")
    parser.add_argument("--budget", type=float, default=900.0, help="seconds to train at most (default: 900)")
    parser.add_argument("--hidden", type=int, default=64, help="size of the hidden state (default: 64)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
