"""Memory of a forecaster with many sensors, training rate, and the time from a start to the first forecast."""

import time
from pathlib import Path

import numpy as np
import psutil

from model.config import ModelConfig
from model.sequences import build_sequences, split_by_time
from model.training import TrainingOptions, train
from pipeline.kafka.group_positions import committed_offsets
from pipeline.kafka.topic_reader import topic_ends
from pipeline.settings import Settings
from tests.benchmarks.command import ForecastCommand, named, promote, register
from tests.benchmarks.page import Figure, Section
from tests.benchmarks.sides import FEATURES, HIDDEN_SIZE, again, champion_for, fill
from tests.integration.stream_rig import ForecasterProcess
from tests.waiting import wait_until

MANY_SENSORS, FEW_SENSORS = 10_000, 100
TIMEOUT_S = 120.0
TRAINING_BUDGET_S = 20.0
HOUR_US = 3_600_000_000


def measure(base: Settings) -> Section:
    """The section of the page."""
    few, many = (forecaster_memory(base, sensors) for sensors in (FEW_SENSORS, MANY_SENSORS))
    steps_per_s, device = training_rate()
    fresh_s, restart_s = time_to_first_forecast(base)
    per_sensor = (many - few) / (MANY_SENSORS - FEW_SENSORS)
    figures = [
        Figure(f"a forecaster's memory after a flood of {MANY_SENSORS:,} sensors", f"{many / 2**20:,.0f} MiB resident"),
        Figure(f"... per sensor beyond {FEW_SENSORS} (mostly room for large batches)", f"{per_sensor:,.0f} bytes"),
        Figure(f"training, 12 sensors, horizon 24, on {device}", f"{steps_per_s:,.0f} sensor-steps/s"),
        Figure("`streamgru forecast` to the first visible forecast, model fetched from MLflow", f"{fresh_s:.1f} s"),
        Figure("... on a restart, model in the local copy", f"{restart_s:.1f} s"),
    ]
    return Section(
        "extras",
        "Memory, training and start",
        figures,
        f"Hidden size {HIDDEN_SIZE}, {len(FEATURES)} features, one target.",
    )


def forecaster_memory(base: Settings, sensors: int) -> int:
    """Resident bytes of a forecaster process that has served ``sensors`` sensors."""
    settings = fill(again(named(base, f"memory-{sensors}")), sensors, steps=2).settings
    folder = Path(settings.home) / f"champion-{settings.forecaster.group_id}"
    champion_for(settings)
    ends = topic_ends(settings, settings.kafka.topics.readings)
    with ForecasterProcess(settings, folder) as process:
        wait_until(lambda: committed_offsets(settings) == ends, TIMEOUT_S, f"{sensors} sensors were served")
        return int(psutil.Process(process.pid).memory_info().rss)


def training_rate() -> tuple[float, str]:
    """Sensor-steps per second of the stateful recipe, and the device it chose."""
    sensors, steps = 12, 10_000
    random = np.random.default_rng(0)
    hours = np.tile(np.arange(steps, dtype=np.int64), sensors)
    sequences = build_sequences(
        tuple(f"sensor-{number}" for number in range(sensors)),
        np.arange(sensors + 1, dtype=np.int64) * steps,
        hours * HOUR_US,
        np.sin(hours[:, None] * 2 * np.pi / 24) + random.normal(0, 0.3, (sensors * steps, len(FEATURES))),
        np.arange(sensors * steps, dtype=np.int64),
        features=FEATURES,
        cadence_us=HOUR_US,
        max_gap_steps=168,
    )
    config = ModelConfig(FEATURES, FEATURES[:1], HOUR_US, 24, hidden_size=HIDDEN_SIZE)
    options = TrainingOptions(hidden_size=HIDDEN_SIZE, budget_s=TRAINING_BUDGET_S, epochs=1_000, patience_epochs=1_000)
    result = train(config, options, sequences, split_by_time(sequences, 0.1, 0.1))
    return result.sensor_steps_per_s, result.device


def time_to_first_forecast(base: Settings) -> tuple[float, float]:
    """Seconds from `streamgru forecast` to the first visible forecast: on the first start, and on a restart."""
    settings = fill(again(named(base, "start")), sensors=200, steps=5).settings
    promote(settings, register(settings))
    return _start(settings), _start(again(settings))


def _start(settings: Settings) -> float:
    """Run the command until its first forecast is visible."""
    topic = settings.kafka.topics.forecasts
    with ForecastCommand(settings, "bench") as process:
        wait_until(lambda: any(topic_ends(settings, topic).values()), TIMEOUT_S, "a forecast is visible")
        passed_s = time.monotonic() - process.began
        process.end()
    return passed_s
