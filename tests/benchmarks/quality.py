"""``make quality DATA=ETTh1.csv``: the accuracy of forecasts, as ``streamgru backtest`` scores them.

It runs back-tests of every data set, horizon and seed, the ablations and the studies of carried states. A run whose
results exist in the runs' folder or in ``quality/`` is skipped, so a stopped command continues. All results go to
QUALITY.md beside this file.
"""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.files.file_layout import FileLayout
from pipeline.settings.sections import ForecasterSettings
from tests.benchmarks import ablation, carrying, gift_section, quality_report, quality_results, short_series
from tests.benchmarks.gift_protocol import TERMS
from tests.benchmarks.quality_report import OTHER

REPORT: Final = Path(__file__).with_name("QUALITY.md")
BEIJING: Final = Path("deploy/data/beijing.parquet")
BEIJING_SETTINGS: Final = Path("deploy/beijing.toml")
BEIJING_SPLIT: Final = "0.7,0.1,0.2"
BEIJING_LAYOUT: Final = FileLayout(timezone="Asia/Shanghai", sensor_column="station")
# The project promises a model of this data set within three minutes.
BEIJING_BUDGET_S: Final = 180
# Files of ETDataset (``ETT-small``) and NAB (``data``) that influenced no choice -> horizon, arguments.
OTHERS: Final = {
    "ETTh2.csv": (96, ("--columns-as-sensors", "--standardise", "--split", "12/4/4")),
    "nyc_taxi.csv": (48, ()),
    "occupancy_6005.csv": (12, ()),
    "Twitter_volume_AAPL.csv": (12, ()),
    "cpu_utilization_asg_misconfiguration.csv": (12, ()),
}
# Levels of adaptation. The default is first: it is the row "streamgru" of the tables.
LEVELS: Final = sorted(("off", "light", "full"), key=lambda level: level != ForecasterSettings().adaptation)


@dataclass(frozen=True)
class Run:
    """One back-test. ``name`` is the name of its folder without the seed."""

    name: str
    data: Path
    arguments: tuple[str, ...]
    settings: Path | None = None

    def command(self, seed: int, more: tuple[str, ...] = ()) -> list[str]:
        """The command that makes it."""
        chosen = ("--settings", str(self.settings)) if self.settings else ()
        adapting = [word for level in LEVELS for word in ("--adaptation", level)]
        arguments = [str(self.data), *self.arguments, *adapting, "--seed", str(seed), *more]
        return ["streamgru", *chosen, "backtest", *arguments]


@dataclass(frozen=True)
class Task:
    """A command, and the file that it leaves."""

    command: list[str]
    result: Path
    prints_result: bool = False  # whether the file holds the command's output

    def run(self) -> bool:
        """Run the command; return whether it succeeded."""
        print(shlex.join(self.command), flush=True)
        program = Path(sys.executable).with_name(self.command[0])
        output = subprocess.PIPE if self.prints_result else None
        done = subprocess.run([program, *self.command[1:]], stdout=output)
        if done.returncode == 0 and self.prints_result:
            self.result.parent.mkdir(parents=True, exist_ok=True)
            self.result.write_bytes(done.stdout)
        return done.returncode == 0


def back_tests(
    etth1: Path | None,
    beijing: Path,
    nab: Path | None = None,
    others: Path | None = None,
    series: Path | None = None,
) -> Iterator[Run]:
    """The back-tests of these files, of ``OTHERS`` in the folder ``others``, and of ``series/real*/*.csv``."""
    if etth1 is not None:
        wide = ("--columns-as-sensors", "--timezone", "UTC", "--standardise")
        for horizon in (96, 192, 336, 720):
            yield Run(f"etth1-{horizon}", etth1, (*wide, "--split", "12/4/4", "--horizon", str(horizon)))
        for horizon in (1, 24, 48):
            yield Run(f"etth1-stream-{horizon}", etth1, (*wide, "--split", "4/1/15", "--horizon", str(horizon)))
    stations = ("--sensor-column", "station", "--timezone", "Asia/Shanghai", "--budget", str(BEIJING_BUDGET_S))
    for horizon in (1, 24):
        yield Run(f"beijing-{horizon}", beijing, (*stations, "--horizon", str(horizon)), BEIJING_SETTINGS)
    if nab is not None:
        yield Run("nab-24", nab, ("--timezone", "UTC", "--horizon", "24"))
    if others is not None:
        for file, (horizon, arguments) in OTHERS.items():
            name = f"{OTHER}{Path(file).stem}-{horizon}"
            yield Run(name, others / file, (*arguments, "--timezone", "UTC", "--horizon", str(horizon)))
    if series is not None:
        for path in sorted(series.glob("real*/*.csv")):
            for horizon in short_series.HORIZONS:
                steps = ("--horizon", str(horizon), "--budget", str(short_series.BUDGET_S))
                yield Run(f"{short_series.PREFIX}{path.stem}-{horizon}", path, ("--timezone", "UTC", *steps))


