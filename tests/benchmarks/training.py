"""``python -m tests.benchmarks.training``: time and quality of the default training, and memory with 10 M readings.

The time is the CPU time of one thread, because other programs on the machine slow the clock's time down. The quality is
the pinball loss on the validation part, in the back-test of the resulting model without adaptation; the test part is
never read. ``--beside FOLDER`` measures another checkout of this project too, in turn with this one.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
BEIJING: Final = ROOT / "deploy/data/beijing.parquet"
MANY_READINGS: Final = 10_000_000
MANY_SENSORS: Final = 1_000
HOUR_US: Final = 3_600_000_000
MOST_GB: Final = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.training", description=__doc__)
    parser.add_argument("--etth1", type=Path, metavar="FILE", help="ETTh1.csv of github.com/zhouhaoyi/ETDataset")
    parser.add_argument("--horizons", type=int, nargs="+", default=[96], help="steps to forecast on it; default: 96")
    parser.add_argument("--beside", type=Path, metavar="FOLDER", help="another checkout to measure")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--no-memory", action="store_true", help="leave out the training with 10 M readings")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_memory() if options.one[0] == "memory" else _train(*options.one, options.etth1)))
        return
    folders = {"this tree": ROOT} | ({"beside": options.beside.resolve()} if options.beside else {})
    cases = [f"etth1-{horizon}" for horizon in options.horizons] if options.etth1 else []
    for case in (*cases, "beijing-24"):
        for seed in options.seeds:
            for name, folder in folders.items():
                found = _in(folder, case, seed, options.etth1)
                print(
                    f"{case}, seed {seed}, {name}: {found['cpu_s']:.0f} s of one core ({found['clock_s']:.0f} s by the "
                    f"clock), {found['epochs']} epochs, pinball loss {found['loss']:.4f}",
                    flush=True,
                )
    if not options.no_memory:
        found = _in(ROOT, "memory", 0, None)
        print(
            f"an epoch with {MANY_READINGS:,} readings of {MANY_SENSORS:,} sensors: {found['gb']:.2f} GB resident at "
            f"the peak, at most {MOST_GB} allowed"
        )
        sys.exit(found["gb"] > MOST_GB)


def _in(folder: Path, case: str, seed: int, etth1: Path | None) -> dict[str, Any]:
    """The figures of one training, in a process that imports the code of ``folder``."""
    file = ["--etth1", str(etth1.resolve())] if etth1 else []
    command = [sys.executable, "-P", __file__, *file, "--one", case, str(seed)]
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _train(case: str, seed: str, etth1: Path) -> dict[str, Any]:
    from model.backtest import backtest, model_predictor
    from model.config import Adaptation
    from model.training import TrainingOptions, train
    from pipeline.evaluation.evaluate import model_config, split_by
    from pipeline.files.file_layout import FileLayout
    from pipeline.files.reading_table import read_readings
    from pipeline.settings import Settings, load_settings
    from pipeline.windows import sequences_from_table

    name, _, horizon = case.partition("-")
    if name == "beijing":
        settings = load_settings(ROOT / "deploy/beijing.toml").model_copy(update={"horizon_steps": int(horizon)})
        layout = FileLayout(
            time_column=None, timezone="Asia/Shanghai", sensor_column="station", columns_as_sensors=False
        )
        file, parts = BEIJING, "0.7,0.1,0.2"
    else:
        settings = Settings(features=("value",), targets=("value",), cadence_s=3_600, horizon_steps=int(horizon))
        layout = FileLayout(time_column=None, timezone="UTC", sensor_column=None, columns_as_sensors=True)
        file, parts = etth1, "12/4/4"
    sequences, split = split_by(parts, sequences_from_table(read_readings([file], layout, settings.features), settings))
    seen = sequences.slice_time(None, split.validation_end_us)
    # The budget is in seconds of the clock, which other programs slow down.
    options = TrainingOptions(seed=int(seed), device="cpu", threads=1, budget_s=1e6)
    cpu_s, clock_s = time.process_time(), time.monotonic()
    result = train(model_config(settings), options, seen, split)
    cpu_s, clock_s = time.process_time() - cpu_s, time.monotonic() - clock_s
    predictor = model_predictor(result.forecaster, "model", Adaptation())
    scores = backtest([predictor], seen, result.forecaster.config, split.train_end_us)
    return {
        "cpu_s": cpu_s,
        "clock_s": clock_s,
        "epochs": len(result.epochs),
        "loss": scores["model"].mean("pinball"),
        "steps_per_s": result.sensor_steps_per_s,
    }


def _memory() -> dict[str, Any]:
    import numpy as np

    from model.config import ModelConfig
    from model.sequences import Split, build_sequences
    from model.training import TrainingOptions, train

    steps = MANY_READINGS // MANY_SENSORS
    hours = np.tile(np.arange(steps, dtype=np.int64), MANY_SENSORS)
    values = np.random.default_rng(0).normal(size=(len(hours), 1))
    values[:, 0] += np.sin(hours * (2 * np.pi / 24))
    hours *= HOUR_US
    sequences = build_sequences(
        [f"sensor-{number}" for number in range(MANY_SENSORS)],
        np.arange(MANY_SENSORS + 1) * steps,
        hours,
        values,
        np.arange(len(hours)),
        features=("value",),
        cadence_us=HOUR_US,
        max_gap_steps=168,
    )
    split = Split(int(0.8 * steps) * HOUR_US, int(0.9 * steps) * HOUR_US)
    config = ModelConfig(("value",), ("value",), HOUR_US, 24)
    train(config, TrainingOptions(epochs=1, device="cpu", threads=1), sequences, split)
    return {"gb": _peak_bytes() / 1e9}


def _peak_bytes() -> int:
    """The process's peak of resident bytes (Linux)."""
    lines: Sequence[str] = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main()
