"""The demo's report: one HTML page that needs no network."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Final

import numpy as np

from deploy.demo.agreement import Agreement
from deploy.demo.data import LiveReadings
from deploy.demo.figures import draw_coverage, draw_errors, draw_run, draw_traces
from deploy.demo.scores import FORECAST, Trace
from deploy.demo.timeline import Seconds, Swap
from deploy.live import shown_steps
from model.metrics import Scores
from pipeline.audit.findings import Audit

_TITLE: Final = "streamgru: live forecasts of Beijing's air"
_STYLE: Final = """
  :root { color-scheme: light; --ink: #1f2933; --muted: #62707d; --line: #e1e6ea; --accent: #0b7285; --good: #2b7a3d;
          --bad: #b3261e; }
  * { box-sizing: border-box }
  body { font: 15px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; color: var(--ink); margin: 0;
         background: #f4f6f7 }
  main { max-width: 1020px; margin: 0 auto; padding: 28px 20px 60px }
  h1 { font-size: 27px; line-height: 1.2; margin: 0 0 6px } h2 { font-size: 18px; margin: 0 0 4px }
  p { margin: 0 0 10px } .lead { color: var(--muted); max-width: 76ch } .note { color: var(--muted); font-size: 13.5px }
  section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px; margin-top: 16px }
  .cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-top: 18px }
  .card { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px }
  .card b { display: block; font-size: 25px; line-height: 1.2; font-weight: 650; font-variant-numeric: tabular-nums }
  .card span { color: var(--muted); font-size: 13px } .good b { color: var(--good) } .bad b { color: var(--bad) }
  .wide { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
  th, td { text-align: right; padding: 5px 10px; border-bottom: 1px solid var(--line) }
  th { font-weight: 600; color: var(--muted); font-size: 13.5px } th:first-child, td:first-child { text-align: left }
  tr.ours td { font-weight: 650; color: var(--accent) } td.text { text-align: left; overflow-wrap: anywhere }
  td.title { width: 32% } td.time { white-space: nowrap } td { vertical-align: top }
  svg { width: 100%; height: auto; display: block; margin-top: 8px }
  code { background: #eef1f3; padding: 1px 4px; border-radius: 4px; font-size: 0.92em }
  .columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(330px, 1fr)); gap: 4px 36px }
"""


@dataclass(frozen=True)
class Step:
    """Something the demo did."""

    title: str
    result: str
    seconds: float


@dataclass(frozen=True)
class Version:
    """A model version, and how it became champion."""

    version: int
    created: datetime
    metrics: Mapping[str, float]  # of the back-test
    promotion: str


@dataclass(frozen=True)
class Outcome:
    """Everything the demo found out."""

    audit: Audit
    sensors: int
    history_readings: int
    faults: LiveReadings
    scores: Mapping[str, Scores]
    agreement: Agreement
    traces: Sequence[Trace]
    seconds: Seconds
    swaps: Sequence[Swap]
    retraining: tuple[float, float] | None  # time of day
    versions: Sequence[Version]
    steps: Sequence[Step]


def write_report(outcome: Outcome, path: Path) -> None:
    """Write the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(outcome), encoding="utf-8")


def render(outcome: Outcome) -> str:
    """The page."""
    coverage = coverage_by_target(outcome.scores[FORECAST])
    held = ", ".join(f"{target} {share:.1%}" for target, share in coverage.items())
    parts = [
        f"<h1>{_TITLE}</h1><p class='lead'>{_lead(outcome)}</p>",
        _cards(outcome),
        _section(
            "Forecasts and what came true",
            "Each line is the forecast that a consumer of the topic had in hand that long before; where it breaks off, "
            "no reading had come in to forecast from.",
            draw_traces(list(outcome.traces)),
        ),
        _section(
            "Error by hours ahead",
            "Mean absolute error of the median over every forecast on the topic, against two forecasts that cost "
            "nothing, over exactly the same times of issue and the same labels.",
            draw_errors(outcome.scores) + _error_table(outcome.scores) + _agreement(outcome.agreement),
        ),
        _section(
            "Do the intervals hold?",
            f"Share of measurements within the outermost quantiles, over all steps ahead: {held}.",
            draw_coverage(outcome.scores[FORECAST]),
        ),
        _section("The run", _run_note(outcome), draw_run(outcome.seconds, list(outcome.swaps), outcome.retraining)),
        "<section class='columns'>" + _counts(outcome.audit) + _versions(outcome.versions) + "</section>",
        _section("What was done", "", _steps(outcome.steps)),
    ]
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{_TITLE}</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _lead(outcome: Outcome) -> str:
    faults = outcome.faults
    return (
        "A GRU that keeps its hidden state from message to message was trained on "
        f"{outcome.history_readings:,} hourly readings of {outcome.sensors} air-quality stations in Beijing. Then it "
        "forecast the readings that followed as they came in over Kafka, in two forecasters, while a second model was "
        f"trained and took over. On the way, {faults.left_out:,} readings were left out, {faults.sent_late:,} sent "
        f"late and {faults.sent_twice:,} sent twice."
    )


