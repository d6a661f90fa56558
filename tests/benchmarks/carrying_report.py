"""The sections of QUALITY.md on carried states, from the results of the studies in ``tests.benchmarks.carrying``."""

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from tests.benchmarks.carrying import ADAPTATIONS, STUDIES, SWAP, result_path
from tests.benchmarks.long_run import FACTOR, OFFSET, TILED_STEPS
from tests.benchmarks.markdown import mean, spread, table

# Ratio of errors with and without a change of unit. Below this ratio, the sensor counts as recovered.
RECOVERED: Final = 1.05
NAIVE: Final = ("seasonal naive", "persistence")

Found = dict[tuple[str, str], list[dict[str, Any]]]  # (run, level) -> the result of each seed


def sections(runs: Path, seeds: Sequence[int]) -> list[str]:
    """The sections of the studies that have results."""
    makers: dict[str, Callable[[Found], list[str]]] = {
        "windows": _windows,
        "tiled": _tiled,
        "rescaled": _rescaled,
        SWAP: _swap,
        "gaps": _gaps,
    }
    parts: list[str] = []
    for study, make in makers.items():
        found: Found = {}
        for run in STUDIES[study]:
            for level in ADAPTATIONS:
                paths = [result_path(runs, study, run, level, seed) for seed in seeds]
                done = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
                if done:
                    found[run, level] = done
        if found:
            parts += make(found)
    return parts


def metric_of(run: str) -> str:
    """The metric of a run's errors, the same as in the data set's main table."""
    return "mse" if run.startswith("etth1") else "mae"


def _heading(found: Found) -> list[str]:
    return [f"{run}, {level}, {metric_of(run).upper()}" for run, level in found]


def _windows(found: Found) -> list[str]:
    def row(name: str, take: Callable[[dict[str, Any]], Any]) -> list[str]:
        cells = []
        for (run, _), done in found.items():
            scores = [take(one) for one in done]
            cells.append("" if None in scores else spread([score[metric_of(run)] for score in scores]))
        return [name, *cells]

    first = next(iter(found.values()))[0]
    rows = [row(f"the last {length}", lambda one, n=length: one["replayed"].get(n)) for length in first["replayed"]]
    rows.append(row("**all: carried**", lambda one: one["carried"]))
    rows += [row(name, lambda one, name=name: one["naive"][name]) for name in NAIVE]
    strange = [row(f"{length}", lambda one, n=length: one["stranger"].get(n)) for length in first["stranger"]]
    cold = ", ".join(str(length) for length in first["cold"])
    parts = [
        "## States carried beside windows replayed",
        (
            f"The same forecasts of the test part ({first['moments']} moments, drawn by seed; all sensors, the whole "
            "horizon), made from states that have seen only the last readings, and from the state carried from the "
            "first reading on. Wanted: errors of the carried state do not exceed any window's, and the first forecasts "
            f"of a new sensor are plausible. Forecasts after {cold} readings are marked cold (`warm: false`)."
        ),
        table(["readings seen", *_heading(found)], rows),
        (
            "The same for a sensor that was not in the training data, in another unit (values times "
            f"{FACTOR:,.0f} + {OFFSET:,.0f}; errors in the original unit):"
        ),
        table(["readings seen", *_heading(found)], [row for row in strange if any(row[1:])]),
    ]
    ages = []
    for (run, level), done in found.items():
        metric = metric_of(run)
        for part, here in enumerate(done[0]["by_age"]):

            def cell(name: str, part: int = part, done: Any = done, metric: str = metric) -> float:
                return mean([one["by_age"][part][name][metric] for one in done])

            norm = [mean([one["by_age"][part]["norm"][layer] for one in done]) for layer in range(len(here["norm"]))]
            ages.append(
                [
                    f"{run}, {level}" if not part else "",
                    f"{here['steps'][0]:,} to {here['steps'][1]:,}",
                    f"{cell('carried'):.3f}",
                    f"{cell('replayed'):.3f}",
                    f"{cell('carried') / cell('replayed') - 1.0:+.1%}",
                    " · ".join(f"{size:.2f}" for size in norm),
                ]
            )
    longest = list(first["replayed"])[-1]
    header = ["run", "steps carried", "carried", f"the last {longest}", "difference", "hidden state"]
    parts += [
        (
            "By age of the carried state, up to the length of the data. Errors vary from part to part because the data "
            f"do. The column to read is the difference from states that have seen only the last {longest} readings. "
            "The last column is the size of the hidden state: the root mean square of layer 1 · layer 2."
        ),
        table(header, ages),
    ]
    return parts


def _tiled(found: Found) -> list[str]:
    rows = []
    for (run, level), done in found.items():
        metric, tiles = metric_of(run), done[0]["tiles"]
        reference = mean([one["tiles"][1][metric] for one in done])
        for number in sorted({0, 1, 2, 4, 9, 19, len(tiles) - 1} & set(range(len(tiles)))):
            here = [one["tiles"][number] for one in done]
            error = mean([one[metric] for one in here])
            sizes, largest = (
                " · ".join(f"{mean([one[key][layer] for one in here]):.3f}" for layer in range(len(here[0][key])))
                for key in ("norm", "largest_norm")
            )
            name = f"{run}, {level}" if not number else ""
            rows.append(
                [name, f"{here[0]['steps']:,}", f"{error:.4f}", f"{error / reference - 1:+.2%}", sizes, largest]
            )
    steps = f"{TILED_STEPS:,}"
    return [
        f"## Carried for {steps} steps",
        (
            "The test part of ETTh1, cut to whole weeks (a tile), repeated. Each tile's last week fades into the week "
            "before its first reading, so that values do not jump from tile to tile. All tiles have the same readings, "
            "so a difference from the second tile comes from the age of the state. Wanted: errors and hidden states do "
            "not grow."
        ),
        table(["run", "up to step", "MSE", "against the second tile", "hidden state", "largest in a week"], rows),
    ]


