"""QUALITY.md from the results of ``make quality``: means over seeds, and the deviation between them."""

import json
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

from tests.benchmarks import ablation, carrying_report, gift_section, short_series
from tests.benchmarks.markdown import mean, spread, table

if TYPE_CHECKING:
    from tests.benchmarks.quality import Run

MODEL: Final = "streamgru"
ADAPTIVE: Final = "adaptive AR(24)"


@dataclass(frozen=True)
class Target:
    """The limit that an error must not exceed, and the aim that it should stay below."""

    most: str
    aim: str


# Steps ahead -> limit and aim of the mean squared error; the aims at 12/4/4 are SegRNN's, the best published GRU.
FROZEN: Final = {
    96: Target("≤ .375", "< .351"),
    192: Target("≤ .418", "< .392"),
    336: Target("≤ .460", "< .423"),
    720: Target("≤ .466", "< .466"),
}
STREAMED: Final = {1: Target("< .235", "< .216"), 24: Target("< .734", "< .651"), 48: Target("< .889", "< .783")}
INTRODUCTION: Final = """\
`make quality DATA=ETTh1.csv` wrote this page. Every figure is the mean over the seeds, ± the standard deviation between
them. Scores are prequential: each forecast is made from the readings before it, with a carried state, and scored
afterwards. Weights come from the training part. The epoch with the lowest pinball loss on the validation part was kept.
Scores of the test parts were seen while the design was explored, and the points at which corrections are learned were
chosen with them in view: treat both data sets as seen. The speed of the mixture's weights was chosen on the validation
parts. Code and settings are the defaults, apart from the features, horizon and split in the commands. The limits under
"MSE wanted" and the aims were set for a model that is trained once and frozen. This is the row "streamgru, off": its
point forecasts are the trained model's, and its intervals are calibrated from reading to reading. Training times are
from a machine that did other work too. The ablations and the studies of carried states are from an earlier release,
whose mixture had seven experts (`RULE` 4 in `model/experts.py`). Tables of 96 steps and more on ETTh1 are from the
current release (`RULE` 7), where intervals far ahead follow recent errors. GIFT-Eval's CRPS at 480 and 720 steps are
from a draft of this rule. All other tables are from the release before it (`RULE` 6). Up to 40 steps ahead the two
differ by the first forecast of a sensor, which is no longer scored."""
NOT_REACHED: Final = """\
- At 720 steps the 80 % intervals of the worst sensor of ETTh1 hold 10 points too many readings, and over all sensors 2
  to 4 points, depending on the seed. The months of the test part are calmer than those of the validation part, where
  intervals hold a point too few. A label arrives 720 hours after its forecast.
- By GIFT-Eval's protocol at 48 steps, the MASE is .85 times the seasonal-naive forecast's; wanted was .84. To go on
  training on the newest tenth of the readings, which only choose the epoch, does not help: on windows before the test
  part the MASE ratio is .902 and .903 after 2 and 5 more epochs, and .899 without them (one seed).
- Without adaptation, errors are above SegRNN's at 96, 192 and 336 steps, and below it at 720. Trained on four months,
  the frozen model misses all limits. These changes were tried and stayed
  within the noise on the validation part: at 96 steps twice the hidden size, half or no dropout, no calendar (better on
  the test part only), one weight set instead of an average (see the ablations); at 336 steps more dropout, scales that
  are averaged over 7 or 14 days, and levels over 28 and 90 days as further inputs.
- Without adaptation and calibration, forecasts do not recover within 1,008 steps if a sensor's values are suddenly
  divided by 1,000. With either of them, states follow such changes, but not every factor (`model/README.md`).
- At 24 steps of the Beijing set, and in the MAE of one series of tweets, `light` is .4 to 4 % worse than `off`.
- On the taxi rides and one server, whose newest parts differ from the rest, intervals hold 9 and 5 points too few
  readings."""
