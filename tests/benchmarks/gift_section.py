"""The table of GIFT-Eval's protocol in QUALITY.md."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.benchmarks.gift_protocol import TERMS
from tests.benchmarks.markdown import mean, spread, table

WANTED: Final = {"short": "≤ .84, aim .80"}
INTRO: Final = """\
`python -m tests.benchmarks.gift_protocol ETTh1.csv TERM` forecasts as GIFT-Eval does: the last windows of the file,
each one horizon long; one forecast for each, from its start. MASE and CRPS are given as ratios to the seasonal-naive
forecast's, because GIFT-Eval's own version of the series has other units. Published ratios on that version, short:
Chronos-2 .806, TiRex .836, TimesFM 2.5 .859, PatchTST .914, DeepAR 1.085."""


def name(term: str) -> str:
    """The name of a term's runs, without the seed."""
    return f"gift-{term}"


def result_path(runs: Path, term: str, seed: int) -> Path:
    """The file of a run's scores."""
    return runs / f"{name(term)}-seed{seed}" / "gift.json"


def section(runs: Path, seeds: Sequence[int]) -> list[str]:
    """The parts of the page, empty without results in ``runs``."""
    rows = []
    for term, steps in TERMS.items():
        paths = [result_path(runs, term, seed) for seed in seeds]
        done = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
        if done:
            ratios = [[one[metric] / one[f"naive {metric}"] for one in done] for metric in ("MASE", "CRPS")]
            seconds = f"{mean([one['seconds'] for one in done]):.0f} s"
            rows.append([term, str(steps), *map(spread, ratios), WANTED.get(term, ""), seconds, str(len(done))])
    if not rows:
        return []
    header = ["term", "steps", "MASE ratio", "CRPS ratio", "MASE wanted", "time", "seeds"]
    return ["## ETTh1 by GIFT-Eval's protocol", INTRO, table(header, rows)]