def _rescaled(found: Found) -> list[str]:
    changes = [name for name in next(iter(found.values()))[0]["errors"] if name != "none"]
    parts, rows = [], []
    for (run, level), done in found.items():
        metric, steps = metric_of(run), done[0]["steps"]
        ratios = {
            name: [
                mean([one["errors"][name][stage][metric] for one in done])
                / mean([one["errors"]["none"][stage][metric] for one in done])
                for stage in range(len(steps))
            ]
            for name in changes
        }
        for stage, end in enumerate(steps):
            begin = steps[stage - 1] + 1 if stage else 1
            span = f"{begin:,} to {end:,}" if end > begin else f"{end:,}"
            rows.append(
                [f"{run}, {level}" if not stage else "", span, *(_times(ratios[name][stage]) for name in changes)]
            )
        recovery = []
        for name in changes:
            late = [stage for stage, ratio in enumerate(ratios[name]) if ratio > RECOVERED]
            end = steps[late[-1]] if late else 0
            recovery.append(f"{name}: {'not within' if end == steps[-1] else 'after'} {end:,} steps")
        parts.append(f"{run}, {level} - {'; '.join(recovery)}.")
    return [
        "## A sensor whose unit changes",
        (
            "From one reading on, all values of a sensor are multiplied, divided, or raised by 100 standard "
            "deviations. The table shows squared errors, converted back to the original unit, as a multiple of the "
            f"errors without the change. A sensor has recovered when the multiple stays below {RECOVERED:g}: "
            + " ".join(parts)
        ),
        table(["run", "steps since", *changes], rows),
    ]


def _swap(found: Found) -> list[str]:
    kinds = [name for name in next(iter(found.values()))[0]["errors"] if name != "never interrupted"]
    rows = []
    for (run, level), done in found.items():
        metric = metric_of(run)

        def first(one: dict[str, Any], kind: str, upto: int, metric: str = metric) -> float:
            """The mean over the first stages, each by its length."""
            ends = [0, *one["steps"]][: upto + 1]
            lengths = [after - before for before, after in pairwise(ends)]
            stages = one["errors"][kind][:upto]
            return sum(n * stage[metric] for n, stage in zip(lengths, stages, strict=True)) / sum(lengths)

        for upto, end in enumerate(done[0]["steps"], start=1):
            whole = [first(one, "never interrupted", upto) for one in done]
            costs = [
                mean([first(one, kind, upto) / base - 1.0 for one, base in zip(done, whole, strict=True)])
                for kind in kinds
            ]
            rows.append(
                [
                    f"{run}, {level}" if upto == 1 else "",
                    str(end),
                    f"{metric.upper()} {mean(whole):.3f}",
                    *(f"{cost:+.1%}" for cost in costs),
                ]
            )
    replayed = ", ".join(f"{level}: {done[0]['replayed']:,}" for (_, level), done in found.items())
    replayed = ", ".join(dict.fromkeys(replayed.split(", ")))
    return [
        "## A model takes over from another",
        (
            "A model trained with another seed takes over in the middle of the test part. The table compares its "
            "errors over the first forecasts with those of the same model running without an interruption. It starts "
            "from states warmed up by a replay of the last readings, from the old model's states as they are, or from "
            "blank states. The last column is the old model itself. The stream replays at least this many readings: "
            f"{replayed}. Wanted: at most 2 % over the first 50 forecasts after a warm-up."
        ),
        table(["run", "first forecasts", "never interrupted", *kinds], rows),
    ]


def _gaps(found: Found) -> list[str]:
    parts = []
    for (run, level), done in found.items():
        metric = metric_of(run)
        rows = []
        names = list(done[0]["by_gap"]["0"])
        for gap, here in done[0]["by_gap"].items():

            def cell(name: str, stage: int, gap: str = gap, done: Any = done, metric: str = metric) -> float:
                return mean([one["by_gap"][gap][name][stage][metric] for one in done])

            cells = [gap if gap != "0" else "none"]
            for name in names:
                for stage in range(len(here[name])):
                    base = mean([one["by_gap"]["0"][name][stage][metric] for one in done])
                    change = f" ({cell(name, stage) / base - 1.0:+.0%})" if gap != "0" else ""
                    if name == "model" or not stage:
                        cells.append(f"{cell(name, stage):.3f}{change}")
            rows.append(cells)
        steps = done[0]["steps"]
        spans = [f"forecasts {before + 1} to {after}" for before, after in pairwise(steps)]
        header = ["hours left out", "1st forecast after", *spans]
        header += [f"{name}, 1st" for name in names if name != "model"]
        parts += [f"{run}, adaptation {level}:", table(header, rows)]
    return [
        "## Gaps",
        (
            "Blocks of readings of the Beijing set are left out, of all stations at once, at times drawn by seed. The "
            "table shows the mean absolute errors of the forecasts after a gap, in mean seasonal differences, and in "
            "brackets the change against the same forecasts without the gap. Gaps of up to 168 hours are stepped as "
            "missing; after a longer gap the state is reset and marked cold."
        ),
        *parts,
    ]


def _times(ratio: float) -> str:
    return f"{ratio:.3f}" if ratio < 10 else f"{ratio:,.0f}"
