"""The demo's report: one HTML page that needs no network, with its plots as SVG, and one picture as PNG."""

import html
import io
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from string import Template
from typing import Any, Final

import matplotlib
import matplotlib.dates
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import NDArray

from deploy.demo.data import LiveReadings
from deploy.demo.live import Seconds, Silence, Swap
from deploy.demo.scores import FORECAST, Agreement, Trace
from deploy.live_forecasts import shown_steps
from model.metrics import Scores
from pipeline.audit.delivery import DeliveryCounts
from pipeline.best_effort import best_effort
from pipeline.evaluation.plot_text import LONGEST_NAME, draw_legend, drawable, legend_name, set_labels
from pipeline.text.visible_text import visible

log = logging.getLogger("streamgru.demo")

PAGE: Final = Path(__file__).with_name("report.html")  # a string.Template
PLOT_STYLE: Final = Path(__file__).with_name("report.mplstyle")
INK: Final = "#1f2933"
MUTED: Final = "#8a94a0"
ACCENT: Final = "#0b7285"
BAND: Final = "#9fd3dc"
VERSION_COLOURS: Final = ("#74b3c2", "#0b7285", "#e8a33d", "#a34a28")
BASELINE_COLOURS: Final = ("#e8a33d", "#8a94a0")
LOSSES: Final = {
    "pinball": "back-test, mean pinball loss",
    "pinball.champion": "the champion at that time",
    "pinball.naive": "seasonal naive",
}  # metric of a version -> its name
UNITS: Final = {"PM2.5": "µg/m³", "TEMP": "°C"}
_dates: Any = matplotlib.dates  # ships no types


@dataclass(frozen=True)
class Step:
    """A step of the demo."""

    title: str
    result: str
    seconds: float


@dataclass(frozen=True)
class Version:
    """A model version, and the gate's decision about it."""

    version: int
    created: datetime
    metrics: Mapping[str, float]  # scores of the back-test
    standing: str


@dataclass(frozen=True)
class Outcome:
    """The findings of the demo."""

    audit: DeliveryCounts
    sensors: int
    history_readings: int
    faults: LiveReadings
    scores: Mapping[str, Scores]
    agreement: Agreement
    traces: Sequence[Trace]
    seconds: Seconds
    swaps: Sequence[Swap]
    silence: Silence | None  # the longest silence of any partition
    retraining: tuple[float, float]  # time of day
    versions: Sequence[Version]
    steps: Sequence[Step]
    took_s: float  # duration of the whole demo; some steps run side by side


def render(outcome: Outcome) -> str:
    """The page."""
    scores, faults, silence = outcome.scores, outcome.faults, outcome.silence
    numbers = {name: number for name, number in vars(outcome.audit).items() if isinstance(number, int)}
    numbers |= {"history_readings": outcome.history_readings, "sensors": outcome.sensors}
    numbers |= {"left_out": faults.left_out, "sent_late": faults.sent_late, "sent_twice": faults.sent_twice}
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        {name: f"{number:,}" for name, number in numbers.items()},
        silence="-" if silence is None else f"{silence.seconds:.2f} s",
        silence_is="" if silence is None else "fault n0" if silence.is_short else "fault",
        traces=_plot("forecasts", lambda: draw_traces(outcome.traces)),
        errors=_plot("errors", lambda: draw_errors(scores)),
        error_table=_error_table(scores),
        agreement=html_text(outcome.agreement),
        coverage=html_text(coverage_note(scores[FORECAST])),
        coverage_plot=_plot("coverage", lambda: draw_coverage(scores[FORECAST])),
        run_note=_run_note(outcome),
        run=_plot("rates and delays", lambda: draw_run(outcome.seconds, outcome.swaps, outcome.retraining)),
        versions=_rows((str(version.version), _version_note(version)) for version in outcome.versions),
        steps=_steps(outcome),
    )


def html_text(text: object) -> str:
    """Text as HTML: no character in it is taken as a tag, and control characters are escaped."""
    return html.escape(visible(text), quote=False)  # no text stands in an attribute


def _plot(name: str, draw: Callable[[], str]) -> str:
    """The plot as SVG, or a note in its place if it cannot be drawn."""
    with best_effort(f"the plot of {name}", log):
        return draw()
    return f"<p class='note'>The plot of {name} could not be drawn; the log has the reason.</p>"


def _rows(rows: Iterable[Iterable[str]], cell: str = "td") -> str:
    """Rows of a table, of cells that are HTML."""
    return "".join(f"<tr>{''.join(f'<{cell}>{text}</{cell}>' for text in row)}</tr>" for row in rows)


def _error_table(scores: Mapping[str, Scores]) -> str:
    targets, rows = mae_table(scores)
    return _rows([["", *map(html_text, targets)]], "th") + _rows([html_text(name), *cells] for name, *cells in rows)


