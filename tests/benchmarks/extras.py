"""What the benchmark measures besides rates: memory for many sensors, training, and the time to the first forecast."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil

from model.artefact import save_artefact
from model.config import ModelConfig
from model.sequences import build_sequences, split_by_time
from model.training import TrainingOptions, train
from pipeline.audit.topic_logs import committed_offsets, topic_ends
from pipeline.registry.training_run import training_run
from pipeline.registry.versions import CHAMPION, Registry
from pipeline.settings import Settings
from tests.benchmarks.sides import FEATURES, HIDDEN_SIZE, again, champion_for, fill
from tests.integration.stream_rig import ForecasterProcess, small_forecaster
from tests.waiting import wait_until

TIMEOUT_S = 120.0
TRAINING_BUDGET_S = 20.0
HOUR_US = 3_600_000_000


def forecaster_memory(base: Settings, sensors: int) -> int:
    """Resident bytes of a forecaster process that has served ``sensors`` sensors."""
    settings = fill(again(_named(base, f"memory-{sensors}")), sensors, steps=2).settings
    folder = Path(settings.home) / f"champion-{settings.forecaster.group_id}"
    champion_for(settings)
    ends = topic_ends(settings, settings.kafka.topics.readings)
    with ForecasterProcess(settings, folder) as process:
        wait_until(lambda: committed_offsets(settings) == ends, TIMEOUT_S, f"{sensors} sensors were served")
        return int(psutil.Process(process.pid).memory_info().rss)


def training_rate() -> tuple[float, str]:
    """Sensor-steps a second of the stateful recipe, and the device that it chose."""
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
    """Seconds from `streamgru forecast` to the first visible forecast: on a fresh machine, and on a restart."""
    settings = fill(again(_named(base, "start")), sensors=200, steps=5).settings
    artefact = Path(settings.home) / "artefact"
    save_artefact(small_forecaster(settings, hidden_size=HIDDEN_SIZE), artefact)
    with training_run(settings, "bench", {}) as run:
        version = run.register(artefact, {}, {})
    Registry(settings).set_alias(CHAMPION, version)
    return _start(settings), _start(again(settings))


def _start(settings: Settings) -> float:
    """Runs the command until its first forecast is visible. The settings travel by the environment."""
    topics, stack = settings.kafka.topics, settings.stack
    environment = {
        "STREAMGRU_HOME": str(settings.home),
        "STREAMGRU_FEATURES": '["a", "b", "c"]',
        "STREAMGRU_TARGETS": '["a"]',
        "STREAMGRU_MODEL_NAME": settings.model_name,
        "STREAMGRU_STACK__KAFKA_PORT": str(stack.kafka_port),
        "STREAMGRU_STACK__MLFLOW_PORT": str(stack.mlflow_port),
        "STREAMGRU_KAFKA__PARTITIONS": str(settings.kafka.partitions),
        "STREAMGRU_KAFKA__TOPICS__READINGS": topics.readings,
        "STREAMGRU_KAFKA__TOPICS__FORECASTS": topics.forecasts,
        "STREAMGRU_KAFKA__TOPICS__STATE": topics.state,
        "STREAMGRU_KAFKA__TOPICS__DEAD_LETTERS": topics.dead_letters,
        "STREAMGRU_FORECASTER__GROUP_ID": settings.forecaster.group_id,
    }
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.cli", "forecast", "--instance", "bench"],
        env=os.environ | environment,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: any(topic_ends(settings, topics.forecasts).values()), TIMEOUT_S, "a forecast is visible")
        return time.perf_counter() - began
    finally:
        process.terminate()
        process.wait(timeout=TIMEOUT_S)


def _named(base: Settings, name: str) -> Settings:
    """The base with a readings topic, a model and a home of its own."""
    content = base.model_dump()
    content["kafka"]["topics"]["readings"] = f"readings-{name}"
    content["model_name"] = f"model-{name}"
    content["home"] = base.home / name
    return Settings(**content)