OTHER: Final = "other-"  # prefix of the names of runs on data that influenced no choice
OTHERS: Final = """\
These files were scored after the design was settled, with the defaults and each file's own cadence. Errors are in mean
seasonal differences of the sensor, on ETTh2 in standard deviations of its training part. ETTh2 is from
github.com/zhouhaoyi/ETDataset. The other files are from github.com/numenta/NAB; each has one sensor. NAB chose them for
their anomalies: holidays and a blizzard in the test part of the taxi rides, spikes in the tweets, another load on the
servers. An early run on the taxi rides with a wrong cadence failed, which led to adaptation by the clock. No number was
chosen on these files."""
NAB: Final = "NAB ambient temperature: one sensor, 11 months, pauses of up to 7 days"
PUBLISHED: Final = """| as published, MSE/MAE at 96 · 192 · 336 · 720 | |
|---|---|
| SegRNN, look-back 720 | .351/.392 · .392/.414 · .423/.433 · .466/.472 |
| PatchTST | .375/.404 · .418/.430 · .462/.460 · .495/.497 |
| DLinear | .381/.407 at 96 |
| a plain GRU | 1.135/.844 at 96 |"""

Scores = dict[str, Any]


def written(runs: Path, back_tests: Sequence["Run"], seeds: Sequence[int]) -> str:
    """The page, from the results that exist in ``runs``."""
    results = {run.name: _results(runs, run.name, seeds) for run in back_tests}
    parts = [
        "# Quality of the forecasts",
        INTRODUCTION,
        "## Limits and aims that were missed",
        NOT_REACHED,
    ]
    parts += _etth1(results, "etth1-", FROZEN, "ETTh1, 12/4/4 months, trained once", PUBLISHED)
    parts += _etth1(results, "etth1-stream-", STREAMED, "ETTh1 streaming, 4/1/15 months, trained once", "")
    parts += gift_section.section(runs, seeds)
    parts += _in_units(results, "beijing-", (1, 24), "Beijing, 12 stations, the last fifth of four years")
    parts += _in_units(results, "nab-", (24,), NAB)
    parts += _others(results)
    parts += short_series.section(results)
    parts += _intervals(results)
    parts += carrying_report.sections(runs, seeds)
    parts += _ablations(runs, seeds)
    series = [run for run in back_tests if run.name.startswith(short_series.PREFIX)]
    listed = [run for run in back_tests if run not in series[len(short_series.HORIZONS) :]]  # one series for all
    commands = "\n".join(shlex.join(_anywhere(run).command(seeds[0])) for run in listed)
    others = f" (and with `--seed` {', '.join(map(str, seeds[1:]))})" if seeds[1:] else ""
    parts += ["## Commands", f"`make quality` runs these commands{others}:", f"```\n{commands}\n```", _machine()]
    return "\n\n".join(parts) + "\n"


def _anywhere(run: "Run") -> "Run":
    """The run with the bare file name of its data, if their path is absolute."""
    return replace(run, data=Path(run.data.name)) if run.data.is_absolute() else run


def _results(runs: Path, name: str, seeds: Sequence[int]) -> list[Scores]:
    paths = [runs / f"{name}-seed{seed}" / "scores.json" for seed in seeds]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]


def _etth1(
    results: dict[str, list[Scores]], prefix: str, targets: dict[int, Target], title: str, below: str
) -> list[str]:
    rows, found = [], False
    for horizon, target in targets.items():
        done = results.get(f"{prefix}{horizon}", [])
        found = found or bool(done)
        if not done:
            rows.append([str(horizon), "not run yet", "", "", target.most, target.aim, "", ""])
        for number, name in enumerate(_forecasts(done)):
            first, model = number == 0, name.startswith(MODEL)
            rows.append(
                [
                    str(horizon) if first else "",
                    name,
                    spread([one["scores"][name]["scaled"]["mse"] for one in done], model),
                    spread([one["scores"][name]["scaled"]["mae"] for one in done], model),
                    target.most if first else "",
                    target.aim if first else "",
                    _seconds(done) if first else "",
                    str(len(done)) if first else "",
                ]
            )
    if not found:
        return []
    header = ["steps", "forecast", "MSE", "MAE", "MSE wanted", "aim", "training", "seeds"]
    intro = (
        "Each column of the file is a sensor. Errors are in standard deviations of its training part. The model is "
        f"trained once. `{MODEL}` has the default adaptation; rows with a level after the name have another one."
    )
    return [f"## {title}", intro, table(header, rows), *([below] if below else [])]


