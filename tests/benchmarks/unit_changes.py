"""``python -m tests.benchmarks.unit_changes FILE...``: errors after a change of unit, and the rule's false alarms.

First, the rule of ``model.unit_kernel`` follows the undisturbed values of every file. None of its alarms should be
accepted. Then a model is trained on the first file, unless ``--alarms-only`` is given. The states of all sensors are
carried to random moments of the test part, and their units change there. Errors are converted back to the original unit
and compared with the errors without the change.

Each numeric column of a CSV file is a sensor, or with ``--sensor-column`` a feature.

Letters: S sensors, N steps, F features.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from model.config import Adaptation, Level
from model.sequences import Sequences
from model.unit_change import follow_from_blank
from model.unit_kernel import ACCEPTED, CLEARED, GAVE_UP, HELD
from pipeline.evaluation.evaluate import split_by, standard_deviations, train_on
from pipeline.files.file_layout import FileLayout
from pipeline.files.reading_table import read_readings
from pipeline.settings import Settings
from pipeline.windows import sequences_from_table, usual_interval_us
from tests.benchmarks.case import Case, Result, report_epoch
from tests.benchmarks.disturbances import NO_CHANGE, UNIT_CHANGES, UnitChange, rescaled
from tests.benchmarks.markdown import table

SPLIT: Final = "0.6,0.1,0.3"
# More changes than in QUALITY.md. The model does not know Celsius and Fahrenheit; they show what happens then.
CHANGES: Final = {
    **UNIT_CHANGES,
    "minus 100 deviations": UnitChange(deviations=-100.0),
    "times 60": UnitChange(60.0),
    "divided by 60": UnitChange(1.0 / 60.0),
    "times 1,000,000": UnitChange(1e6),
    "plus 273.15": UnitChange(offset=273.15),
    "Celsius to Fahrenheit": UnitChange(1.8, 32.0),
}
RECOVERED: Final = 1.5  # times the squared error without the change
WITHIN: Final = 48  # steps


@dataclass(frozen=True)
class Alarms:
    """The rule's outcomes over the undisturbed values of a file."""

    values: int
    withheld: int
    cleared: int  # suspicions that ended because the evidence vanished
    gave_up: int  # suspicions that ended without a decision
    accepted: int

    @classmethod
    def of(cls, sequences: Sequences) -> "Alarms":
        """The outcomes over all sensors, features and steps; each sensor begins blank."""
        found = follow_from_blank(sequences.starts, sequences.reset, sequences.values)
        counts = [int((found.outcome == outcome).sum()) for outcome in (HELD, CLEARED, GAVE_UP, ACCEPTED)]
        return cls(int(np.isfinite(sequences.values).sum()), *counts)

    def row(self, name: str) -> list[str]:
        """A row of the table."""
        counts = (self.values, self.withheld, self.cleared, self.gave_up, self.accepted)
        per_million = 1e6 / max(self.values, 1)
        rates = (self.withheld * per_million, self.accepted * per_million)
        return [name, *(f"{count:,}" for count in counts), *(f"{rate:.1f}" for rate in rates)]


def main() -> None:
    options = _options()
    rows, total = [], np.zeros(5, np.int64)
    first: tuple[Settings, Sequences] | None = None
    for path in options.files:
        settings, sequences = _read(path, options)
        first = first or (settings, sequences)
        alarms = Alarms.of(sequences)
        rows.append(alarms.row(path.stem))
        total += (alarms.values, alarms.withheld, alarms.cleared, alarms.gave_up, alarms.accepted)
    rows.append(Alarms(*total.tolist()).row("all"))
    header = ["file", "values", "withheld", "cleared", "gave up", "accepted", "withheld per million", "accepted"]
    print("Undisturbed:\n\n" + table(header, rows), flush=True)
    if options.alarms_only or first is None:
        return
    case = _train(*first, options)
    for level in options.adaptation:
        found = rescaled(case, Adaptation(level, True), CHANGES)
        print(f"\n{options.files[0].stem}, {options.horizon} steps, adaptation {level}:\n\n{report(found)}", flush=True)


def report(found: Result) -> str:
    """A table of squared errors as multiples of the errors without the change, and the changes that were followed."""
    steps, errors = found["steps"], found["errors"]
    names = [name for name in errors if name != NO_CHANGE]
    ratios = {
        name: [after["mse"] / before["mse"] for after, before in zip(errors[name], errors[NO_CHANGE], strict=True)]
        for name in names
    }
    rows = []
    for stage, end in enumerate(steps):
        begin = steps[stage - 1] + 1 if stage else 1
        span = f"{begin:,} to {end:,}" if end > begin else f"{end:,}"
        rows.append([span, *(f"{ratios[name][stage]:,.3f}" for name in names)])
    late = [stage for stage, end in enumerate(steps) if end > WITHIN]
    followed = [name for name in names if all(ratios[name][stage] < RECOVERED for stage in late)]
    missed = [name for name in names if name not in followed]
    said = [f"Below {RECOVERED:g} from step {WITHIN + 1} on: {', '.join(followed) or 'none'}."]
    said += [f"Not so: {', '.join(missed)}."] if missed else []
    return table(["steps since", *names], rows) + "\n\n" + " ".join(said)


def _read(path: Path, options: argparse.Namespace) -> tuple[Settings, Sequences]:
    """The steps in a file, at its usual cadence."""
    features = tuple(options.features.split(",")) if options.sensor_column else ("value",)
    wanted: dict[str, Any] = {
        "features": features,
        "targets": features[:1],
        "horizon_steps": options.horizon,
        "training": {"seed": options.seed, "budget_s": options.budget},
    }
    layout = FileLayout(
        timezone="UTC", sensor_column=options.sensor_column, columns_as_sensors=options.sensor_column is None
    )
    found = read_readings([path], layout, features)
    usual_us = usual_interval_us(found)
    settings = Settings(**wanted, **({"cadence_s": usual_us / 1e6} if usual_us else {}))
    return settings, sequences_from_table(found, settings)


def _train(settings: Settings, sequences: Sequences, options: argparse.Namespace) -> Case:
    """A model that is trained on the first part of the steps."""
    sequences, split = split_by(SPLIT, sequences)
    forecaster = train_on(settings, sequences, split, report_epoch).forecaster
    scale = standard_deviations(sequences, forecaster.config, split.train_end_us)
    return Case(forecaster, sequences, split, scale, options.seed)


def _options() -> argparse.Namespace:
    levels: tuple[Level, ...] = ("off", "light", "full")
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.unit_changes",
        description="Count the false alarms of the rule for changes of unit, and score forecasts after such changes.",
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="CSV or Parquet; the first trains a model")
    parser.add_argument("--sensor-column", help="column of sensor ids; by default each numeric column is a sensor")
    parser.add_argument("--features", default="value", help="with --sensor-column: columns, the first is the target")
    parser.add_argument("--alarms-only", action="store_true", help="train no model")
    parser.add_argument("--horizon", type=int, default=24, help="steps to forecast (default: 24)")
    parser.add_argument("--budget", type=float, default=40.0, help="seconds to train at most (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="seed of training and moments (default: 0)")
    parser.add_argument(
        "--adaptation", action="append", choices=levels, help="level; repeat it for several (default: light)"
    )
    options = parser.parse_args()
    options.adaptation = options.adaptation or ["light"]
    return options


if __name__ == "__main__":
    main()
