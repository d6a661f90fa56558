"""``make bench``: how fast readings become forecasts, beside plain clients on the same broker.

All sides read the same topic in turn, several times over, and the median of each counts. What is compared are ratios:
the rates themselves belong to the machine. Prints them, writes SPEED.md beside this file, and exits with 1 where a
ratio is below what the project promises.
"""

import logging
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil

from deploy.jars import read_lock
from deploy.stack import Stack
from pipeline.settings import Settings
from tests.benchmarks import extras, sides
from tests.ports import free_ports

REPORT = Path(__file__).with_name("SPEED.md")
SENSORS, STEPS = 200, 300
ROUNDS = 5
MANY_SENSORS, FEW_SENSORS = 10_000, 100
QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Promise:
    """A ratio of two sides that must hold."""

    name: str
    side: str
    beside: str
    least: float


POLL, PASS, SHORT, LONG, INGEST = (
    "plain poll",
    "transactional pass-through with `send`",
    "forecaster, horizon 1",
    f"forecaster, horizon 24, {len(QUANTILES)} quantiles",
    "ingest into the history table",
)
PROMISES = (
    Promise("forecaster at horizon 1 : pass-through", SHORT, PASS, 1.5),
    Promise("forecaster at horizon 24 : pass-through", LONG, PASS, 0.0),
    Promise("ingest : plain poll", INGEST, POLL, 1 / 3),
)


def main() -> None:
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    began = time.monotonic()
    home = Path(tempfile.mkdtemp(prefix="streamgru-bench-"))
    kafka, mlflow, prefect = free_ports(3)
    settings = Settings(
        home=home,
        features=sides.FEATURES,
        targets=sides.FEATURES[:1],
        stack={"kafka_port": kafka, "mlflow_port": mlflow, "prefect_port": prefect},
        kafka={"partitions": 4},
    )
    stack = Stack(settings)
    try:
        stack.up(("kafka",))
        rates = _measure_rates(settings)
        stack.up(("mlflow",))  # not earlier: its start takes a core
        lines = _report(rates, _measure_extras(settings))
    finally:
        stack.down()
        shutil.rmtree(home, ignore_errors=True)
    lines += ["", f"The whole run took {time.monotonic() - began:.0f} s."]
    REPORT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"written to {REPORT}")
    broken = [promise for promise in PROMISES if _ratio(rates, promise) < promise.least]
    for promise in broken:
        print(f"NOT MET: {promise.name} is {_ratio(rates, promise):.2f}, and must be {promise.least:.2f} at least")
    sys.exit(1 if broken else 0)


def _measure_rates(settings: Settings) -> dict[str, list[float]]:
    """Readings a second of each side, one figure per round, the sides taking turns."""
    source = sides.fill(settings, SENSORS, STEPS)
    payload = sides.payload_like(settings.model_copy(update={"horizon_steps": 1}))
    turns: dict[str, Callable[[], float]] = {
        POLL: lambda: sides.poll(source),
        PASS: lambda: sides.pass_through(source, payload),
        SHORT: lambda: sides.forecast(source, 1, QUANTILES),
        LONG: lambda: sides.forecast(source, 24, QUANTILES),
        INGEST: lambda: sides.ingest_all(source),
    }
    rates: dict[str, list[float]] = {side: [] for side in turns}
    for number in range(ROUNDS):
        for side, turn in turns.items():
            rates[side].append(turn())
            print(f"round {number + 1}: {side}: {rates[side][-1]:,.0f} readings/s", flush=True)
    return rates


def _measure_extras(settings: Settings) -> list[tuple[str, str]]:
    few, many = (extras.forecaster_memory(settings, sensors) for sensors in (FEW_SENSORS, MANY_SENSORS))
    steps_per_s, device = extras.training_rate()
    fresh_s, restart_s = extras.time_to_first_forecast(settings)
    return [
        (f"forecaster's memory with {MANY_SENSORS:,} sensors", f"{many / 2**20:,.0f} MiB resident"),
        (
            f"... of which per sensor, against {FEW_SENSORS}",
            f"{(many - few) / (MANY_SENSORS - FEW_SENSORS):,.0f} bytes",
        ),
        (f"training, 12 sensors, horizon 24, on {device}", f"{steps_per_s:,.0f} sensor-steps/s"),
        ("`streamgru forecast` to the first visible forecast, model fetched from MLflow", f"{fresh_s:.1f} s"),
        ("... on a restart, model in the local copy", f"{restart_s:.1f} s"),
    ]


def _ratio(rates: dict[str, list[float]], promise: Promise) -> float:
    """The median over rounds of the ratio within a round: what slowed a round down slowed both."""
    pairs = zip(rates[promise.side], rates[promise.beside], strict=True)
    return statistics.median(side / beside for side, beside in pairs)


def _report(rates: dict[str, list[float]], extra: list[tuple[str, str]]) -> list[str]:
    """SPEED.md; the ratios are printed too."""
    ratios = []
    for promise in PROMISES:
        ratio = _ratio(rates, promise)
        asked = f"≥ {promise.least:.2f}" if promise.least else "for the record"
        ratios.append(f"| {promise.name} | {ratio:.2f} | {asked} |")
        print(f"{promise.name}: {ratio:.2f} ({asked})")
    for name, figure in extra:
        print(f"{name}: {figure}")
    return [
        "# Speed",
        "",
        "Written by `make bench`. Ratios compare between machines, rates do not.",
        "",
        "| ratio | measured | promised |",
        "|---|---|---|",
        *ratios,
        "",
        f"| side | readings a second, median of {ROUNDS} | all rounds |",
        "|---|---|---|",
        *(
            f"| {side} | {statistics.median(found):,.0f} | {', '.join(f'{rate:,.0f}' for rate in found)} |"
            for side, found in rates.items()
        ),
        "",
        "| besides | |",
        "|---|---|",
        *(f"| {name} | {figure} |" for name, figure in extra),
        "",
        *_conditions(),
    ]


def _conditions() -> list[str]:
    versions = ", ".join(f"{name} {version(name)}" for name in ("kafka-python", "torch", "polars", "deltalake"))
    kafka = next(jar.coordinate.rpartition(":")[2] for jar in read_lock() if ":kafka-clients:" in jar.coordinate)
    memory_gib = psutil.virtual_memory().total / 2**30
    return [
        f"{SENSORS} sensors, {SENSORS * STEPS:,} readings of {len(sides.FEATURES)} features, one target, hidden size",
        f"{sides.HIDDEN_SIZE}, 4 partitions, one broker on the same machine; the sides take turns. The pass-through",
        "sends a value as long as a forecast at horizon 1, one transaction with the offsets per poll, and no headers,",
        "decoding or states; its clients are set up like the forecaster's (by default they wait 100 ms per commit).",
        "",
        f"Machine: {_processor()}, {os.cpu_count()} cores, {memory_gib:.0f} GiB, {platform.system()}.",
        f"Python {platform.python_version()}, {versions}, Apache Kafka {kafka}.",
    ]


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