def _in_units(results: dict[str, list[Scores]], prefix: str, horizons: Sequence[int], title: str) -> list[str]:
    rows = []
    for horizon in horizons:
        done = results.get(f"{prefix}{horizon}", [])
        for target in done[0]["model"]["targets"] if done else []:
            for number, name in enumerate(_forecasts(done)):
                first = number == 0
                rows.append(
                    [
                        str(horizon) if first else "",
                        target if first else "",
                        name,
                        *(
                            spread(
                                [mean(one["scores"][name]["by_horizon"][target][metric]) for one in done],
                                name.startswith(MODEL),
                            )
                            for metric in ("mae", "crps")
                        ),
                        _seconds(done) if first else "",
                        str(len(done)) if first else "",
                    ]
                )
    if not rows:
        return []
    header = ["steps", "target", "forecast", "MAE", "CRPS", "training", "seeds"]
    intro = (
        "Means over all steps up to the horizon, in the target's unit. Wanted: below every baseline in both metrics. "
        "The CRPS is approximated from the quantiles; each quantile stands for the levels nearest to it."
    )
    return [f"## {title}", intro, table(header, rows)]


def _others(results: dict[str, list[Scores]]) -> list[str]:
    rows = []
    for run, done in results.items():
        if not run.startswith(OTHER):
            continue
        file, _, horizon = run.removeprefix(OTHER).rpartition("-")
        for number, name in enumerate(_forecasts(done)):
            scores = [one["scores"][name] for one in done]
            scaled = [
                spread([one["scaled"][metric] for one in scores], name.startswith(MODEL))
                for metric in ("mse", "mae", "winkler")
            ]
            held = _points([one["intervals"][0]["overall"] - one["intervals"][0]["nominal"] for one in scores])
            first = [file, horizon] if number == 0 else ["", ""]
            rows.append([*first, name, *scaled, held, _seconds(done) if number == 0 else ""])
    if not rows:
        return []
    header = ["file", "steps", "forecast", "MSE", "MAE", "Winkler", "80% held, points off", "training"]
    return ["## Data that influenced no choice", OTHERS, table(header, rows)]


def _intervals(results: dict[str, list[Scores]]) -> list[str]:
    rows = []
    for run, done in results.items():
        if run.startswith((OTHER, short_series.PREFIX)):
            continue
        for name in _forecasts(done):
            if not name.startswith(MODEL) and name != ADAPTIVE:
                continue
            found = [one["scores"][name]["intervals"] for one in done]
            for nominal, *interval in zip(found[0], *found, strict=True):
                rows.append(
                    [
                        run,
                        name,
                        f"{nominal['nominal']:.0%}",
                        _points([one["overall"] - one["nominal"] for one in interval]),
                        _points([one["worst_off"] for one in interval]),
                        spread([one["scores"][name]["scaled"]["winkler"] for one in done], True),
                    ]
                )
    if not rows:
        return []
    header = ["run", "forecast", "interval", "held, points off", "worst sensor, points off", "Winkler"]
    intro = "Wanted: within 2 points overall, within 4 for the worst sensor. The Winkler score is for the widest."
    return ["## Intervals", intro, table(header, rows)]


def _ablations(runs: Path, seeds: Sequence[int]) -> list[str]:
    rows = []
    for variant in ablation.VARIANTS:
        paths = [ablation.result_path(runs, variant, seed) for seed in seeds]
        done = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
        if not done:
            continue

        def column(part: str, metric: str, done: list[Scores] = done) -> str:
            return spread([one[part][metric] for one in done], True)

        scores = [column(part, metric) for part in ("validation", "test") for metric in ablation.METRICS]
        seconds = mean([one["seconds"] for one in done])
        rows.append([variant.name, *scores, f"{seconds:.0f} s" if seconds >= 1.0 else "", str(len(done))])
    if not rows:
        return []
    header = ["variant"]
    header += [f"{part} {metric}" for part in ("validation", "test") for metric in ablation.METRICS]
    intro = (
        f"ETTh1 at horizon {ablation.HORIZON}, {ablation.SPLIT} months. Each variant changes one thing of the default "
        "model without adaptation. Choices were made by the validation columns."
    )
    return ["## Ablations", intro, table([*header, "time", "seeds"], rows)]


def _forecasts(done: list[Scores]) -> list[str]:
    return list(done[0]["scores"]) if done else []


def _points(shares: Sequence[float]) -> str:
    return f"{100 * mean(shares):+.1f}"


def _seconds(done: list[Scores]) -> str:
    if not done[0]["training"]:
        return ""
    seconds = mean([one["training"]["seconds"] for one in done])
    return f"{seconds:.0f} s"


def _machine() -> str:
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"Machine: {psutil.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}. "
        f"Python {platform.python_version()}, torch {version('torch')}."
    )
