"""The demo's report: one HTML page that needs no network, with its plots as SVG, and one picture as PNG."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any, Final

import matplotlib
import matplotlib.dates
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import NDArray

from deploy.demo.data import LiveReadings
from deploy.demo.live import LONGEST_SILENCE_S, Seconds, Silence, Swap
from deploy.demo.scores import FORECAST, Agreement, Trace
from deploy.live_forecasts import shown_steps
from model.metrics import Scores
from pipeline.audit.delivery import DeliveryCounts

INK: Final = "#1f2933"
MUTED: Final = "#8a94a0"
ACCENT: Final = "#0b7285"
BAND: Final = "#9fd3dc"
VERSION_COLOURS: Final = ("#74b3c2", "#0b7285", "#e8a33d", "#a34a28")
BASELINE_COLOURS: Final = ("#e8a33d", "#8a94a0")
UNITS: Final = {"PM2.5": "µg/m³", "TEMP": "°C"}
_dates: Any = matplotlib.dates  # ships no types

_TITLE: Final = "streamgru: live forecasts of Beijing's air"
_PAGE_STYLE: Final = """
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
_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",  # text stays text: sharp, small, searchable
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#c5ccd3",
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#eceff2",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Step:
    """Something the demo did."""

    title: str
    result: str
    seconds: float


@dataclass(frozen=True)
class Version:
    """A model version, and the gate's decision about it."""

    version: int
    created: datetime
    metrics: Mapping[str, float]  # of the back-test
    standing: str


@dataclass(frozen=True)
class Outcome:
    """Everything the demo found out."""

    audit: DeliveryCounts
    sensors: int
    history_readings: int
    faults: LiveReadings
    scores: Mapping[str, Scores]
    agreement: Agreement
    traces: Sequence[Trace]
    seconds: Seconds
    swaps: Sequence[Swap]
    silence: Silence | None  # longest of any partition
    retraining: tuple[float, float]  # time of day
    versions: Sequence[Version]
    steps: Sequence[Step]
    took_s: float  # all steps; some run side by side


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
            draw_traces(outcome.traces),
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
        _section("The run", _run_note(outcome), draw_run(outcome.seconds, outcome.swaps, outcome.retraining)),
        "<section class='columns'>" + _counts(outcome.audit) + _versions(outcome.versions) + "</section>",
        _section("What was done", "Some steps run side by side.", _steps(outcome)),
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
        "A GRU that keeps its hidden state from message to message was trained on the older half of "
        f"{outcome.history_readings:,} hourly readings of {outcome.sensors} air-quality stations in Beijing. Two "
        "forecasters then forecast the readings that followed as they came in over Kafka. Meanwhile a second model was "
        "trained on all readings so far, and the gate compared it with the first. On the way, "
        f"{faults.left_out:,} readings were left out, {faults.sent_late:,} sent late and {faults.sent_twice:,} twice."
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
    if (silence := outcome.silence) is not None:
        text = "longest wait of a partition for its next forecast"
        cards.append((f"{silence.seconds:.2f} s", text, "good" if silence.is_short else "bad"))
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
    notes = [
        f"Version {swap.version_after} took over from {swap.version_before} within {swap.last_s - swap.first_s:.1f} s "
        f"over all partitions; the longest pause of any partition around that was {swap.pause_s:.2f} s. At other times "
        f"99 % of pauses are shorter than {swap.usual_pause_s:.2f} s."
        for swap in outcome.swaps
    ] or ["The model did not change during this run: the gate's reason stands below."]
    if (silence := outcome.silence) is not None:
        notes.append(
            f"The longest pause of all was {silence.seconds:.2f} s, in partition {silence.partition}; the demo promises"
            f" at most {LONGEST_SILENCE_S:g} s. (A pause: a reading was waiting, and no forecast became visible.)"
        )
    return " ".join(notes)


