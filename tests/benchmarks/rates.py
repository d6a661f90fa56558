"""Throughput of the forecaster and the ingest, beside plain clients and Quix Streams on the same broker.

All sides read a filled topic in turn, in several rounds. Only ratios of sides can be compared between machines.
"""

import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from kafka.admin import ConfigResource, ConfigResourceType

from deploy.stack import Stack
from model.state import States
from pipeline.kafka.clients import make_admin
from pipeline.kafka.topics import ensure_topics
from pipeline.settings import Settings
from tests.benchmarks import mature, quix, sides
from tests.benchmarks.command import named
from tests.benchmarks.markdown import table
from tests.benchmarks.meter import Meter, Run, topic_bytes
from tests.benchmarks.page import Figure, Section
from tests.benchmarks.stages import ALONE_READINGS, ALONE_SENSORS, one_by_one

PARTITIONS: Final = 4
ROUNDS: Final = 3
QUANTILES: Final = (0.1, 0.5, 0.9)
STREAM_READINGS: Final = 60_000  # of a fleet, unless it has more sensors
DEFAULT_HORIZON: Final = 24
ALONE_MOST_MS: Final = 0.2
# The broker's compaction would disturb only some of the sides; the section "changelog" measures it.
UNCOMPACTED_MS: Final = 24 * 3_600_000

POLL, PASS, INGEST = ("plain poll", "transactional pass-through with `send`", "ingest into the history table")
QUIX, QUIX_GRU = ("Quix Streams, exactly once, no model", "Quix Streams, exactly once, a GRU per message")


@dataclass(frozen=True)
class Case:
    """A forecaster and its fleet."""

    horizon_steps: int
    level: str
    sensors: int
    is_mature: bool = True

    @property
    def name(self) -> str:
        steps = "step" if self.horizon_steps == 1 else "steps"
        young = "" if self.is_mature else ", young states"
        return f"forecaster, {self.horizon_steps} {steps}, {self.level}, {self.sensors:,} sensors{young}"


BARE = Case(1, "off", 200)
DEFAULT = Case(DEFAULT_HORIZON, "light", 200)
YOUNG = Case(DEFAULT_HORIZON, "light", 200, is_mature=False)
CENTRE = Case(DEFAULT_HORIZON, "light", 1_000)
# One factor varied at a time, around CENTRE.
VARIED = (
    Case(1, "light", 1_000),
    Case(96, "light", 1_000),
    Case(DEFAULT_HORIZON, "off", 1_000),
    Case(DEFAULT_HORIZON, "full", 1_000),
    Case(DEFAULT_HORIZON, "light", 10),
    Case(DEFAULT_HORIZON, "light", 100_000),
)
CASES = (BARE, DEFAULT, YOUNG, CENTRE, *VARIED)


@dataclass(frozen=True)
class Promise:
    """A lower limit for the ratio of two sides' rates, and the aim beyond it."""

    name: str
    side: str
    beside: str
    least: float
    aim: float | None = None


PROMISES = (
    Promise("1 step, adaptation off : pass-through", BARE.name, PASS, 3.0, 4.5),
    Promise("... : Quix without a model", BARE.name, QUIX, 2.0, 3.0),
    Promise("default settings (24 steps, light) : pass-through", DEFAULT.name, PASS, 1.2, 2.2),
    Promise("... : Quix without a model", DEFAULT.name, QUIX, 0.8, 1.5),
    Promise("... : Quix with a GRU per message", DEFAULT.name, QUIX_GRU, 3.5, 6.0),
    Promise("ingest : plain poll", INGEST, POLL, 1 / 3),
)


@dataclass(frozen=True)
class Outcome:
    """One run of a side, and the bytes that it wrote."""

    run: Run
    forecast_bytes: int = 0
    state_bytes: int = 0


@dataclass(frozen=True)
class Fleet:
    """A readings topic: a reading of each sensor that mature states have seen, and the stream after it."""

    settings: Settings
    sensors: int
    stream: int  # readings after the first of each sensor

    @property
    def total(self) -> int:
        """All readings in the topic."""
        return self.sensors + self.stream


def measure(base: Settings) -> Section:
    """The section of the page."""
    bench = Bench(base)
    found = bench.measure()
    figures = [_figure(found, promise) for promise in PROMISES if {promise.side, promise.beside} <= found.keys()]
    poll_ms, build_ms = bench.one_reading()
    figures.append(
        Figure(
            "CPU time of one reading alone, from poll to encoded (24 steps, light)",
            f"{build_ms:.2f} ms",
            f"≤ {ALONE_MOST_MS} ms",
            build_ms <= ALONE_MOST_MS,
        )
    )
    figures.append(Figure("... of its poll before", f"{poll_ms:.2f} ms"))
    how = HOW + (f" Quix Streams {bench.quix.version}." if isinstance(bench.quix, quix.Quix) else f" {bench.quix}.")
    return Section("rates", "Throughput", figures, how, _table(found))


