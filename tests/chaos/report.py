"""Results of chaos runs, as JSON for programs and as a Markdown page for people."""

import json
import os
import statistics
from bisect import bisect_right
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.text.json_text import json_text
from pipeline.text.visible_text import visible
from tests.chaos.gauge import POINTS
from tests.chaos.harness import Record


def recovery_times(record: Record) -> tuple[list[float], list[float]]:
    """Seconds from each kill to the next forecast visible in each partition that the victim had served last.

    The first list has all of them. The second leaves out those with a broker outage or another kill in between.
    """
    first_seen: dict[int, list[tuple[float, float]]] = {}  # partition -> times sent and seen, seconds since the epoch
    for live_forecast in record.live_forecasts:
        first_seen.setdefault(live_forecast.partition, []).append((live_forecast.sent_ms / 1_000, live_forecast.seen))
    times = sorted(kill.at for kill in record.kills)
    everything, alone = [], []
    for kill in record.kills:
        for partition in kill.partitions:
            seen = first_seen.get(partition, [])
            place = bisect_right(seen, (kill.at, float("inf")))
            if place == len(seen):
                continue  # the reader saw no later forecast in this partition
            back = seen[place][1]
            everything.append(back - kill.at)
            disturbed = any(began < back and ended > kill.at for began, ended in record.outages)
            if not disturbed and bisect_right(times, back) - bisect_right(times, kill.at) == 0:
                alone.append(back - kill.at)
    return everything, alone


def shortfalls(record: Record) -> list[str]:
    """The reasons why the run failed; empty if it passed."""
    size, verdict = record.size, record.verdict
    if verdict is None:
        return ["the run ended before the audit"]
    found = [f"{name}: {count}" for name, count in verdict.faults.items()]
    found += [f"a forecaster ended by a bug: {text.splitlines()[0]}" for text in record.broken]
    for name, done, wanted in (
        ("readings", verdict.audit.readings, size.readings),
        ("outlooks", verdict.outlooks, 1),
        ("kills", len(record.kills), size.kills),
        ("stalls", record.stalls, size.stalls),
        ("broker kills", record.broker_kills, size.broker_kills),
        ("promotions", record.promotions, size.promotions),
    ):
        if done < wanted:
            found.append(f"only {done} {name} of {wanted}")
    found += [f"no forecaster was killed at {point!r}" for point in POINTS if not record.killed_at.get(point)]
    found += [f"a transition that is not allowed: {transition}" for transition in record.wrong_transitions]
    if not record.transitions:
        found.append("no transition of a partition was logged")
    if verdict.waiting or record.unsettled:
        found.append(f"{verdict.waiting} readings were not processed, {record.unsettled} waits for it timed out")
    if not record.seen_all:
        found.append("the live reader saw other records than the topic holds")
    if not record.ended_well:
        found.append("a forecaster did not end on SIGTERM in time with exit code 0")
    return found


def as_json(record: Record) -> dict[str, Any]:
    """The run as JSON values."""
    verdict = record.verdict
    everything, alone = recovery_times(record)
    kills = len(record.kills)
    return {
        "passed": not shortfalls(record),
        "shortfalls": shortfalls(record),
        "seed": record.seed,
        "without": list(record.without),
        "size": asdict(record.size),
        "cores": os.cpu_count(),
        "seconds": round(record.seconds, 1),
        "verify_s": round(record.verify_s, 1),
        "readings": verdict.audit.readings if verdict else None,
        "kills": kills,
        "kills_by_point": record.killed_at,
        "kills_in_open_transaction": sum(kill.in_transaction for kill in record.kills),
        "share_of_kills_in_open_transaction": round(sum(k.in_transaction for k in record.kills) / max(1, kills), 3),
        "fault_points_passed": dict(record.passings),
        "transitions": dict(record.transitions),
        "transitions_not_allowed": record.wrong_transitions,
        "stalls": record.stalls,
        "broker_kills": record.broker_kills,
        "broker_stalls": record.broker_stalls,
        "promotions": record.promotions,
        "forecasters_started": record.restarts,
        "forecasters_given_up": dict(record.given_up),
        "forecasters_broken": record.broken,
        "times_caught_up": record.settled,
        "forecasts_seen_live": len(record.live_forecasts),
        "live_reader_saw_all": record.seen_all,
        "recovery_s": _summary(everything),
        "recovery_s_undisturbed": _summary(alone),
        "verdict": None if verdict is None else asdict(verdict) | {"faults": verdict.faults},
    }


