"""Studies of carried states, with the models that the back-tests of ``make quality`` trained.

Each study steps states through a model's data as the stream would, and writes a JSON file to the runs' folder. A study
whose file exists is not run again.
"""

import json
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Final

from model.config import NO_ADAPTATION, Adaptation
from pipeline.evaluation.report import MODEL_FOLDER
from pipeline.settings.sections import ForecasterSettings
from tests.benchmarks.case import Case, Result
from tests.benchmarks.disturbances import gaps, rescaled, swap
from tests.benchmarks.long_run import tiled, windows

if TYPE_CHECKING:
    from tests.benchmarks.quality import Run

NAME: Final = "carrying"
DEFAULT: Final = Adaptation(ForecasterSettings().adaptation, ForecasterSettings().calibration)
ADAPTATIONS: Final = {adaptation.level: adaptation for adaptation in (NO_ADAPTATION, DEFAULT)}
_ALONE: Final[dict[str, Callable[[Case, Adaptation], Result]]] = {
    "windows": windows,
    "tiled": tiled,
    "rescaled": rescaled,
    "gaps": gaps,
}
SWAP: Final = "swap"
# Study -> names of the back-tests whose models it uses.
STUDIES: Final[dict[str, tuple[str, ...]]] = {
    "windows": ("etth1-96", "etth1-stream-24", "beijing-24"),
    "tiled": ("etth1-96",),
    "rescaled": ("etth1-96", "etth1-stream-24"),
    SWAP: ("etth1-96", "etth1-stream-24", "beijing-24"),
    "gaps": ("beijing-24",),
}


def run_all(back_tests: Sequence["Run"], seeds: Sequence[int], runs: Path) -> None:
    """Run every study that has no result in ``runs`` and whose models exist there."""
    named = {run.name: run for run in back_tests}
    for seed, level, (study, names) in product(seeds, ADAPTATIONS, STUDIES.items()):
        for name in [name for name in names if name in named]:
            trained = [other for other in seeds if (_folder(runs, name, other) / MODEL_FOLDER).exists()]
            others = [other for other in trained if other != seed]
            out = result_path(runs, study, name, level, seed)
            if out.exists():
                continue
            if seed not in trained or (study == SWAP and not others):
                # Scores are kept in the repository, models are not.
                needed = "two seeds" if study == SWAP else f"seed {seed}"
                print(f"{study}: {name}, seed {seed}: skipped, because {runs} has no model of {name} for {needed}")
                continue
            print(f"{study}: {name}, adaptation {level}, seed {seed}", flush=True)
            case = Case.read(named[name], _folder(runs, name, seed), seed)
            if study == SWAP:
                old = Case.read(named[name], _folder(runs, name, others[0]), seed)
                found = swap(case, old, ADAPTATIONS[level])
            else:
                found = _ALONE[study](case, ADAPTATIONS[level])
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(found, indent=1), encoding="utf-8")


def result_path(runs: Path, study: str, run: str, level: str, seed: int) -> Path:
    """The file of a study's result."""
    return runs / NAME / f"{study}-{run}-{level}-seed{seed}.json"


def _folder(runs: Path, run: str, seed: int) -> Path:
    """The folder of a back-test's results."""
    return runs / f"{run}-seed{seed}"
