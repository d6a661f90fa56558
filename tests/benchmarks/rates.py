"""How fast readings become forecasts, beside plain clients on the same broker.

All sides read the same topic in turn, several times over, and the median of each counts. What is compared are ratios:
the rates themselves belong to the machine.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.settings import Settings
from tests.benchmarks import sides
from tests.benchmarks.command import named
from tests.benchmarks.page import Figure, Section

SENSORS, STEPS = 200, 300
PARTITIONS = 4
ROUNDS = 5
QUANTILES = (0.1, 0.5, 0.9)
HOW = (
    f"{SENSORS} sensors, {SENSORS * STEPS:,} readings of {len(sides.FEATURES)} features, one target, hidden size "
    f"{sides.HIDDEN_SIZE}, {PARTITIONS} partitions; the sides take turns. The pass-through sends a value as long as a "
    "forecast at horizon 1, one transaction with the offsets per poll, and no headers, decoding or states; its clients "
    "are set up like the forecaster's (by default they wait 100 ms per commit)."
)


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


def measure(base: Settings) -> Section:
    """The section of the page."""
    rates = _measure_rates(named(base, "rates", kafka={"partitions": PARTITIONS}))
    table = [
        f"| side | readings a second, median of {ROUNDS} | all rounds |",
        "|---|---|---|",
        *(
            f"| {side} | {statistics.median(found):,.0f} | {', '.join(f'{rate:,.0f}' for rate in found)} |"
            for side, found in rates.items()
        ),
    ]
    return Section("rates", "Throughput", [_figure(rates, promise) for promise in PROMISES], HOW, "\n".join(table))


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


def _ratio(rates: dict[str, list[float]], promise: Promise) -> float:
    """The median over rounds of the ratio within a round: what slowed a round down slowed both."""
    pairs = zip(rates[promise.side], rates[promise.beside], strict=True)
    return statistics.median(side / beside for side, beside in pairs)


def _figure(rates: dict[str, list[float]], promise: Promise) -> Figure:
    ratio = _ratio(rates, promise)
    asked = f"≥ {promise.least:.2f}" if promise.least else "for the record"
    return Figure(promise.name, f"{ratio:.2f}", asked, ratio >= promise.least)