def _summary(values: list[float]) -> dict[str, float | int] | None:
    if len(values) < 2:
        return None
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {
        "count": len(values),
        "median": round(cuts[49], 2),
        "p99": round(cuts[98], 2),
        "largest": round(max(values), 2),
    }


def as_markdown(results: list[dict[str, Any]]) -> str:
    """The table of the report, one column per run."""
    rows: list[tuple[str, list[Any]]] = [
        ("verdict", ["**passed**" if result["passed"] else "**FAILED**" for result in results])
    ]
    verdicts = [result["verdict"] or {} for result in results]
    audits = [verdict.get("audit", {}) for verdict in verdicts]

    def row(name: str, values: list[Any]) -> None:
        rows.append((name, values))

    row("seed", [result["seed"] for result in results])
    row("duration", [f"{result['seconds'] / 60:.1f} min" for result in results])
    row("readings published", [_number(result["readings"]) for result in results])
    for name in ("accepted", "duplicates", "late", "rejected", "forecasts"):
        row(name, [f"{audit.get(name, 0):,}" for audit in audits])
    row("**missing**", [audit.get("lost") for audit in audits])
    row("**duplicated**", [audit.get("twice") for audit in audits])
    row("**out of order**", [audit.get("out_of_order") for audit in audits])
    row("forecasts recomputed", [f"{verdict.get('recomputed', 0):,}" for verdict in verdicts])
    row(
        "**different** (largest difference)",
        [f"{verdict.get('different')} ({_largest_difference(verdict)})" for verdict in verdicts],
    )
    row("**forecasts from an incomplete state**", [verdict.get("begun_anew") for verdict in verdicts])
    row("final states checked", [verdict.get("states") for verdict in verdicts])
    row("**states different**", [verdict.get("states_different") for verdict in verdicts])
    row(
        "**dead letters missing, duplicated**",
        [f"{verdict.get('letters_missing')}, {verdict.get('letters_twice')}" for verdict in verdicts],
    )
    row("forecasts seen live; equal to the topic's at the end", [_live(result) for result in results])
    row("forecasts by model version", [_listed(verdict.get("versions", {})) for verdict in verdicts])
    row("states rebuilt from readings by the same version", [verdict.get("rebuilt") for verdict in verdicts])
    row("SIGKILLs of forecasters", [result["kills"] for result in results])
    for point in ("random", *POINTS):
        row(f"- at {point}", [result["kills_by_point"].get(point, 0) for result in results])
    row("kills in an open transaction", [f"{result['share_of_kills_in_open_transaction']:.0%}" for result in results])
    row(
        "transitions of partitions",
        [_listed(result["transitions"]) if "transitions" in result else "-" for result in results],
    )
    row("**transitions not allowed**", [_count(result, "transitions_not_allowed") for result in results])
    row("SIGSTOPs beyond poll interval and session", [result["stalls"] for result in results])
    row("broker SIGKILLs", [result["broker_kills"] for result in results])
    row("broker SIGSTOPs beyond the delivery timeout", [result["broker_stalls"] for result in results])
    row("promotions under load", [result["promotions"] for result in results])
    row("forecasters started", [result["forecasters_started"] for result in results])
    row("forecasters restarted after an error message", [_listed(result["forecasters_given_up"]) for result in results])
    row("recovery, all: median, p99", [_times(result["recovery_s"]) for result in results])
    row("recovery, undisturbed: median, p99", [_times(result["recovery_s_undisturbed"]) for result in results])
    lines = ["| | " + " | ".join(f"run {number}" for number in range(1, len(results) + 1)) + " |"]
    lines.append("|---|" + "---|" * len(results))
    lines += [f"| {name} | " + " | ".join(map(_cell, values)) + " |" for name, values in rows]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    return visible(value).replace("|", "\\|")