HOW = (
    f"{PARTITIONS} partitions, readings of {len(sides.FEATURES)} features, one target, hidden size "
    f"{sides.HIDDEN_SIZE}; {STREAM_READINGS:,} readings, 200 sensors if none are named, one reading of each of 100,000 "
    f"sensors. The sides take turns; a ratio is the median of the rounds' ratios. States have seen {mature.READINGS:,} "
    f"readings of up to {mature.ORIGINALS:,} sensors, and larger fleets have copies of them under other ids; young "
    "states begin with the stream. The time ends with the last commit. The pass-through and Quix without a model send "
    "a value as long as a forecast at horizon 1 for each reading. The pass-through commits one transaction with the "
    "offsets per poll, and has no headers, decoding or states. Its clients have the forecaster's options (with "
    "kafka-python's defaults they wait 100 ms per commit). Quix has its default options but for exactly-once "
    "processing, decodes JSON, and commits every five seconds. Its GRU has the same sizes in torch, is called for each "
    "message, carries its hidden state in Quix's state store, and neither normalises nor adapts. Forecasts have three "
    "quantiles. Adaptation off also turns calibration off. CPU times are per reading, of the side's process and of the "
    "broker; bytes are the broker's logs of forecasts and states, compressed and not compacted."
)


class Bench:
    """The sides, on one broker."""

    def __init__(self, base: Settings) -> None:
        self._base = base
        pid = Stack(base).status()[0].pid
        assert pid is not None, "the broker is not running"
        self._meter = Meter(pid)
        self._broker = pid
        self._data = base.home / "kafka" / "data"
        self._matured: dict[tuple[int, str], States] = {}  # (horizon in steps, level) -> states of the originals
        self.quix = quix.install()
        if isinstance(self.quix, str):
            print(self.quix, flush=True)

    def measure(self) -> dict[str, list[Outcome]]:
        """Side -> outcome of each round."""
        fleets = {sensors: self._fleet(sensors) for sensors in sorted({case.sensors for case in CASES})}
        plain = fleets[BARE.sensors]
        source = sides.Input(plain.settings, plain.total)
        turns: dict[str, Callable[[], Outcome]] = {
            POLL: lambda: Outcome(sides.poll(source, self._meter)),
            PASS: lambda: self._pass_through(plain),
        }
        if isinstance(self.quix, quix.Quix):
            turns[QUIX] = partial(self._quix, self.quix, "pass", plain)
            turns[QUIX_GRU] = partial(self._quix, self.quix, "gru", plain)
        for case in CASES:
            turns[case.name] = partial(self._forecast, case, fleets[case.sensors], self._states(case))
        turns[INGEST] = lambda: Outcome(sides.ingest_all(source))
        for case in (BARE, DEFAULT):
            turns[case.name]()  # not counted: the first run of a process loads compiled code
        found: dict[str, list[Outcome]] = {side: [] for side in turns}
        for number in range(ROUNDS):
            for side, turn in turns.items():
                found[side].append(turn())
                print(f"round {number + 1}: {side}: {found[side][-1].run.rate:,.0f} readings/s", flush=True)
        return found

    def one_reading(self) -> tuple[float, float]:
        """Median milliseconds of CPU of a poll for one reading, and of its micro-batch."""
        settings = named(sides.adapting(self._base, "light"), "alone", horizon_steps=DEFAULT_HORIZON)
        sides.fill(settings, ALONE_SENSORS, ALONE_READINGS // ALONE_SENSORS)
        polls, builds = one_by_one(settings)
        return statistics.median(polls), statistics.median(builds)

    def _fleet(self, sensors: int) -> Fleet:
        settings = named(self._base, f"rates-{sensors}", kafka={"partitions": PARTITIONS})
        ensure_topics(settings)
        return Fleet(settings, sensors, mature.publish(settings, sensors, max(1, STREAM_READINGS // sensors)))

    def _states(self, case: Case) -> States | None:
        if not case.is_mature:
            return None
        key = (case.horizon_steps, case.level)
        if key not in self._matured:
            settings = sides.adapting(self._base, case.level)
            chosen = settings.model_copy(update={"horizon_steps": case.horizon_steps, "quantiles": QUANTILES})
            self._matured[key] = mature.matured(chosen)
        return self._matured[key]

    def _pass_through(self, fleet: Fleet) -> Outcome:
        settings = sides.again(fleet.settings)
        payload = self._payload(settings)
        return self._outcome(settings, sides.pass_through(settings, fleet.total, payload, self._meter))

    def _quix(self, installed: quix.Quix, kind: str, fleet: Fleet) -> Outcome:
        settings = sides.again(fleet.settings, horizon_steps=DEFAULT_HORIZON, quantiles=QUANTILES)
        payload = self._payload(fleet.settings)
        run = quix.process(installed, kind, settings, fleet.total, payload, sides.HIDDEN_SIZE, self._broker)
        return self._outcome(settings, run, quix.changelog(settings))

    def _forecast(self, case: Case, fleet: Fleet, states: States | None) -> Outcome:
        settings = sides.again(
            sides.adapting(fleet.settings, case.level), horizon_steps=case.horizon_steps, quantiles=QUANTILES
        )
        self._put_off_compaction(settings)
        if states is None:
            return self._outcome(settings, sides.forecast_into(settings, fleet.total, meter=self._meter))
        mature.give_states(settings, fleet.sensors, states)
        before = topic_bytes(self._data, [settings.kafka.topics.state])
        run = sides.forecast_into(settings, fleet.stream, meter=self._meter, restored=fleet.sensors)
        return self._outcome(settings, run, already=before)

    def _payload(self, settings: Settings) -> bytes:
        return sides.forecast_value(sides.adapting(settings, "off").model_copy(update={"horizon_steps": 1}))

    def _put_off_compaction(self, settings: Settings) -> None:
        with make_admin(settings) as admin:
            lag = {"min.compaction.lag.ms": str(UNCOMPACTED_MS)}
            admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, settings.kafka.topics.state, lag)])

    def _outcome(self, settings: Settings, run: Run, changelog: Sequence[str] = (), already: int = 0) -> Outcome:
        """The outcome of a run. Deletes its topics and files, because the next sides would share disk and broker."""
        topics = settings.kafka.topics
        states = [topics.state, *changelog]
        outcome = Outcome(run, topic_bytes(self._data, [topics.forecasts]), topic_bytes(self._data, states) - already)
        with make_admin(settings) as admin:
            made = {
                Path(log).parent.name.rpartition("-")[0]
                for name in states
                for log in self._data.glob(f"{name}-*/*.log")
            }
            admin.delete_topics(sorted(made | {topics.forecasts}))
        shutil.rmtree(settings.home / f"quix-{settings.forecaster.group_id}", ignore_errors=True)
        return outcome


def _table(found: dict[str, list[Outcome]]) -> str:
    header = (
        "side",
        f"readings a second, median of {ROUNDS}",
        "all rounds",
        ": pass-through",
        "client CPU",
        "broker CPU",
        "bytes of forecasts",
        "bytes of states",
    )
    return table(header, [_row(found, side) for side in found])


def _row(found: dict[str, list[Outcome]], side: str) -> list[str]:
    outcomes = found[side]
    runs = [outcome.run for outcome in outcomes]

    def per_reading(values: Sequence[float], form: str, unit: str = "") -> str:
        middle = statistics.median(value / run.readings for value, run in zip(values, runs, strict=True))
        return format(middle, form) + unit if middle else "-"

    return [
        side,
        f"{statistics.median(run.rate for run in runs):,.0f}",
        ", ".join(f"{run.rate:,.0f}" for run in runs),
        f"{_ratio(found, side, PASS):.2f}",
        per_reading([run.client_s * 1e6 for run in runs], ".1f", " µs"),
        per_reading([run.broker_s * 1e6 for run in runs], ".1f", " µs"),
        per_reading([outcome.forecast_bytes for outcome in outcomes], ",.0f"),
        per_reading([outcome.state_bytes for outcome in outcomes], ",.0f"),
    ]


def _ratio(found: dict[str, list[Outcome]], side: str, beside: str) -> float:
    """The median of the ratios within each round: a slow moment of the machine slows both sides."""
    return statistics.median(
        one.run.rate / other.run.rate for one, other in zip(found[side], found[beside], strict=True)
    )


def _figure(found: dict[str, list[Outcome]], promise: Promise) -> Figure:
    ratio = _ratio(found, promise.side, promise.beside)
    aim = f" (aim {promise.aim:g})" if promise.aim else ""
    return Figure(promise.name, f"{ratio:.2f}", f"≥ {promise.least:.2f}{aim}", ratio >= promise.least)