def beijing_parser(name: str, page: Path, description: str) -> argparse.ArgumentParser:
    """The options of the module ``name``, which trains models on the Beijing data and writes ``page``."""
    parser = argparse.ArgumentParser(prog=f"python -m tests.benchmarks.{name}", description=description)
    parser.add_argument("file", type=Path, nargs="?", default=BEIJING, help=f"the Beijing data (default: {BEIJING})")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the trainings")
    parser.add_argument("--budget", type=float, default=900.0, help="seconds to train at most (default: 900)")
    runs = Path(".streamgru") / name.replace("_", "-")
    parser.add_argument("--runs", type=Path, default=runs, help="folder for trained models")
    parser.add_argument("--report", type=Path, default=page, help="page to write (default: beside this file)")
    return parser


def main() -> None:
    options = _options()
    runs = list(back_tests(options.etth1, options.beijing, options.nab, options.others, options.series))
    # Results with a smaller budget go to a folder of their own, apart from those of the defaults.
    folder, report = options.runs, REPORT
    if options.budget:
        folder = options.runs / f"budget-{options.budget:g}"
        report = folder / REPORT.name
        folder.mkdir(parents=True, exist_ok=True)
    else:
        quality_results.bring(folder)
    tasks = [] if options.report else list(_tasks(options, runs, folder))
    with ThreadPoolExecutor(options.jobs) as pool:
        outcomes = zip(tasks, pool.map(Task.run, tasks), strict=True)
        failed = [task.result.parent.name for task, succeeded in outcomes if not succeeded]
    if options.etth1 is not None and options.only in ablation.NAME and not options.report:
        for seed in options.seeds:
            ablation.run_all(options.etth1, seed, folder, options.budget)
    if options.only in carrying.NAME and not options.report:
        carrying.run_all(runs, options.seeds, folder)
    if not options.budget:
        quality_results.keep(folder)
    report.write_text(quality_report.written(folder, runs, options.seeds), encoding="utf-8")
    print(f"the tables are in {os.path.relpath(report)}")
    if failed:
        sys.exit(f"back-tests failed: {', '.join(failed)}")


def _tasks(options: argparse.Namespace, runs: list[Run], folder: Path) -> Iterator[Task]:
    """The chosen commands that have no result yet: seed by seed, so that a stopped run has whole seeds."""
    more = ("--budget", str(options.budget)) if options.budget else ()
    for seed in options.seeds:
        for run in runs:
            if run.name.startswith(short_series.PREFIX) and seed != options.seeds[0]:
                continue  # one seed for the many short series
            out = folder / f"{run.name}-seed{seed}"
            if options.only in run.name and not (out / quality_results.SCORES).exists():
                yield Task(run.command(seed, (*more, "--out", str(out))), out / quality_results.SCORES)
        for term in TERMS if options.etth1 is not None else ():
            result = gift_section.result_path(folder, term, seed)
            if options.only in gift_section.name(term) and not result.exists():
                command = ["python", "-m", "tests.benchmarks.gift_protocol", str(options.etth1), term]
                yield Task([*command, "--seed", str(seed), *more], result, prints_result=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Back-test every data set, horizon and seed, and write the tables.")
    parser.add_argument("--etth1", type=Path, help="ETTh1.csv of ETDataset; without it, its back-tests are skipped")
    parser.add_argument("--beijing", type=Path, default=BEIJING)
    parser.add_argument("--nab", type=Path, help="ambient_temperature_system_failure.csv of NAB")
    parser.add_argument("--others", type=Path, help=f"folder with {', '.join(OTHERS)}")
    parser.add_argument(
        "--series", type=Path, metavar="FOLDER", help="data folder of NAB: back-test FOLDER/real*/*.csv"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path(".streamgru/quality"), help="folder for results")
    parser.add_argument("--only", default="", help=f"run only names that contain this, e.g. beijing or {ablation.NAME}")
    parser.add_argument("--budget", type=float, help="train for at most SECONDS", metavar="SECONDS")
    # A training takes half of the cores.
    parser.add_argument("--jobs", type=int, default=2, help="commands that run side by side (default: 2)")
    parser.add_argument("--report", action="store_true", help="write the tables without running anything")
    return parser.parse_args()


if __name__ == "__main__":
    main()
