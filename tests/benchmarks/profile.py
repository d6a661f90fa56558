"""The forecaster's CPU time by stage, before and after: an earlier commit is measured, then this tree.

The earlier commit is checked out from this repository's history. Without it the page shows this tree alone.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from pipeline.settings import Settings
from tests.benchmarks import sides, stages
from tests.benchmarks.command import named
from tests.benchmarks.earlier import BASE, ROOT, earlier_tree
from tests.benchmarks.markdown import table
from tests.benchmarks.page import Figure, Section

SENSORS, STEPS = 200, 300
PARTITIONS: Final = 4
TIMEOUT_S: Final = 900.0

Costs = dict[str, dict[str, float]]  # case -> stage -> microseconds per reading


def measure(base: Settings) -> Section:
    """The section of the page."""
    settings = named(base, "profile", kafka={"partitions": PARTITIONS})
    readings = sides.fill(settings, SENSORS, STEPS).readings
    earlier = earlier_tree()
    found = {} if earlier is None else {BASE: stage_costs(settings, readings, earlier)}
    found["this tree"] = stage_costs(settings, readings, ROOT)
    now = found["this tree"]
    figures = []
    for case in now:
        told = f"{now[case]['all']:.1f} µs"
        if BASE in found:
            told += f", before {found[BASE][case]['all']:.1f} µs"
        figures.append(Figure(f"CPU of a forecaster per reading, {case}", told))
    return Section(
        "profile",
        "The forecaster's CPU time by stage",
        figures,
        f"{readings:,} readings of {SENSORS} sensors, {PARTITIONS} partitions; CPU time of the process from the first "
        f"readings to the last commit, the median of {stages.ROUNDS} rounds. For readings that come one by one, the "
        "mean time of the loop alone. The time of a stage leaves out the stages that it calls. A stage that a tree "
        "does not have is within the stage that calls it. "
        + (f"Before: commit {BASE}." if BASE in found else f"Commit {BASE} is not in this repository's history."),
        table(
            ["µs per reading", *(f"{case}, {tree}" for case in now for tree in found)],
            [
                [stage, *(f"{costs[case].get(stage, 0.0):.2f}" for case in now for costs in found.values())]
                for stage in next(iter(now.values()))
            ],
        ),
    )


def stage_costs(settings: Settings, readings: int, tree: Path) -> Costs:
    """The costs of a tree, measured in a process of its own."""
    given = settings.home / "settings.json"
    given.write_text(settings.model_dump_json(exclude_unset=True), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-P", stages.__file__, str(given), str(readings)],
        env=os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
        cwd=tree,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=TIMEOUT_S,
    )
    costs: Costs = json.loads(done.stdout.splitlines()[-1])
    return costs