def mae_table(scores: Mapping[str, Scores]) -> tuple[list[str], list[list[str]]]:
    """Targets at some steps ahead; and a row for each name in ``scores``: the name, then its mean absolute errors."""
    targets = scores[FORECAST].targets
    errors = {name: found.by_horizon("mae") for name, found in scores.items()}
    places = [(row, step) for row in range(len(targets)) for step in shown_steps(errors[FORECAST].shape[1])]
    return (
        [f"{targets[row]} +{step}" for row, step in places],
        [[name, *(f"{error[row, step - 1]:.3g}" for row, step in places)] for name, error in errors.items()],
    )


def coverage_by_target(scores: Scores) -> dict[str, float]:
    """The share of labels within the outermost quantiles, over all steps ahead."""
    held = np.nansum(scores.by_horizon("coverage") * scores.n, axis=1) / np.maximum(scores.n.sum(axis=1), 1)
    return dict(zip(scores.targets, held.tolist(), strict=True))


def coverage_note(scores: Scores) -> str:
    """``coverage_by_target`` in words."""
    return ", ".join(f"{target} {share:.1%}" for target, share in coverage_by_target(scores).items())


def _run_note(outcome: Outcome) -> str:
    changes = list(map(str, outcome.swaps)) or ["The model did not change; the gate's reason is below"]
    return "<br>".join(f"{html_text(note)}." for note in (*changes, outcome.silence) if note is not None)


def _version_note(version: Version) -> str:
    losses = [f"{name} {version.metrics[key]:.4g}" for key, name in LOSSES.items() if key in version.metrics]
    made = f"trained {version.created:%H:%M:%S} UTC; {_with_code(version.standing)}"
    return f"{made}<br><span class='note'>{html_text('; '.join(losses))}</span>"


def _steps(outcome: Outcome) -> str:
    rows = [(html_text(step.title), _with_code(step.result), f"{step.seconds:.1f} s") for step in outcome.steps]
    return _rows([*rows, ("together", "", f"{outcome.took_s:.0f} s")])


