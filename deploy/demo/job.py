"""The demo, step by step: each step is what a user would do, most of them by the same commands."""

import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console

from deploy.demo.agreement import Agreement, agreement
from deploy.demo.children import Child, Children
from deploy.demo.data import FIRST_PART, REPLAY_OPTIONS, Amounts, DemoData, prepare, read_bundled
from deploy.demo.home import alone, emptied, terminated_like_interrupted
from deploy.demo.live import LiveOutcome, LivePart, LivePlan
from deploy.demo.narration import Narration
from deploy.demo.report import Outcome, Version, write_report
from deploy.demo.scores import Recorded, Stretch, Trace, lay_out, score, trace
from deploy.demo.timeline import Swap, by_second, find_swaps
from deploy.stack import Stack
from model.metrics import Scores
from pipeline.audit.findings import Audit, Offsets, audit
from pipeline.audit.topic_logs import committed_offsets, read_forecasts, read_readings, topic_ends
from pipeline.errors import StackError
from pipeline.kafka.topics import ensure_topics
from pipeline.messages import microseconds
from pipeline.registry.versions import CHAMPION, Registry
from pipeline.settings import Settings

STEPS: Final = 10
FORECASTERS: Final = ("one", "two")
READY_TIMEOUT_S: Final = 90.0
STOP_TIMEOUT_S: Final = 60.0  # `streamgru forecast` takes 5 where it has a core for itself
# The second training, as a share of the first one's time.
SECOND_BUDGET: Final = 0.35
# Ingest and retraining take so much longer beside the stream, which competes with them for the machine: measured on two
# cores, where readings ran out half a minute before the new model was there at 1.2.
SLOWED: Final = 2.0
# On a machine where that takes longer still, readings run out before the new model is there, and it serves the rest.
LONGEST_LIVE_S: Final = 160.0
TRACED_SENSORS: Final = 3
TRACED_SEASONS: Final = 10
TRACED_LEAD_STEPS: Final = 6
POLL_S: Final = 0.2


@dataclass(frozen=True)
class DemoOptions:
    """How much of the demo to do."""

    amounts: Amounts
    live_s: float | None  # how long the live readings take to send; by default a little longer than a retraining
    keep: bool  # leave the stack up at the end


@dataclass(frozen=True)
class DemoResult:
    """What came of it."""

    audit: Audit
    scores: Mapping[str, Scores]
    agreement: Agreement
    swaps: list[Swap]
    report: Path


def run_demo(settings: Settings, options: DemoOptions, console: Console) -> DemoResult:
    """Do the whole job in a home of its own, which begins empty and ends, whatever happens, with the stack stopped.

    Raises:
        StreamgruError: a step failed; names the log to look at.
    """
    with alone(settings.home), terminated_like_interrupted():
        stack = Stack(settings)
        stack.down()  # what a demo that was killed may have left
        folder = emptied(settings.home)
        children = Children(folder / "logs")
        try:
            demo = Demo(settings, stack, children, folder, Narration(console, STEPS))
            return demo.run(options)
        finally:
            try:
                children.stop()
            finally:  # also when interrupted a second time meanwhile
                if options.keep:
                    console.print(f"The stack stays up. To stop it: STREAMGRU_HOME={settings.home} streamgru down")
                else:
                    stack.down()


