"""The steps of the demo, most of them by the commands that a user would type.

Steps that do not wait for each other run side by side, so that both of two cores have work.
"""

import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from rich.console import Console

from deploy.child_processes import Child, Children, cleared_folder, hold_home
from deploy.demo.data import SENSOR_COLUMN, Amounts, DemoData, prepare, read_bundled
from deploy.demo.display import Display, Task
from deploy.demo.live import (
    RETRAIN_AFTER,
    SENT_BEFORE_GATE,
    LiveOutcome,
    LivePart,
    LivePlan,
    by_second,
    find_swaps,
    longest_silence,
)
from deploy.demo.report import Outcome, Version, draw_picture, render
from deploy.demo.scores import agreement, choose_traces, lay_out, score
from deploy.live_forecasts import LiveForecast, StreamTail
from deploy.processes import terminated_like_interrupted
from deploy.stack import Stack
from model.forecaster import Forecaster
from pipeline.audit.delivery import count_deliveries
from pipeline.audit.topic_logs import read_forecasts, read_readings
from pipeline.best_effort import best_effort
from pipeline.errors import StackError
from pipeline.kafka.group_positions import committed_offsets
from pipeline.kafka.topic_reader import Offsets, topic_ends
from pipeline.kafka.topics import ensure_topics
from pipeline.registry.versions import CHAMPION, Registry
from pipeline.settings import Settings
from pipeline.text.plural import counted

log = logging.getLogger("streamgru.demo")

REPORT: Final = "report.html"
PICTURE: Final = "forecasts.png"
FORECASTERS: Final = ("one", "two")
READY_TIMEOUT_S: Final = 90.0
PAGE_TIMEOUT_S: Final = 20.0  # the page starts while the forecasters warm up, and is up by then on an idle machine
STOP_TIMEOUT_S: Final = 60.0  # `streamgru forecast` takes 5 s if it has a core for itself
# Shares of the settings' training budget. The second training has more readings and starts from the first weights.
FIRST_BUDGET: Final = 0.2
SECOND_BUDGET: Final = 0.35
SLOWED: Final = 1.5  # factor of the second training's time, because it shares two cores with the stream
FASTEST_READINGS_PER_S: Final = 2_000.0
TRACED_SEASONS: Final = 10
PICTURED_AT: Final = 0.7  # quantile of the live time: autumn, when both targets change much
PICTURED_SEASONS: Final = 6
POLL_S: Final = 0.2

T = TypeVar("T")


@dataclass(frozen=True)
class DemoOptions:
    """The options of `streamgru demo`."""

    amounts: Amounts
    live_s: float | None  # time to send the live readings; by default a little longer than a retraining
    keep: bool  # whether the stack stays up at the end


def run_demo(settings: Settings, options: DemoOptions, console: Console) -> Outcome:
    """Do the whole job in an empty home, write ``REPORT`` and ``PICTURE`` there, and stop the stack at the end.

    The stack is stopped even after an error.

    Raises:
        StreamgruError: a step failed; names the log.
    """
    with hold_home(settings.home), terminated_like_interrupted():
        stack = Stack(settings)
        stack.down()  # a killed demo may have left its stack running
        folder = cleared_folder(settings.home)
        children = Children(folder / "logs")
        display = Display(console)
        try:
            with display.screen():
                return Demo(settings, stack, children, folder, display).run(options)
        finally:
            try:
                children.stop()
            finally:  # even if Ctrl-C interrupts children.stop
                if options.keep:
                    console.print(f"The stack keeps running. To stop it: STREAMGRU_HOME={settings.home} streamgru down")
                else:
                    stack.down()