def _with_code(text: str) -> str:
    """The text as HTML; commands between backticks are marked as code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", html_text(text))


@contextmanager
def _figure(height_in: float, rows: int, columns: int, **options: Any) -> Iterator[tuple[Figure, Any]]:
    with matplotlib.rc_context(fname=PLOT_STYLE):
        figure = Figure(figsize=(10.0, height_in), layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False, **options).flat


def _svg(figure: Figure) -> str:
    output = io.StringIO()
    figure.savefig(output, format="svg", metadata={"Date": None, "Creator": None})
    text = output.getvalue()
    return text[text.index("<svg") :]


def _time_axis(ax: Axes, title: str) -> None:
    locator = _dates.AutoDateLocator()
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(_dates.ConciseDateFormatter(locator))
    ax.margins(x=0.005)
    set_labels(ax, title)


def draw_traces(traces: Sequence[Trace]) -> str:
    """Forecasts with their interval against the readings."""
    with _figure(2.15 * len(traces), len(traces), 1) as (figure, axes):
        for ax, trace in zip(axes, traces, strict=True):
            ax.fill_between(trace.moments, trace.low, trace.high, color=BAND, alpha=0.65, lw=0, label=trace.interval)
            ax.plot(trace.moments, trace.median, color=ACCENT, lw=1.3, label=f"median, issued {trace.lead} before")
            ax.plot(trace.moments, trace.actual, color=INK, lw=1.1, label="measured")
            for number, (since, until) in enumerate(trace.outages):
                label = None if number else "no readings sent"
                span = _dates.date2num(since), _dates.date2num(until)
                ax.axvspan(*span, color="#f3e3d3", alpha=0.7, lw=0, label=label)
            _time_axis(ax, f"{drawable(trace.sensor, LONGEST_NAME)}, {drawable(trace.target, LONGEST_NAME)}")
            if trace is traces[0] or trace.outages:
                draw_legend(ax, loc="upper right", ncols=4, fontsize=9, bbox_to_anchor=(1.0, 1.22))
        return _svg(figure)


def draw_picture(traces: Sequence[Trace], path: Path) -> None:
    """Write a PNG of readings with some whole forecasts as they were on the topic."""
    with _figure(2.4 * len(traces), len(traces), 1, sharex=True) as (figure, axes):
        for ax, trace in zip(axes, traces, strict=True):
            for number, fan in enumerate(trace.fans):
                labels = (trace.interval, "median forecast") if number == 0 else (None, None)
                ax.fill_between(fan.moments, fan.low, fan.high, color=BAND, alpha=0.65, lw=0, label=labels[0])
                ax.plot(fan.moments, fan.median, color=ACCENT, lw=1.8, label=labels[1])
                ax.axvline(fan.moments[0], color=MUTED, lw=0.8, ls=":", label=None if number else "forecast issued")
            ax.plot(trace.moments, trace.actual, color=INK, lw=1.0, marker="o", ms=2.2, label="measured")
            _time_axis(ax, f"{drawable(trace.sensor, LONGEST_NAME)}, {drawable(trace.target, LONGEST_NAME)}")
            ax.set_ylabel(UNITS.get(trace.target, ""))
        draw_legend(figure.axes[0], loc="upper right", ncols=4, fontsize=9, bbox_to_anchor=(1.0, 1.2))
        figure.savefig(path, dpi=110, metadata={"Software": None})


def _ahead_axis(ax: Axes, ahead: NDArray[np.int64], title: str) -> None:
    set_labels(ax, title, "steps ahead")
    ax.set_xlim(ahead[0], max(2, ahead[-1]))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    draw_legend(ax, fontsize=9, loc="best")


def draw_errors(scores: Mapping[str, Scores]) -> str:
    """Mean absolute error by steps ahead, against the baselines."""
    ours = scores[FORECAST]
    with _figure(3.0, 1, len(ours.targets)) as (figure, axes):
        errors = {name: found.by_horizon("mae") for name, found in scores.items()}
        ahead = np.arange(1, errors[FORECAST].shape[1] + 1)
        for column, (ax, target) in enumerate(zip(axes, ours.targets, strict=True)):
            for name, colour in zip([name for name in scores if name != FORECAST], BASELINE_COLOURS, strict=True):
                ax.plot(ahead, errors[name][column], color=colour, lw=1.5, label=legend_name(name))
            ax.plot(ahead, errors[FORECAST][column], color=ACCENT, lw=2.2, label=FORECAST)
            ax.set_ylim(bottom=0)
            _ahead_axis(ax, ahead, f"{drawable(target, LONGEST_NAME)}: mean absolute error")
        return _svg(figure)


def draw_coverage(scores: Scores) -> str:
    """Share of the measurements within the interval, by steps ahead."""
    with _figure(2.5, 1, len(scores.targets), sharey=True) as (figure, axes):
        coverage = scores.by_horizon("coverage") * 100
        ahead = np.arange(1, coverage.shape[1] + 1)
        nominal = scores.nominal_coverage
        for column, (ax, target) in enumerate(zip(axes, scores.targets, strict=True)):
            ax.axhline(nominal * 100, color=MUTED, lw=1.2, ls="--", label=f"nominal: {nominal:.0%}")
            ax.plot(ahead, coverage[column], color=ACCENT, lw=2.0, label="measured")
            ax.set_ylim(40, 100)
            ax.yaxis.set_major_formatter("{x:.0f} %")
            _ahead_axis(ax, ahead, f"{drawable(target, LONGEST_NAME)}: coverage of the {nominal:.0%} interval")
        return _svg(figure)


def draw_run(seconds: Seconds, swaps: Sequence[Swap], retraining: tuple[float, float]) -> str:
    """Rate and delay of visible forecasts over the run, with the model swaps."""
    with _figure(4.2, 2, 1, sharex=True, height_ratios=(3, 2)) as (figure, axes):
        moments = np.arange(seconds.rate.shape[1])
        rate, delay = axes
        colours = VERSION_COLOURS[: len(seconds.versions)]
        labels = [f"by version {version}" for version in seconds.versions]
        rate.stackplot(moments, seconds.rate, colors=colours, labels=labels, step="post", lw=0)
        delay.plot(moments, seconds.delay_p99_s * 1_000, color=BASELINE_COLOURS[0], lw=1.3, label="99th percentile")
        delay.plot(moments, seconds.delay_median_s * 1_000, color=ACCENT, lw=1.6, label="median")
        delay.set(title="Milliseconds from reading sent to forecast visible", yscale="log")
        delay.set(xlabel="seconds since the first forecast", xlim=(0, max(1, len(moments) - 1)))
        delay.yaxis.set_major_formatter("{x:,.0f}")
        delay.yaxis.set_minor_formatter(NullFormatter())
        top = 1.08 * max(1.0, float(seconds.rate.sum(axis=0).max(initial=0.0)))
        rate.set(title="Visible forecasts per second", ylim=(0, top))
        for ax in (rate, delay):
            since, until = (moment - seconds.start_s for moment in retraining)
            label = "retraining runs" if ax is rate else None
            ax.axvspan(since, until, color="#ede3cd", alpha=0.6, lw=0, zorder=0, label=label)
            for number, swap in enumerate(swaps):
                label = "model swap" if ax is rate and not number else None
                ax.axvline(swap.first_s - seconds.start_s, color=INK, lw=1.2, ls=":", label=label)
            draw_legend(ax, fontsize=9, loc="upper right", ncols=4, bbox_to_anchor=(1.0, 1.17))
        return _svg(figure)
