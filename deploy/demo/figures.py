"""The report's plots, each as an SVG of its own: no network, no fonts but the reader's."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import matplotlib
import matplotlib.dates
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from deploy.demo.scores import FORECAST, Trace
from deploy.demo.timeline import Seconds, Swap
from model.metrics import Scores

INK: Final = "#1f2933"
MUTED: Final = "#8a94a0"
ACCENT: Final = "#0b7285"
BAND: Final = "#9fd3dc"
VERSION_COLOURS: Final = ("#74b3c2", "#0b7285", "#e8a33d", "#a34a28")
BASELINE_COLOURS: Final = ("#e8a33d", "#8a94a0")
_WIDTH_IN: Final = 10.0
_dates: Any = matplotlib.dates  # ships no types

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


@contextmanager
def _figure(height_in: float, rows: int, columns: int, **options: Any) -> Iterator[tuple[Figure, Any]]:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False, **options)


def _svg(figure: Figure) -> str:
    with matplotlib.rc_context(_STYLE):
        output = io.StringIO()
        figure.savefig(output, format="svg", metadata={"Date": None, "Creator": None})
    text = output.getvalue()
    return text[text.index("<svg") :]


def draw_traces(traces: list[Trace]) -> str:
    """Forecasts with their interval against what came true."""
    with _figure(2.15 * len(traces), len(traces), 1) as (figure, axes):
        for row, trace in enumerate(traces):
            ax: Axes = axes[row, 0]
            ax.fill_between(trace.moments, trace.low, trace.high, color=BAND, alpha=0.65, lw=0, label=trace.interval)
            ax.plot(trace.moments, trace.median, color=ACCENT, lw=1.3, label=f"median, issued {trace.lead} before")
            ax.plot(trace.moments, trace.actual, color=INK, lw=1.1, label="measured")
            for number, (since, until) in enumerate(trace.silent):
                label = None if number else "no readings sent"
                ax.axvspan(
                    _dates.date2num(since), _dates.date2num(until), color="#f3e3d3", alpha=0.7, lw=0, label=label
                )
            ax.set_title(f"{trace.sensor}, {trace.target}")
            ax.margins(x=0.005)
            locator = _dates.AutoDateLocator()
            ax.xaxis.set_major_locator(locator)
            ax.xaxis.set_major_formatter(_dates.ConciseDateFormatter(locator))
            if row == 0 or trace.silent:
                ax.legend(loc="upper right", ncols=4, fontsize=9, bbox_to_anchor=(1.0, 1.22))
        return _svg(figure)


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
            ax.set_title(f"{target}: mean absolute error")
            ax.set_xlabel("steps ahead")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.set_ylim(bottom=0)
            ax.set_xlim(ahead[0], max(2, ahead[-1]))
            ax.legend(fontsize=9, loc="best")
        return _svg(figure)


def draw_coverage(scores: Scores) -> str:
    """How often the interval held what came true."""
    with _figure(2.5, 1, len(scores.targets), sharey=True) as (figure, axes):
        coverage = scores.by_horizon("coverage") * 100
        ahead = np.arange(1, coverage.shape[1] + 1)
        nominal = scores.nominal_coverage
        for column, target in enumerate(scores.targets):
            ax: Axes = axes[0, column]
            ax.axhline(nominal * 100, color=MUTED, lw=1.2, ls="--", label=f"promised: {nominal:.0%}")
            ax.plot(ahead, coverage[column], color=ACCENT, lw=2.0, label="held")
            ax.set_title(f"{target}: coverage of the {nominal:.0%} interval")
            ax.set_xlabel("steps ahead")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.set_ylim(40, 100)
            ax.set_xlim(ahead[0], max(2, ahead[-1]))
            ax.yaxis.set_major_formatter("{x:.0f} %")
            ax.legend(fontsize=9, loc="lower right")
        return _svg(figure)


def draw_run(seconds: Seconds, swaps: list[Swap], retraining: tuple[float, float] | None) -> str:
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
            if retraining is not None:
                since, until = (moment - seconds.start_s for moment in retraining)
                label = "retraining runs" if ax is rate else None
                ax.axvspan(since, until, color="#ede3cd", alpha=0.6, lw=0, zorder=0, label=label)
            for number, swap in enumerate(swaps):
                label = "model changes" if ax is rate and not number else None
                ax.axvline(swap.first_s - seconds.start_s, color=INK, lw=1.2, ls=":", label=label)
            ax.legend(fontsize=9, loc="upper right", ncols=4, bbox_to_anchor=(1.0, 1.17))
        return _svg(figure)
