"""The table of short and odd series in QUALITY.md: is the model ever much worse than the simplest forecast?"""

from dataclasses import dataclass
from typing import Any, Final

from model.backtest import Autoregression, Persistence, SeasonalNaive
from pipeline.evaluation.evaluate import MODEL
from tests.benchmarks.markdown import mean, table

PREFIX: Final = "series-"  # of the names of runs on these series
HORIZONS: Final = (1, 12)  # steps
BUDGET_S: Final = 40  # seconds of training for each
BASELINES: Final = tuple(kind.name for kind in (Autoregression, SeasonalNaive, Persistence))
CLOSE: Final = 1.03  # ratio to the best baseline's loss that most series must stay within
LARGEST: Final = 1.10  # ratio that every series must stay within
MANY_LABELS: Final = 1_000  # test points from which the interval of a single series is judged
INTRO: Final = """\
Each file of NAB's folders `real*` is one sensor; they are server loads, prices of advertisements and counts of tweets,
with spikes, changes of level and 1,200 to 16,000 readings. Columns show the pinball loss of all steps together as a
multiple of the best baseline's, and of the seasonal-naive forecast's. One seed, 40 s of training. Wanted, at both
horizons: at most 1.03 times the best baseline on 90 % of the series, at most 1.10 on the worst, at most .90 of the
seasonal naive on average; 80 % intervals within 5 points over all, and within 10 on each series with at least 1,000
test points. The worst series come first."""


@dataclass(frozen=True)
class Row:
    """One series at one horizon."""

    series: str
    steps: int
    ratio: float  # pinball loss over the best baseline's
    best: str  # the best baseline
    naive_ratio: float  # pinball loss over the seasonal naive's
    off: float  # coverage of the 80 % interval less the nominal one
    labels: int

    @classmethod
    def of(cls, name: str, content: dict[str, Any]) -> "Row":
        """The row of a run, from its scores.json."""
        series, _, steps = name.removeprefix(PREFIX).rpartition("-")
        loss = {each: scores["scaled"]["pinball"] for each, scores in content["scores"].items()}
        best = min(BASELINES, key=loss.__getitem__)
        interval = content["scores"][MODEL]["intervals"][0]
        return cls(
            series=series,
            steps=int(steps),
            ratio=_ratio(loss[MODEL], loss[best]),
            best=best,
            naive_ratio=_ratio(loss[MODEL], loss[SeasonalNaive.name]),
            off=interval["overall"] - interval["nominal"],
            labels=content["scores"][MODEL]["labels"],
        )

    @property
    def points(self) -> int:
        """Forecasts in the test part."""
        return self.labels // self.steps


def section(results: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The parts of the page, empty without results. ``results`` has the scores of each run, by seed."""
    rows = [Row.of(name, done[0]) for name, done in results.items() if name.startswith(PREFIX) and done]
    if not rows:
        return []
    parts = ["## Short and odd series of NAB", INTRO]
    steps = sorted({row.steps for row in rows})
    header = ["", *(f"{each} step{'s' * (each > 1)}" for each in steps)]
    verdicts = [_verdicts([row for row in rows if row.steps == each]) for each in steps]
    parts.append(table(header, [[name, *(each[name] for each in verdicts)] for name in verdicts[0]]))
    worst_first = sorted(rows, key=lambda row: -row.ratio)
    header = ["series", "steps", "of the best baseline", "which is", "of the seasonal naive", "80% held, points off"]
    cells = [
        [row.series, str(row.steps), f"{row.ratio:.3f}", row.best, f"{row.naive_ratio:.3f}", f"{100 * row.off:+.1f}"]
        for row in worst_first
    ]
    return [*parts, table(header, cells)]


def _verdicts(rows: list[Row]) -> dict[str, str]:
    """Each bar of the section beside the figure reached, over the series of one horizon."""
    labels = sum(row.labels for row in rows)
    overall = sum(row.off * row.labels for row in rows) / labels
    long = [abs(row.off) for row in rows if row.points >= MANY_LABELS]
    return {
        f"series within {CLOSE} of the best baseline": f"{sum(row.ratio <= CLOSE for row in rows)} of {len(rows)}",
        f"worst series (at most {LARGEST:.2f})": f"{max(row.ratio for row in rows):.3f}",
        "mean of the seasonal naive's loss (at most .90)": f"{mean([row.naive_ratio for row in rows]):.3f}",
        "80% interval over all, points off (at most 5)": f"{100 * overall:+.1f}",
        "worst series with 1,000 test points, points off (at most 10)": f"{100 * max(long):.1f}" if long else "",
    }


def _ratio(loss: float, of: float) -> float:
    if of > 0.0:
        return loss / of
    return float("inf") if loss > 0.0 else 1.0