class Demo:
    """The steps of a demo, whose home is locked and cleared."""

    def __init__(self, settings: Settings, stack: Stack, children: Children, folder: Path, display: Display) -> None:
        self._settings = settings
        self._stack = stack
        self._folder = folder
        self._children = children
        self._display = display
        self._step = display.step
        self._registry = Registry(settings)

    def run(self, options: DemoOptions) -> Outcome:
        """Do all steps."""
        budget_s = self._settings.training.budget_s
        kafka_up: Future[None] = Future()
        with self._beside(lambda: self._send_older_half(options, kafka_up)) as sent:
            self._start_stack(kafka_up)
        data = sent.result()
        with self._step("Ingest it into the history table") as ingesting:
            ingesting.result = self._children.run("ingest", "-v", "ingest", tell=ingesting).result()
        with (
            self._beside(lambda: self._send_newer_half(data)) as started,
            self._step("Train, back-test and register a first model, on the older half") as training,
        ):
            first = ("-v", "retrain", "--budget", f"{FIRST_BUDGET * budget_s:g}")
            training.result = self._children.run("retrain", *first, tell=training).result()
        starts, forecasters = started.result()
        standings = dict([self._first_champion()])
        page = self._children.start("serve", "serve")
        self._await_ready(starts, forecasters)
        self._show_page(page)
        retrain_s = SLOWED * (ingesting.seconds + training.seconds + (SECOND_BUDGET - FIRST_BUDGET) * budget_s)
        plan = LivePlan(
            table=data.table,
            accepted=data.accepted,
            fastest=len(data.table) / options.live_s if options.live_s else FASTEST_READINGS_PER_S,
            retrain_s=(SENT_BEFORE_GATE - RETRAIN_AFTER) * options.live_s if options.live_s else retrain_s,
            retrain_options=("--warm-start", "--budget", f"{SECOND_BUDGET * budget_s:g}"),
        )
        live = self._run_live(plan, forecasters)
        standings[live.decision.version] = live.decision.standing
        self._stop_forecasters(forecasters)
        return self._check(data, starts, live, standings)

    @contextmanager
    def _beside(self, work: Callable[[], T]) -> Iterator["Future[T]"]:
        """Do ``work`` in a thread while the block runs, and raise its error at the end of the block."""
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(work)
            try:
                yield future
                future.result()
            except BaseException:
                self._children.stop()  # the work may wait for a child
                raise

    def _start_stack(self, kafka_up: "Future[None]") -> None:
        with self._step("Start Kafka, MLflow and Prefect") as task:

            def tell(service: str, doing: str, *, done: bool = False) -> None:
                task(f"{service}: {doing}")
                if done and service == "kafka":
                    kafka_up.set_result(None)

            try:
                self._stack.up(report=tell)
            finally:
                kafka_up.cancel()  # no effect if Kafka is up
            task.result = ", ".join(f"{status.name} {status.address}" for status in self._stack.status())

    def _send_older_half(self, options: DemoOptions, kafka_up: "Future[None]") -> DemoData:
        with self._step("Cut the bundled readings into a history and live readings with faults") as task:
            features = self._settings.features
            data = prepare(read_bundled(features), options.amounts, features, self._folder)
            faults = data.live
            task.result = (
                f"{sum(data.history_readings):,} in the history, {len(faults.frame):,} live; faults: "
                f"{faults.left_out:,} left out, {faults.sent_late:,} sent late, {faults.sent_twice:,} sent twice"
            )
        kafka_up.result()
        with self._step("Create the topics, and publish the older half of the history") as task:
            ensure_topics(self._settings)
            self._publish(data, 0, task)
        return data

    def _send_newer_half(self, data: DemoData) -> tuple[Offsets, list[Child]]:
        """The offsets at which the live readings will begin, and the forecasters, which wait for a champion."""
        with self._step("Publish the newer half") as task:
            self._publish(data, 1, task)
        starts = topic_ends(self._settings, self._settings.kafka.topics.readings)
        forecasters = [self._children.start(f"forecast-{name}", "forecast", "--instance", name) for name in FORECASTERS]
        return starts, forecasters

    def _publish(self, data: DemoData, half: int, task: Task) -> None:
        command = ("publish", str(data.history[half]), "--sensor-column", SENSOR_COLUMN)
        self._children.run(f"publish-{half + 1}", *command, tell=task)
        task.result = f"{counted(data.history_readings[half], 'reading')} of {counted(data.sensors, 'sensor')}"

    def _first_champion(self) -> tuple[int, str]:
        """The first model's version, and how the version became champion."""
        with self._step("Find the first champion") as task:
            newest = self._registry.versions()[0]
            how = "champion, by the gate"
            if self._registry.resolve(CHAMPION) != newest.version:
                # Forecasters need a champion, so promote the model with the command that the README shows. The second
                # model becomes champion only if the gate promotes it; until then the first one is champion.
                self._children.run("promote", "promote", str(newest.version), tell=task)
                how = (
                    "champion by `streamgru promote`, as a user may decide before any model serves. The gate "
                    f"{newest.tags.get('gate.reason', 'declined')}"
                )
            task.result = f"version {newest.version} is {how}"
            return newest.version, how

    def _await_ready(self, starts: Offsets, forecasters: list[Child]) -> None:
        with self._step("Warm up two forecasters with the history") as task:
            deadline = time.monotonic() + READY_TIMEOUT_S
            while not self._is_committed(starts):
                self._children.require_running(forecasters)
                task(forecasters[0].doing())
                if time.monotonic() > deadline:
                    logs = ", ".join(str(forecaster.log) for forecaster in forecasters)
                    raise StackError(f"the forecasters were not ready within {READY_TIMEOUT_S:.0f} s; see {logs}")
                time.sleep(POLL_S)
            task.result = "both have read the topic to its end"

    def _show_page(self, page: Child) -> None:
        """Show the address of the live page, which is up until the demo ends; the demo goes on without it."""
        with self._step("Serve a live page of the forecasts") as task:
            deadline = time.monotonic() + PAGE_TIMEOUT_S
            while page.is_running() and not page.result() and time.monotonic() < deadline:
                time.sleep(POLL_S)
            task.result = page.result() or f"not now: {page.doing()}"

    def _is_committed(self, offsets: Offsets) -> bool:
        """Whether the forecasters' group has committed these offsets, so that it starts there even after a crash."""
        committed = committed_offsets(self._settings)
        return all(committed.get(partition, -1) >= offset for partition, offset in offsets.items())

    def _run_live(self, plan: LivePlan, forecasters: list[Child]) -> LiveOutcome:
        with self._step("Send the live readings; meanwhile train a second model on all readings so far") as task:

            def watch(tail: StreamTail, doing: str, live_forecasts: list[LiveForecast]) -> None:
                task(doing)
                self._display.watch(tail, doing, live_forecasts)

            live = LivePart(self._settings, self._children, forecasters, self._registry, plan).run(watch)
            versions = ", ".join(str(version) for version in np.unique(live.arrivals.version))
            task.result = (
                f"{len(live.arrivals):,} forecasts by versions {versions}; version {live.decision.version}: "
                f"{live.decision.standing}"
            )
            return live

    def _stop_forecasters(self, forecasters: list[Child]) -> None:
        with self._step("Stop the forecasters by SIGTERM") as task:
            for forecaster in forecasters:
                forecaster.process.send_signal(signal.SIGTERM)
            for forecaster in forecasters:
                forecaster.require_success(STOP_TIMEOUT_S)
            task.result = f"both ended with exit code 0 after {task.seconds:.1f} s"

    def _check(self, data: DemoData, starts: Offsets, live: LiveOutcome, standings: Mapping[int, str]) -> Outcome:
        settings = self._settings
        with self._step("Audit the topics, and recompute the forecasts with the evaluator") as task:
            task("reading the topics")
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # a thread would share this process's core
                reading = pool.submit(read_forecasts, settings, numbers=True)
                readings = read_readings(settings)
                forecasts = reading.result()
            counts = count_deliveries(readings, forecasts, starts)
            task("recomputing the forecasts with the evaluator")
            recorded = lay_out(readings, forecasts, settings)

            def load(version: int) -> Forecaster:
                return self._registry.load(version, settings.home / "models")

            agreed = agreement(recorded, readings, forecasts, load, settings)
            task.result = f"{counts.forecasts:,} forecasts, {counts.lost:,} lost, {agreed.different:,} different"
        report, picture = settings.home / REPORT, settings.home / PICTURE
        with self._step("Score the forecasts, draw them, write the report") as task:
            versions = [
                Version(info.version, info.created, info.metrics, standings.get(info.version, ""))
                for info in self._registry.versions()[::-1]
            ]
            task.result = f"{report.resolve().as_uri()}, {picture.name}"
            outcome = Outcome(
                audit=counts,
                sensors=data.sensors,
                history_readings=sum(data.history_readings),
                faults=data.live,
                scores=score(recorded, settings),
                agreement=agreed,
                traces=choose_traces(recorded, settings, data.live, 0.5, TRACED_SEASONS),
                seconds=by_second(live.arrivals),
                swaps=find_swaps(live.arrivals),
                silence=longest_silence(live.arrivals),
                retraining=live.retraining,
                versions=versions,
                steps=self._display.steps,
                took_s=self._display.seconds,
            )
            report.write_text(render(outcome), encoding="utf-8")
            with best_effort(f"the picture {picture.name}", log):
                draw_picture(choose_traces(recorded, settings, data.live, PICTURED_AT, PICTURED_SEASONS)[:2], picture)
        return outcome