def _section(title: str, note: str, content: str) -> str:
    head = f"<h2>{escape(title)}</h2><p class='note'>{escape(note)}</p>"
    return f"<section>{head}<div class='wide'>{content}</div></section>"


def _cards(outcome: Outcome) -> str:
    counts = outcome.audit
    cards = [
        (f"{counts.accepted:,}", "readings accepted", ""),
        (f"{counts.forecasts:,}", "forecasts", ""),
        (f"{counts.lost:,}", "lost", "bad" if counts.lost else "good"),
        (f"{counts.twice:,}", "twice", "bad" if counts.twice else "good"),
        (f"{counts.out_of_order:,}", "out of order", "bad" if counts.out_of_order else "good"),
    ]
    if outcome.swaps:
        cards.append((f"{outcome.swaps[-1].pause_s:.2f} s", "longest pause around the change of models", ""))
    body = "".join(f"<div class='card {kind}'><b>{value}</b><span>{name}</span></div>" for value, name, kind in cards)
    return f"<div class='cards'>{body}</div>"


def _error_table(scores: Mapping[str, Scores]) -> str:
    targets = scores[FORECAST].targets
    errors = {name: found.by_horizon("mae") for name, found in scores.items()}
    shown = shown_steps(errors[FORECAST].shape[1])
    heads = "".join(f"<th>{escape(target)} +{step}</th>" for target in targets for step in shown)
    rows = ""
    for name, error in errors.items():
        cells = "".join(f"<td>{error[row, step - 1]:.3g}</td>" for row in range(len(targets)) for step in shown)
        rows += f"<tr{' class=ours' if name == FORECAST else ''}><td>{escape(name)}</td>{cells}</tr>"
    return f"<table><tr><th></th>{heads}</tr>{rows}</table>"


def _agreement(agreed: Agreement) -> str:
    return (
        f"<p class='note'>The evaluator, over the same readings, gives {agreed.different:,} different forecasts of "
        f"{agreed.compared:,}; the largest difference is {agreed.largest:.1g} standard deviations of the sensor, and "
        f"its mean absolute errors are within a part of {agreed.largest_mae:.1g} of these.</p>"
    )


def coverage_by_target(scores: Scores) -> dict[str, float]:
    """The share of labels within the outermost quantiles, over all steps ahead."""
    held = np.nansum(scores.by_horizon("coverage") * scores.n, axis=1) / np.maximum(scores.n.sum(axis=1), 1)
    return dict(zip(scores.targets, held.tolist(), strict=True))


def _run_note(outcome: Outcome) -> str:
    if not outcome.swaps:
        return "The model did not change during this run."
    return " ".join(
        f"Version {swap.version_after} took over from {swap.version_before} within "
        f"{swap.last_s - swap.first_s:.1f} s over all partitions; the longest pause of any partition "
        f"was {swap.pause_s:.2f} s around that; at other times 99 % of pauses are shorter than "
        f"{swap.usual_pause_s:.2f} s. (A pause: a reading was waiting, and no forecast became visible.)"
        for swap in outcome.swaps
    )


def _counts(counts: Audit) -> str:
    rows = [
        ("readings sent", counts.readings),
        ("accepted", counts.accepted),
        ("duplicates, not accepted", counts.duplicates),
        ("late, not accepted", counts.late),
        ("malformed, set aside", counts.rejected),
        ("forecasts", counts.forecasts),
        ("accepted readings without a forecast (lost)", counts.lost),
        ("forecasts too many (twice)", counts.twice),
        ("forecasts out of order", counts.out_of_order),
        ("forecasts of nothing that was accepted", counts.unexpected),
    ]
    body = "".join(f"<tr><td>{name}</td><td>{value:,}</td></tr>" for name, value in rows)
    return f"<div><h2>Counts</h2><table>{body}</table></div>"


def _versions(versions: Sequence[Version]) -> str:
    body = ""
    for version in versions:
        loss, rivals = version.metrics.get("pinball"), []
        for rival, name in (("champion", "the champion then"), ("naive", "seasonal naive")):
            if (found := version.metrics.get(f"pinball.{rival}")) is not None:
                rivals.append(f"{name} {found:.4g}")
        note = f"back-test, mean pinball loss {loss:.4g}; {', '.join(rivals)}" if loss is not None else ""
        body += (
            f"<tr><td>{version.version}</td><td class='text'>trained {version.created:%H:%M:%S} UTC; champion "
            f"{_marked(version.promotion)}<br><span class='note'>{escape(note)}</span></td></tr>"
        )
    return f"<div><h2>Model versions</h2><table>{body}</table></div>"


def _steps(steps: Sequence[Step]) -> str:
    body = "".join(
        f"<tr><td class='title'>{escape(step.title)}</td><td class='text'>{_marked(step.result)}</td>"
        f"<td class='time'>{step.seconds:.1f} s</td></tr>"
        for step in steps
    )
    total = sum(step.seconds for step in steps)
    return f"<table>{body}<tr><td>together</td><td></td><td>{total:.0f} s</td></tr></table>"


def _marked(text: str) -> str:
    """Commands between backticks as code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))
