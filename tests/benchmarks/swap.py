"""The time from a move of the alias to the first visible forecast of the new version, while readings arrive.

The new model first steps each sensor's recent readings while the old model serves. The time therefore grows with the
number of sensors, with ``forecaster.rewarm_steps`` and with the cost of a step.
"""

import time

from pipeline.kafka.group_positions import committed_offsets
from pipeline.kafka.topic_reader import topic_ends
from pipeline.settings import Settings
from tests.benchmarks.command import ForecastCommand, named, promote, register
from tests.benchmarks.page import Figure, Section
from tests.benchmarks.sides import ADAPTATIONS, adapting, fill
from tests.benchmarks.takeover import Watch, flow
from tests.waiting import wait_until

SENSORS = 1_000
STEPS = 300  # readings of each sensor before the promotion
RATE = 500.0  # readings a second
MOST_S = 10.0
TIMEOUT_S = 300.0


def measure(base: Settings) -> Section:
    """The section of the page."""
    figures = []
    for level in ADAPTATIONS[:2]:
        swap_s, pause_s = _swap(adapting(base, level), level)
        figures.append(
            Figure(
                f"alias moved → first forecast of the new version, adaptation {level}",
                f"{swap_s:.1f} s",
                f"≤ {MOST_S:g} s",
                swap_s <= MOST_S,
            )
        )
        figures.append(Figure("... pause of the stream during the swap", f"{pause_s:.2f} s"))
    how = (
        f"{SENSORS:,} sensors with {STEPS} readings each, at {RATE:g} readings a second; the last "
        f"{base.rewarm_steps} readings or more of each sensor are replayed. The alias is looked up every "
        f"{base.forecaster.poll_alias_s:g} s, and the model comes from MLflow: both are part of the time."
    )
    return Section("swap", f"A promotion with {SENSORS:,} sensors", figures, how)


def _swap(base: Settings, level: str) -> tuple[float, float]:
    settings = named(base, f"swap-{level}-{time.time_ns() % 1_000_000}")
    source = fill(settings, SENSORS, STEPS)
    promote(settings, register(settings))
    newer = register(settings, seed=1)
    ends = topic_ends(source.settings, settings.kafka.topics.readings)
    with ForecastCommand(settings, "bench") as process:
        wait_until(lambda: committed_offsets(settings) == ends, TIMEOUT_S, "all readings were forecast")
        with flow(settings, RATE, SENSORS, first_step=STEPS), Watch(settings, from_now=True) as watch:
            wait_until(watch.is_lively, TIMEOUT_S, "forecasts in all partitions")
            moved = time.monotonic()
            promote(settings, newer)
            wait_until(lambda: newer in watch.versions, TIMEOUT_S, "the new version forecasts")
            found = process.wait_for(rf"version {newer} serves; forecasts paused for ([\d.]+) s", TIMEOUT_S)
        process.end()
    return watch.versions[newer] - moved, float(found[1])
