"""``python -m tests.benchmarks.bounds --counts FILE...``: forecasts of targets with bounds, beside forecasts without.

Three targets are forecast: PM2.5 and RAIN of the Beijing set, and counts, each file of which is a sensor. For each seed
a model without bounds is trained. The same weights are scored again with bounds, which moves quantiles to them. If
training chooses square roots for the target, a model by roots is trained and scored as well.

All models of a target are trained for the same number of epochs, so that their losses do not depend on the machine's
load. Results that lie in the runs' folder are not computed again.

Letters: n forecasts, K targets, Q quantiles, h horizon steps.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from model.backtest import Predictor, ask, backtest, model_predictor, seasonal_scale
from model.bounds import Bounds, Floats
from model.carrying_predictor import BatchPredictor, ForecastRequest
from model.forecaster import Forecaster
from model.metrics import Metric
from model.scale_choice import choose_scale
from model.sequences import Sequences
from pipeline.evaluation.evaluate import model_config, split_by, train_on
from pipeline.files.file_layout import FileLayout
from pipeline.files.reading_table import ReadingTable, read_readings
from pipeline.settings import Settings, load_settings
from pipeline.windows import sequences_from_table
from tests.benchmarks.case import report_epoch
from tests.benchmarks.markdown import mean, spread, table
from tests.benchmarks.quality import BEIJING, BEIJING_LAYOUT, BEIJING_SETTINGS, BEIJING_SPLIT

SPLIT: Final = BEIJING_SPLIT  # of the counts as well
COUNTS_EVERY_S: Final = 300.0
METRICS: Final[tuple[Metric, ...]] = ("pinball", "mae", "coverage", "width")
WITHOUT: Final = "no bounds"
MOVED: Final = "bounds, the same weights"
ROOTS: Final = "bounds, by square roots"


@dataclass(frozen=True)
class Problem:
    """A target with bounds, and its data."""

    name: str
    settings: Settings  # with one target, and its bounds
    sequences: Sequences

    @property
    def bounds(self) -> Bounds:
        """The bounds of the target."""
        return self.settings.target_bounds[0]

    def without_bounds(self) -> Settings:
        """The settings of a model without bounds."""
        return self.settings.model_copy(update={"bounds": {}})


@dataclass
class Watched(BatchPredictor):
    """A predictor whose forecasts are counted: how many of their quantiles are impossible?"""

    inner: Predictor
    name: str
    bounds: Bounds
    quantiles: int = field(default=0, init=False)
    outside: int = field(default=0, init=False)  # quantiles beyond the minimum or maximum
    fractions: int = field(default=0, init=False)  # quantiles of a count that are not whole numbers

    def forecasts_together(self, requests: Sequence[ForecastRequest]) -> list[Floats]:
        """(n, K, Q, h) for each request, from the inner predictor."""
        found = ask(self.inner, requests)
        for request, forecasts in zip(requests, found, strict=True):
            issued = forecasts[request.steps.observed[request.lo :]]
            self.quantiles += issued.size
            self.outside += int(((issued < self.bounds.lowest) | (issued > self.bounds.highest)).sum())
            if self.bounds.count:
                self.fractions += int((issued != np.rint(issued)).sum())
        return found


def compare(problem: Problem, seed: int, epochs: int) -> dict[str, Any]:
    """The losses of all models of a problem, and the shares of their quantiles that are impossible."""
    training = problem.settings.training.model_copy(update={"seed": seed, "epochs": epochs, "budget_s": 1e6})
    settings = problem.settings.model_copy(update={"training": training})
    sequences, split = split_by(SPLIT, problem.sequences)
    scaled, (choice,) = choose_scale(model_config(settings), sequences.slice_time(None, split.validation_end_us), split)
    plain = train_on(replace(problem, settings=settings).without_bounds(), sequences, split, report_epoch).forecaster
    models = {WITHOUT: plain, MOVED: with_bounds(plain, settings.target_bounds)}
    if any(scaled.roots):
        models[ROOTS] = train_on(settings, sequences, split, report_epoch).forecaster
    watched = [
        Watched(model_predictor(forecaster, name, settings.adaptation), name, problem.bounds)
        for name, forecaster in models.items()
    ]
    scale = seasonal_scale(sequences, scaled, split.train_end_us)
    scores = backtest(watched, sequences, scaled, split.validation_end_us, scale=scale)
    return {
        "target": problem.name,
        "seed": seed,
        "by_values": choice.by_values,
        "by_roots": choice.by_roots,
        "roots": choice.roots,
        "rows": {
            each.name: {metric: scores[each.name].mean(metric) for metric in METRICS}
            | {"quantiles": each.quantiles, "outside": each.outside, "fractions": each.fractions}
            for each in watched
        },
    }


def with_bounds(forecaster: Forecaster, bounds: tuple[Bounds, ...]) -> Forecaster:
    """The same weights, whose forecasts are moved into the bounds."""
    moved = Forecaster(replace(forecaster.config, bounds=bounds))
    moved.load_state_dict(forecaster.state_dict())
    return moved.eval()


def report(results: Sequence[dict[str, Any]]) -> str:
    """The tables of all targets, from the results of all seeds."""
    parts = []
    for name in dict.fromkeys(result["target"] for result in results):
        done = [result for result in results if result["target"] == name]
        parts += [f"### {name}", _choice(done[0]), _losses(done)]
    return "\n\n".join(parts)


def _choice(result: dict[str, Any]) -> str:
    scale = "square roots" if result["roots"] else "its values"
    return (
        f"Training chose {scale}: on the validation part, the pinball loss of the autoregression is "
        f"{result['by_roots']:.4g} with square roots and {result['by_values']:.4g} without."
    )


def _losses(done: Sequence[dict[str, Any]]) -> str:
    rows = []
    for name in done[0]["rows"]:
        found = [result["rows"][name] for result in done]
        losses = [spread([each[metric] for each in found]) for metric in ("pinball", "mae")]
        held = f"{mean([each['coverage'] for each in found]):.1%}"
        width = spread([each["width"] for each in found])
        outside, fractions = (_share(found, kind) for kind in ("outside", "fractions"))
        rows.append([name, *losses, held, width, outside, fractions])
    header = ["forecast", "pinball", "MAE", "80% interval holds", "its width", "quantiles outside", "not whole"]
    return table(header, rows)


def _share(rows: Sequence[dict[str, Any]], kind: str) -> str:
    """The share of all quantiles, which shows "0" for a count of 0 only."""
    count = sum(row[kind] for row in rows)
    return f"{count / sum(row['quantiles'] for row in rows):.2%}" if count else "0"


def beijing(path: Path, target: str, horizon_steps: int) -> Problem:
    """A target of the Beijing set that is never negative."""
    wanted = load_settings(BEIJING_SETTINGS).model_dump()
    wanted |= {"targets": (target,), "bounds": {target: {"minimum": 0.0}}, "horizon_steps": horizon_steps}
    settings = Settings(**wanted)
    readings = read_readings([path], BEIJING_LAYOUT, settings.features)
    return Problem(target, settings, sequences_from_table(readings, settings))


def counts(paths: Sequence[Path], horizon_steps: int) -> Problem:
    """The counts in these files, each of which has one numeric column and is a sensor."""
    settings = Settings(
        features=("value",),
        targets=("value",),
        bounds={"value": {"count": True}},
        cadence_s=COUNTS_EVERY_S,
        horizon_steps=horizon_steps,
    )
    tables = [read_readings([path], FileLayout(timezone="UTC"), settings.features) for path in paths]
    joined = ReadingTable(
        sensors=tuple(path.stem for path in paths),
        sensor_codes=np.repeat(np.arange(len(tables)), [len(each) for each in tables]),
        timestamp_us=np.concatenate([each.timestamp_us for each in tables]),
        values={"value": np.concatenate([each.values["value"] for each in tables])},
        notes=(),
    )
    return Problem("counts", settings, sequences_from_table(joined, settings))


def problems(options: argparse.Namespace) -> Iterator[Problem]:
    """The chosen targets."""
    for target in ("PM2.5", "RAIN"):
        if options.only in target:
            yield beijing(options.beijing, target, options.horizon)
    if options.counts and options.only in "counts":
        yield counts(options.counts, options.horizon)


def main() -> None:
    options = _options()
    results = []
    for problem in problems(options):
        for seed in options.seeds:
            path = options.runs / f"{problem.name}-{options.horizon}-{options.epochs}-seed{seed}.json"
            if not path.exists():
                print(f"{problem.name}, seed {seed}", file=sys.stderr)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(compare(problem, seed, options.epochs), indent=2), encoding="utf-8")
            results.append(json.loads(path.read_text(encoding="utf-8")))
    print(report(results))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.bounds",
        description="Score forecasts of targets with bounds, beside forecasts of the same targets without.",
    )
    parser.add_argument("--beijing", type=Path, default=BEIJING)
    parser.add_argument(
        "--counts", type=Path, nargs="+", metavar="FILE", help="CSV files of counts every 5 minutes, one per sensor"
    )
    parser.add_argument("--horizon", type=int, default=24, help="steps to forecast (default: 24)")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of each training (default: 4)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", default="", help="only targets that contain this: PM2.5, RAIN or counts")
    parser.add_argument("--runs", type=Path, default=Path(".streamgru/bounds"), help="folder for results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