def _largest_difference(verdict: dict[str, Any]) -> str:
    largest = verdict.get("largest_difference", 0.0)
    return "non-finite" if largest is None else f"{largest:.1e}"


def _number(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"  # a run that ended before the audit has no count


def _live(result: dict[str, Any]) -> str:
    return f"{result['forecasts_seen_live']:,}, {'yes' if result['live_reader_saw_all'] else '**no**'}"


def _count(result: dict[str, Any], name: str) -> str:
    return str(len(result[name])) if name in result else "-"  # older runs in report.json lack the count


def _listed(counts: dict[Any, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(counts.items())) or "none"


def _times(summary: dict[str, Any] | None) -> str:
    return "-" if summary is None else f"{summary['median']} s, {summary['p99']} s (of {summary['count']})"


INTRODUCTION = """# Forecasters under faults

`make chaos` wrote this page (`python -m tests.chaos --report tests/chaos`; `--seed N` draws other faults). The figures
are in `report.json` beside it.

Each run publishes readings throughout, with duplicates, late readings, gaps, missing values and rejects. A
`read_committed` reader notes when each forecast becomes visible. One forecaster runs, then three, then one again. The
harness injects these faults:

- A forecaster is killed by SIGKILL at a random moment, or kills itself at a fault point of the loop. It is restarted
  after 0.2 s under the same name.
- A forecaster is stopped for longer than the poll interval and the session timeout, also between a poll and its commit.
- The broker is killed by SIGKILL, or stopped for longer than the delivery timeout.
- A model is promoted under load, and a forecaster is killed in the middle of the swap.

At the end `streamgru verify` recomputes every forecast and every sensor's last state from the readings topic. It starts
from blank states and uses the model version that each forecast names.

Recovery is the time from a kill to the next visible forecast in a partition that the victim had served. It includes the
session timeout (6 s, the smallest that brokers allow by default): the group waits for it before it reassigns a dead
member's partitions. The restore comes on top. Faults follow one another about every seven seconds, so another fault
comes before most recoveries end. "Recovery, all" therefore shows how long a partition can be silent under a series of
faults. "Recovery, undisturbed" leaves out kills that another kill or a broker outage followed.

"""

GUARDS = """
## Without a guard

Each of these runs removed one guard from the forecasters (`tests/chaos/guards.py`). The harness must catch the faults
that the guard prevents. A run without a finding would mean that the harness cannot see them.

"""


# Faults whose name in ``verify --json`` needs another word for people.
FAULT_TITLES = {
    "twice": "duplicated",
    "begun anew": "from an incomplete state",
    "dead letters twice": "dead letters duplicated",
}


def _guard_table(results: list[dict[str, Any]]) -> str:
    lines = ["| guard removed | seed | kills | stalls | verdict | found |", "|---|---|---|---|---|---|"]
    for result in results:
        faults = (result["verdict"] or {}).get("faults", {})
        titles = {FAULT_TITLES.get(name, name): count for name, count in faults.items()}
        caught = "caught" if faults else "**not caught**"
        guards = ", ".join(result["without"])
        done = f"{result['seed']} | {result['kills']} | {result['stalls']}"
        lines.append(f"| {_cell(guards)} | {done} | {caught} | {_cell(_listed(titles))} |")
    return "\n".join(lines) + "\n"


def keep(result: dict[str, Any], folder: Path) -> None:
    """Add a run to ``report.json`` and ``REPORT.md``; it replaces a run with the same seed and guards."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.json"
    earlier: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []

    def identity(run: dict[str, Any]) -> tuple[list[str], int]:
        return (run["without"], run["seed"])

    results = sorted([run for run in earlier if identity(run) != identity(result)] + [result], key=identity)
    path.write_text(json_text(results, indent=1) + "\n", encoding="utf-8")
    guarded = [run for run in results if not run["without"]]
    unguarded = [run for run in results if run["without"]]
    page = INTRODUCTION + (as_markdown(guarded) if guarded else "")
    page += GUARDS + _guard_table(unguarded) if unguarded else ""
    (folder / "REPORT.md").write_text(page, encoding="utf-8")
