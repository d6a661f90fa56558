"""Throughput of the forecaster and the ingest, compared with plain clients on the same broker.

All sides read the same topic in turn, in several rounds. Only ratios of sides can be compared between machines.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from model.state import state_dtype
from pipeline.settings import Settings
from tests.benchmarks import sides
from tests.benchmarks.command import named
from tests.benchmarks.page import Figure, Section
from tests.integration.stream_rig import small_forecaster

SENSORS, STEPS = 200, 300
PARTITIONS = 4
ROUNDS = 3
QUANTILES = (0.1, 0.5, 0.9)
HOW = (
    f"{SENSORS} sensors, {SENSORS * STEPS:,} readings of {len(sides.FEATURES)} features, one target, hidden size "
    f"{sides.HIDDEN_SIZE}, {PARTITIONS} partitions; the sides take turns. The pass-through sends a value as long as a "
    "forecast at horizon 1 for each reading. It commits one transaction with the offsets per poll, and has no headers, "
    "decoding or states. Its clients have the forecaster's options (with kafka-python's defaults they wait 100 ms per "
    "commit). Forecasts have three quantiles. Adaptation off also turns calibration off."
)


@dataclass(frozen=True)
class Promise:
    """A lower limit for the ratio of two sides' rates."""

    name: str
    side: str
    beside: str
    least: float


POLL, PASS, INGEST = ("plain poll", "transactional pass-through with `send`", "ingest into the history table")
HORIZONS = (1, 24)


def _side(horizon_steps: int, level: str) -> str:
    return f"forecaster, horizon {horizon_steps}, adaptation {level}"


PROMISES = (
    Promise("forecaster at horizon 1, adaptation off : pass-through", _side(1, "off"), PASS, 1.5),
    *(
        Promise(f"... at horizon {horizon}, {level}", _side(horizon, level), PASS, 0.0)
        for horizon in HORIZONS
        for level in sides.ADAPTATIONS
        if (horizon, level) != (1, "off")
    ),
    Promise("ingest : plain poll", INGEST, POLL, 1 / 3),
)


def measure(base: Settings) -> Section:
    """The section of the page."""
    base = named(base, "rates", kafka={"partitions": PARTITIONS})
    rates = _measure_rates(base)
    table = [
        f"| side | readings a second, median of {ROUNDS} | all rounds |",
        "|---|---|---|",
        *(
            f"| {side} | {statistics.median(found):,.0f} | {', '.join(f'{rate:,.0f}' for rate in found)} |"
            for side, found in rates.items()
        ),
    ]
    figures = [_figure(rates, promise) for promise in PROMISES]
    figures += [
        Figure(
            f"a sensor's state, horizon {horizon}, adaptation {level}", f"{_state_bytes(base, horizon, level):,} bytes"
        )
        for horizon in HORIZONS
        for level in sides.ADAPTATIONS
    ]
    return Section("rates", "Throughput", figures, HOW, "\n".join(table))


def _measure_rates(settings: Settings) -> dict[str, list[float]]:
    """Side -> readings per second in each round; the sides take turns."""
    source = sides.fill(settings, SENSORS, STEPS)
    bare = sides.adapting(settings, "off").model_copy(update={"horizon_steps": 1})
    payload = sides.forecast_value(bare)

    def turn_of(horizon_steps: int, level: str) -> Callable[[], float]:
        adapted = sides.Input(sides.adapting(settings, level), source.readings)
        return lambda: sides.forecast(adapted, horizon_steps, QUANTILES)

    turns: dict[str, Callable[[], float]] = {
        POLL: lambda: sides.poll(source),
        PASS: lambda: sides.pass_through(source, payload),
        **{_side(horizon, level): turn_of(horizon, level) for horizon in HORIZONS for level in sides.ADAPTATIONS},
        INGEST: lambda: sides.ingest_all(source),
    }
    rates: dict[str, list[float]] = {side: [] for side in turns}
    for number in range(ROUNDS):
        for side, turn in turns.items():
            rates[side].append(turn())
            print(f"round {number + 1}: {side}: {rates[side][-1]:,.0f} readings/s", flush=True)
    return rates


def _state_bytes(settings: Settings, horizon_steps: int, level: str) -> int:
    chosen = sides.adapting(settings, level).model_copy(update={"horizon_steps": horizon_steps})
    return state_dtype(small_forecaster(chosen, hidden_size=sides.HIDDEN_SIZE).config, chosen.adaptation).itemsize


def _ratio(rates: dict[str, list[float]], promise: Promise) -> float:
    """The median of the ratios within each round: a slow moment of the machine slows both sides."""
    pairs = zip(rates[promise.side], rates[promise.beside], strict=True)
    return statistics.median(side / beside for side, beside in pairs)


def _figure(rates: dict[str, list[float]], promise: Promise) -> Figure:
    ratio = _ratio(rates, promise)
    asked = f"≥ {promise.least:.2f}" if promise.least else "for the record"
    return Figure(promise.name, f"{ratio:.2f}", asked, ratio >= promise.least)
