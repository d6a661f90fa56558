"""The cost of adaptation: bytes in a sensor's state, and microseconds per reading.

``python -m tests.benchmarks.adapting`` prints the table. The figures in model/README.md are from an idle machine.
"""

import time
from typing import Final

import numpy as np

from model.adaptation import AdaptedSteps, Adapter
from model.config import Level
from model.experts import AdaptationConfig, adaptation_dtype
from model.state import record_bytes

LEVELS: Final[tuple[Level, ...]] = ("off", "light", "full")
SHAPES: Final = ((1, 1), (2, 24))  # targets and steps ahead
SENSORS: Final = (200, 2_000)
REPEATS: Final = 20
HOUR_US: Final = 3_600_000_000


def made_steps(
    config: AdaptationConfig, sensors: int, steps: int, random: np.random.Generator, first: int = 0
) -> AdaptedSteps:
    """One reading of every sensor at each of ``steps`` steps, beginning at step ``first``, with random forecasts."""
    n, K, Q = sensors * steps, config.targets, len(config.levels)
    return AdaptedSteps(
        slots=np.arange(sensors),
        starts=np.arange(sensors + 1) * steps,
        reset=np.zeros(n, bool),
        timestamp_us=np.tile((first + np.arange(steps)) * config.cadence_us, sensors),
        values=random.standard_normal((n, K)),
        hidden=random.standard_normal((n, config.hidden_size)).astype(np.float32),
        forecast=np.arange(n),
        quantiles=np.sort(random.standard_normal((n, K, Q, config.horizon_steps)), axis=2),
    )


def measure(level: Level, targets: int, horizon: int, sensors: int) -> tuple[int, float]:
    """Bytes per sensor, and microseconds per reading in the fastest of ``REPEATS`` rounds of one reading per sensor."""
    config = AdaptationConfig(level, True, targets, horizon, 24, (0.1, 0.5, 0.9), 64, HOUR_US)
    random = np.random.default_rng(0)
    states = np.zeros(sensors, adaptation_dtype(config))
    records = record_bytes(states)
    adapter = Adapter(config, range(targets))
    past = 2 * horizon + 10
    adapter.adapt(records, made_steps(config, sensors, past, random))  # then every step has labels
    least = float("inf")
    for repeat in range(REPEATS):
        one = made_steps(config, sensors, 1, random, past + repeat)
        began = time.perf_counter()
        adapter.adapt(records, one)
        least = min(least, time.perf_counter() - began)
    return states.dtype.itemsize, least / sensors * 1e6


def main() -> None:
    """Print the table."""
    print(f"{'level':<8}{'targets':>8}{'steps':>6}{'bytes':>8}" + "".join(f"{f'µs, {n:,}':>12}" for n in SENSORS))
    for level in LEVELS:
        for targets, horizon in SHAPES:
            measured = [measure(level, targets, horizon, sensors) for sensors in SENSORS]
            times = "".join(f"{us:>12.1f}" for _, us in measured)
            print(f"{level:<8}{targets:>8}{horizon:>6}{measured[0][0]:>8,}{times}")


if __name__ == "__main__":
    main()