class Demo:
    """The steps."""

    def __init__(
        self, settings: Settings, stack: Stack, children: Children, folder: Path, narration: Narration
    ) -> None:
        self._settings = settings
        self._stack = stack
        self._folder = folder
        self._children = children
        self._narration = narration
        self._step = narration.step
        self._registry = Registry(settings)

    def run(self, options: DemoOptions) -> DemoResult:
        """All steps, in order."""
        self._start_stack()
        data = self._prepare(options)
        with self._step("Replay the history onto the topic") as telling:
            self._children.run("replay-history", "replay", str(data.history), *REPLAY_OPTIONS, tell=telling)
            telling.result = f"{data.history_readings:,} readings of {data.sensors} sensors"
        with self._step("Ingest it into the history table") as ingesting:
            ingesting.result = self._children.run("ingest", "-v", "ingest", tell=ingesting).result()
        with self._step("Train, back-test and register a first model") as training:
            training.result = self._children.run("retrain", "-v", "retrain", tell=training).result()
        promotions = dict([self._first_champion()])
        starts = topic_ends(self._settings, self._settings.kafka.topics.readings)
        forecasters = self._start_forecasters(starts)
        budget_s = self._settings.training.budget_s
        apart_s = ingesting.seconds + training.seconds - (1 - SECOND_BUDGET) * budget_s
        live_s = options.live_s or min(SLOWED * apart_s / FIRST_PART, LONGEST_LIVE_S)
        live = self._run_live(data, live_s, forecasters)
        self._stop_forecasters(forecasters)
        promotions[self._registry.versions()[0].version] = live.promotion
        return self._check(data, starts, live, promotions)

    def _start_stack(self) -> None:
        with self._step("Start Kafka, MLflow and Prefect, and create the topics") as telling:

            def tell(service: str, doing: str, *, done: bool = False) -> None:
                telling(f"{service}: {doing}")

            self._stack.up(report=tell)
            ensure_topics(self._settings)
            telling.result = ", ".join(f"{status.name} {status.address}" for status in self._stack.status())

    def _prepare(self, options: DemoOptions) -> DemoData:
        with self._step("Cut the bundled readings into a history and a live year with faults") as telling:
            data = prepare(read_bundled(self._settings.features), options.amounts, self._folder)
            faults = data.live
            telling.result = (
                f"{data.history_readings:,} before, {len(faults.frame):,} live; of these {faults.left_out:,} left out, "
                f"{faults.sent_late:,} sent late, {faults.sent_twice:,} sent twice"
            )
            return data

    def _first_champion(self) -> tuple[int, str]:
        """The first model's version, and how it became champion."""
        with self._step("Make it champion") as telling:
            newest = self._registry.versions()[0]
            if self._registry.resolve(CHAMPION) == newest.version:
                how = "by the gate"
            else:
                self._children.run("promote", "promote", str(newest.version), tell=telling)
                how = "the gate declined; by `streamgru promote`, since the demo needs one"
            telling.result = f"version {newest.version}, {how}"
            return newest.version, how

    def _start_forecasters(self, starts: Offsets) -> list[Child]:
        with self._step("Start two forecasters, warmed up with the history") as telling:
            forecasters = [
                self._children.start(f"forecast-{name}", "forecast", "--instance", name) for name in FORECASTERS
            ]
            deadline = time.monotonic() + READY_TIMEOUT_S
            while not self._is_committed(starts):
                self._children.require_running(forecasters)
                telling(forecasters[0].doing())
                if time.monotonic() > deadline:
                    logs = ", ".join(str(forecaster.log) for forecaster in forecasters)
                    raise StackError(f"the forecasters were not ready within {READY_TIMEOUT_S:.0f} s; see {logs}")
                time.sleep(POLL_S)
            telling.result = "both at the end of the topic"
            return forecasters

    def _is_committed(self, offsets: Offsets) -> bool:
        """Whether the forecasters' group has committed these offsets, and so begins there whatever happens."""
        committed = committed_offsets(self._settings)
        return all(committed.get(partition, -1) >= offset for partition, offset in offsets.items())

    def _run_live(self, data: DemoData, live_s: float, forecasters: list[Child]) -> LiveOutcome:
        with self._step("Replay the live readings; retrain and change the model meanwhile", spinner=False) as telling:
            settings = self._settings
            plan = LivePlan(
                parts=data.parts,
                accepted=data.accepted,
                speed=data.live_span_s / live_s,
                retrain_budget_s=SECOND_BUDGET * settings.training.budget_s,
            )
            live = LivePart(settings, self._children, forecasters, self._registry, plan).run(self._narration.console)
            versions = ", ".join(str(version) for version in np.unique(live.arrivals.version))
            telling.result = f"{len(live.arrivals):,} forecasts by versions {versions}; promoted: {live.promotion}"
            return live

    def _stop_forecasters(self, forecasters: list[Child]) -> None:
        with self._step("Stop the forecasters by SIGTERM") as telling:
            began = time.monotonic()
            for forecaster in forecasters:
                forecaster.process.send_signal(signal.SIGTERM)
            for forecaster in forecasters:
                forecaster.require_success(STOP_TIMEOUT_S)
            telling.result = f"both ended with exit code 0 after {time.monotonic() - began:.1f} s"

    def _check(self, data: DemoData, starts: Offsets, live: LiveOutcome, promotions: Mapping[int, str]) -> DemoResult:
        with self._step("Audit the topics, score the forecasts, write the report") as telling:
            telling("reading the topics")
            readings = read_readings(self._settings)
            forecasts = read_forecasts(self._settings, numbers=True)
            counts = audit(readings, forecasts, starts)
            telling("scoring")
            recorded = lay_out(readings, forecasts, self._settings)
            scores = score(recorded, self._settings)
            telling("forecasting the same with the evaluator")
            models = self._settings.home / "models"
            agreed = agreement(
                recorded, readings, forecasts, lambda version: self._registry.load(version, models), self._settings
            )
            swaps = find_swaps(live.arrivals)
            telling("drawing")
            report = self._settings.home / "report.html"
            versions = [
                Version(info.version, info.created, info.metrics, promotions.get(info.version, ""))
                for info in self._registry.versions()[::-1]
            ]
            telling.result = report.resolve().as_uri()
        write_report(
            Outcome(
                audit=counts,
                sensors=data.sensors,
                history_readings=data.history_readings,
                faults=data.live,
                scores=scores,
                agreement=agreed,
                traces=self._traces(data, recorded),
                seconds=by_second(live.arrivals),
                swaps=swaps,
                retraining=live.retraining,
                versions=versions,
                steps=self._narration.steps,
            ),
            report,
        )
        return DemoResult(counts, scores, agreed, swaps, report)

    def _traces(self, data: DemoData, recorded: Recorded) -> list[Trace]:
        """Some sensors over some days: one around its outage, the others in the middle of the live readings."""
        settings, sequences = self._settings, recorded.sequences
        silent = {sensor: (since, until) for sensor, since, until in data.live.outages}
        short = sorted(silent, key=lambda sensor: silent[sensor][1] - silent[sensor][0])[:1]
        others = [sensor for sensor in sorted(sequences.sensors) if sensor not in silent]
        moments_us = data.live.frame["timestamp"].dt.timestamp("us").to_numpy()
        middle_us = int(np.median(moments_us)) // settings.cadence_us * settings.cadence_us
        traces = []
        for number, sensor in enumerate([*others[: TRACED_SENSORS - len(short)], *short]):
            gap = silent.get(sensor)
            stretch = Stretch(
                sensor=sensor,
                target=settings.targets[number % len(settings.targets)],
                middle_us=middle_us if gap is None else microseconds(gap[0]),
                steps=TRACED_SEASONS * settings.season,
                lead_steps=min(TRACED_LEAD_STEPS, settings.horizon_steps),
            )
            traces.append(trace(recorded, settings, stretch, [gap] if gap else []))
        return traces