def _counts(counts: DeliveryCounts) -> str:
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
            f"<tr><td>{version.version}</td><td class='text'>trained {version.created:%H:%M:%S} UTC; "
            f"{_marked(version.standing)}<br><span class='note'>{escape(note)}</span></td></tr>"
        )
    return f"<div><h2>Model versions</h2><table>{body}</table></div>"


def _steps(outcome: Outcome) -> str:
    body = "".join(
        f"<tr><td class='title'>{escape(step.title)}</td><td class='text'>{_marked(step.result)}</td>"
        f"<td class='time'>{step.seconds:.1f} s</td></tr>"
        for step in outcome.steps
    )
    return f"<table>{body}<tr><td>together</td><td></td><td>{outcome.took_s:.0f} s</td></tr></table>"


def _marked(text: str) -> str:
    """Commands between backticks as code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


@contextmanager
def _figure(height_in: float, rows: int, columns: int, **options: Any) -> Iterator[tuple[Figure, Any]]:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10.0, height_in), layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False, **options)


def _svg(figure: Figure) -> str:
    with matplotlib.rc_context(_STYLE):
        output = io.StringIO()
        figure.savefig(output, format="svg", metadata={"Date": None, "Creator": None})
    text = output.getvalue()
    return text[text.index("<svg") :]


def _time_axis(ax: Axes, title: str) -> None:
    locator = _dates.AutoDateLocator()
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(_dates.ConciseDateFormatter(locator))
    ax.margins(x=0.005)
    ax.set_title(title)


def draw_traces(traces: Sequence[Trace]) -> str:
    """Forecasts with their interval against the readings."""
    with _figure(2.15 * len(traces), len(traces), 1) as (figure, axes):
        for row, trace in enumerate(traces):
            ax: Axes = axes[row, 0]
            ax.fill_between(trace.moments, trace.low, trace.high, color=BAND, alpha=0.65, lw=0, label=trace.interval)
            ax.plot(trace.moments, trace.median, color=ACCENT, lw=1.3, label=f"median, issued {trace.lead} before")
            ax.plot(trace.moments, trace.actual, color=INK, lw=1.1, label="measured")
            for number, (since, until) in enumerate(trace.outages):
                label = None if number else "no readings sent"
                span = _dates.date2num(since), _dates.date2num(until)
                ax.axvspan(*span, color="#f3e3d3", alpha=0.7, lw=0, label=label)
            _time_axis(ax, f"{trace.sensor}, {trace.target}")
            if row == 0 or trace.outages:
                ax.legend(loc="upper right", ncols=4, fontsize=9, bbox_to_anchor=(1.0, 1.22))
        return _svg(figure)


def draw_picture(traces: Sequence[Trace], path: Path) -> None:
    """Write a PNG of readings and, now and then, a whole forecast as it stood on the topic."""
    with _figure(2.4 * len(traces), len(traces), 1, sharex=True) as (figure, axes):
        for row, trace in enumerate(traces):
            ax: Axes = axes[row, 0]
            for number, fan in enumerate(trace.fans):
                labels = (trace.interval, "median forecast") if number == 0 else (None, None)
                ax.fill_between(fan.moments, fan.low, fan.high, color=BAND, alpha=0.65, lw=0, label=labels[0])
                ax.plot(fan.moments, fan.median, color=ACCENT, lw=1.8, label=labels[1])
                ax.axvline(fan.moments[0], color=MUTED, lw=0.8, ls=":", label=None if number else "forecast issued")
            ax.plot(trace.moments, trace.actual, color=INK, lw=1.0, marker="o", ms=2.2, label="measured")
            _time_axis(ax, f"{trace.sensor}, {trace.target}")
            ax.set_ylabel(UNITS.get(trace.target, ""))
        axes[0, 0].legend(loc="upper right", ncols=4, fontsize=9, bbox_to_anchor=(1.0, 1.2))
        figure.savefig(path, dpi=110, metadata={"Software": None})


def _ahead_axis(ax: Axes, ahead: NDArray[np.int64], title: str) -> None:
    ax.set_title(title)
    ax.set_xlabel("steps ahead")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlim(ahead[0], max(2, ahead[-1]))
    ax.legend(fontsize=9, loc="best")


def draw_errors(scores: Mapping[str, Scores]) -> str:
    """Mean absolute error by steps ahead, against the baselines."""
    ours = scores[FORECAST]
    with _figure(3.0, 1, len(ours.targets)) as (figure, axes):
        errors = {name: found.by_horizon("mae") for name, found in scores.items()}
        ahead = np.arange(1, errors[FORECAST].shape[1] + 1)
        for column, target in enumerate(ours.targets):
            ax: Axes = axes[0, column]
            for name, colour in zip([name for name in scores if name != FORECAST], BASELINE_COLOURS, strict=True):
                ax.plot(ahead, errors[name][column], color=colour, lw=1.5, label=name)
            ax.plot(ahead, errors[FORECAST][column], color=ACCENT, lw=2.2, label=FORECAST)
            ax.set_ylim(bottom=0)
            _ahead_axis(ax, ahead, f"{target}: mean absolute error")
        return _svg(figure)


def draw_coverage(scores: Scores) -> str:
    """How often the interval held the reading."""
    with _figure(2.5, 1, len(scores.targets), sharey=True) as (figure, axes):
        coverage = scores.by_horizon("coverage") * 100
        ahead = np.arange(1, coverage.shape[1] + 1)
        nominal = scores.nominal_coverage
        for column, target in enumerate(scores.targets):
            ax: Axes = axes[0, column]
            ax.axhline(nominal * 100, color=MUTED, lw=1.2, ls="--", label=f"promised: {nominal:.0%}")
            ax.plot(ahead, coverage[column], color=ACCENT, lw=2.0, label="held")
            ax.set_ylim(40, 100)
            ax.yaxis.set_major_formatter("{x:.0f} %")
            _ahead_axis(ax, ahead, f"{target}: coverage of the {nominal:.0%} interval")
        return _svg(figure)


def draw_run(seconds: Seconds, swaps: Sequence[Swap], retraining: tuple[float, float]) -> str:
    """Rate and delay of visible forecasts over the run, with the change of models."""
    with _figure(4.2, 2, 1, sharex=True, height_ratios=(3, 2)) as (figure, axes):
        moments = np.arange(seconds.rate.shape[1])
        rate, delay = axes[0, 0], axes[1, 0]
        colours = VERSION_COLOURS[: len(seconds.versions)]
        labels = [f"by version {version}" for version in seconds.versions]
        rate.stackplot(moments, seconds.rate, colors=colours, labels=labels, step="post", lw=0)
        rate.set_title("Visible forecasts per second")
        delay.plot(moments, seconds.delay_p99_s * 1_000, color=BASELINE_COLOURS[0], lw=1.3, label="99th percentile")
        delay.plot(moments, seconds.delay_median_s * 1_000, color=ACCENT, lw=1.6, label="median")
        delay.set_title("Milliseconds from reading sent to forecast visible")
        delay.set_yscale("log")
        delay.yaxis.set_major_formatter("{x:,.0f}")
        delay.yaxis.set_minor_formatter(NullFormatter())
        rate.set_ylim(0, 1.08 * max(1.0, float(seconds.rate.sum(axis=0).max(initial=0.0))))
        delay.set_xlabel("seconds since the first forecast")
        delay.set_xlim(0, max(1, len(moments) - 1))
        for ax in (rate, delay):
            since, until = (moment - seconds.start_s for moment in retraining)
            label = "retraining runs" if ax is rate else None
            ax.axvspan(since, until, color="#ede3cd", alpha=0.6, lw=0, zorder=0, label=label)
            for number, swap in enumerate(swaps):
                label = "model changes" if ax is rate and not number else None
                ax.axvline(swap.first_s - seconds.start_s, color=INK, lw=1.2, ls=":", label=label)
            ax.legend(fontsize=9, loc="upper right", ncols=4, bbox_to_anchor=(1.0, 1.17))
        return _svg(figure)
