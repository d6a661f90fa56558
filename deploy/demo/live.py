"""The demo's live part: readings are sent, forecasts come in, and in the middle a new model takes over."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console
from rich.live import Live

from deploy.demo.children import Child, Children
from deploy.demo.data import REPLAY_OPTIONS
from deploy.demo.timeline import Arrivals
from deploy.live import LatestForecasts, Sighting, StreamTail, line
from pipeline.registry.versions import CHAMPION, Registry
from pipeline.settings import Settings

POLL_S: Final = 0.1
# Without a terminal, how often a line of progress is printed.
REPORT_S: Final = 10.0
# The retraining begins once this share of the first part has been forecast, so that there is news to learn from.
RETRAIN_AFTER: Final = 0.1
# The change of models is over when so many forecasts by the new one were seen, or, with nothing left to forecast, after
# a time in which any forecaster has it live.
FORECASTS_AFTER_SWAP: Final = 500
SWAP_S: Final = 12.0
STALLED_S: Final = 60.0


@dataclass(frozen=True)
class LivePlan:
    """What is sent, and how the model is trained again."""

    parts: tuple[Path, Path]  # the second is sent when the new model serves
    accepted: tuple[int, int]  # readings in each that will be accepted
    speed: float  # times real time
    retrain_budget_s: float


@dataclass(frozen=True)
class LiveOutcome:
    """What was seen. ``retraining`` is when, in time of day; ``promotion`` says how the new version became champion."""

    arrivals: Arrivals
    retraining: tuple[float, float] | None
    promotion: str


class LivePart:
    """Sends the plan's readings to forecasters that run already, and watches what comes of it."""

    def __init__(
        self, settings: Settings, children: Children, forecasters: Sequence[Child], registry: Registry, plan: LivePlan
    ) -> None:
        self._settings = settings
        self._children = children
        self._forecasters = forecasters
        self._registry = registry
        self._plan = plan
        self._jobs: list[Child] = []
        self._arrivals: list[tuple[float, float, int, int]] = []
        self._seen: Counter[int] = Counter()  # forecasts by model version
        self._retraining: tuple[float, float] | None = None
        self._promotion = ""

    def run(self, console: Console) -> LiveOutcome:
        """Return when the forecast of every accepted reading was seen, or none has come for a minute.

        Raises:
            StreamgruError: a forecaster ended, or a command failed.
        """
        with StreamTail(self._settings) as tail, _display(console, tail) as show:
            progressed_s, forecasts = time.monotonic(), 0
            for doing in self._script(tail):
                sightings = tail.poll(POLL_S)
                self._record(sightings)
                show(doing, sightings)
                self._children.require_running(self._forecasters)
                working = [job for job in self._jobs if job.is_running()]
                for job in self._jobs:
                    if job not in working:
                        job.require_success()
                if tail.forecasts > forecasts or working:
                    progressed_s, forecasts = time.monotonic(), tail.forecasts
                if time.monotonic() - progressed_s > STALLED_S:
                    break  # the audit tells what is missing
        table = np.array(self._arrivals, dtype=np.float64).reshape(-1, 4)
        arrivals = Arrivals(table[:, 0], table[:, 1], table[:, 2].astype(np.int64), table[:, 3].astype(np.int64))
        return LiveOutcome(arrivals, self._retraining, self._promotion)

    def _script(self, tail: StreamTail) -> Iterator[str]:
        """What happens, one thing after the other; yields what is being done while it takes its time."""
        first = self._start("replay-live-1", *self._replay_command(self._plan.parts[0]))
        while tail.forecasts < RETRAIN_AFTER * self._plan.accepted[0]:
            yield "readings are being sent"
        yield from self._run("ingest-live", "ingest", doing="what came in is being ingested")
        began_s = time.time()
        retrain = ("-v", "retrain", "--budget", str(self._plan.retrain_budget_s))
        yield from self._run("retrain-live", *retrain, doing="a new model is being trained")
        self._retraining = (began_s, time.time())
        yield from self._promote(first)
        while first.is_running():
            yield "readings are being sent"
        yield from self._run(
            "replay-live-2", *self._replay_command(self._plan.parts[1]), doing="the rest is being sent"
        )
        while tail.forecasts < sum(self._plan.accepted):
            yield "the last forecasts are awaited"

    def _promote(self, sending: Child) -> Iterator[str]:
        newest = self._registry.versions()[0]
        if self._registry.resolve(CHAMPION) == newest.version:
            self._promotion = "by the gate"
        else:
            command = ("promote", str(newest.version))
            yield from self._run("promote-live", *command, doing=f"the gate declined: `streamgru {' '.join(command)}`")
            self._promotion = "the gate declined; by `streamgru promote`, to show a change of models"
        idle_since: float | None = None
        while self._seen[newest.version] < FORECASTS_AFTER_SWAP:
            yield f"version {newest.version} is champion ({self._promotion}), and about to serve"
            if not sending.is_running():
                idle_since = idle_since or time.monotonic()
                if time.monotonic() - idle_since > SWAP_S:
                    return

    def _run(self, name: str, *arguments: str, doing: str) -> Iterator[str]:
        job = self._start(name, *arguments)
        while job.is_running():
            yield doing
        job.require_success()

    def _start(self, name: str, *arguments: str) -> Child:
        job = self._children.start(name, *arguments)
        self._jobs.append(job)
        return job

    def _replay_command(self, part: Path) -> tuple[str, ...]:
        return ("replay", str(part), *REPLAY_OPTIONS, "--order", "file", "--speed", str(self._plan.speed))

    def _record(self, sightings: list[Sighting]) -> None:
        for sighting in sightings:
            forecast, delay_s = sighting.forecast, sighting.delay_s
            version = forecast.model.version
            self._seen[version] += 1
            delay_s = float("nan") if delay_s is None else delay_s
            self._arrivals.append((sighting.arrived_s, delay_s, version, forecast.input.partition))


@contextmanager
def _display(console: Console, tail: StreamTail) -> Iterator[Callable[[str, list[Sighting]], None]]:
    """A live table in a terminal; elsewhere a line now and then."""
    latest = LatestForecasts()

    def caption(doing: str) -> str:
        return f"{tail.readings:,} readings, {tail.forecasts:,} forecasts; {doing}"

    if console.is_terminal:
        with Live(console=console, refresh_per_second=4, transient=True) as live:

            def show(doing: str, sightings: list[Sighting]) -> None:
                latest.update(sightings)
                live.update(latest.table(caption(doing), max(1, console.height - 8)))

            yield show
    else:
        due_s = time.monotonic() + REPORT_S

        def show_line(doing: str, sightings: list[Sighting]) -> None:
            nonlocal due_s
            if sightings and time.monotonic() > due_s:
                due_s = time.monotonic() + REPORT_S
                told = f"   {caption(doing)}\n   {line(sightings[-1])}"
                console.print(told, highlight=False, markup=False, soft_wrap=True)

        yield show_line
