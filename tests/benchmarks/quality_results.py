"""The results behind QUALITY.md, kept in the folder ``quality``: no other machine needs to run them again.

Of a back-test's ``scores.json`` only the figures on the page are kept; ablations and studies are kept in full. After a
change of training, adaptation or scoring, remove the folder: ``make quality`` then runs everything again.
"""

import json
import shutil
from pathlib import Path
from typing import Any, Final

KEPT: Final = Path(__file__).with_name("quality")
SCORES: Final = "scores.json"
METRICS: Final = ("mse", "mae", "pinball", "winkler")
METRICS_BY_TARGET: Final = ("mae", "crps")


def bring(runs: Path, kept: Path = KEPT) -> None:
    """Copy kept results into the runs' folder, except those that it has already."""
    for path in sorted(kept.rglob("*.json")):
        there = runs / path.relative_to(kept)
        if not there.exists():
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, there)


def keep(runs: Path, kept: Path = KEPT) -> None:
    """Copy the results of the runs' folder into the kept folder."""
    for path in sorted(runs.glob("*/*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        there = kept / path.relative_to(runs)
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_text(json.dumps(_needed(content) if path.name == SCORES else content), encoding="utf-8")


def _needed(content: dict[str, Any]) -> dict[str, Any]:
    """The figures of a back-test that the page shows; metrics by step of the horizon are replaced by their mean."""

    def means(metrics: dict[str, list[float]]) -> dict[str, list[float]]:
        return {metric: [sum(metrics[metric]) / len(metrics[metric])] for metric in METRICS_BY_TARGET}

    return {
        "model": {"targets": content["model"]["targets"]},
        "training": {"seconds": content["training"]["seconds"]} if content["training"] else None,
        "scores": {
            name: {
                "labels": scores.get("labels"),  # missing in results of an earlier release
                "scaled": {metric: scores["scaled"].get(metric) for metric in METRICS},
                "by_horizon": {target: means(metrics) for target, metrics in scores["by_horizon"].items()},
                "intervals": scores["intervals"],
            }
            for name, scores in content["scores"].items()
        },
    }
