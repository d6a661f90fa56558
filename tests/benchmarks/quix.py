"""Quix Streams as sides of the throughput benchmark, in a virtual environment of its own.

Its packages are locked in quix.lock. torch is not installed a second time: the environment's path ends with that of
this project's packages. Python finds torch there, and all packages of the lock in the environment itself.
"""

import hashlib
import json
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.settings import Settings
from tests.benchmarks.meter import Run

ROOT: Final = Path(__file__).parents[2]
LOCK: Final = Path(__file__).with_name("quix.lock")
PROGRAM: Final = Path(__file__).with_name("quix_app.py")
FOLDER: Final = ROOT / ".streamgru" / "quix"
TIMEOUT_S: Final = 300.0


@dataclass(frozen=True)
class Quix:
    """An installed Quix Streams."""

    python: Path
    version: str


def install() -> Quix | str:
    """Quix Streams in its environment, installed if it is missing; or why it could not be installed."""
    stamp = FOLDER / "installed"
    locked = hashlib.sha256(LOCK.read_bytes()).hexdigest() + sys.version
    python = FOLDER / "bin" / "python"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != locked:
        uv = str(Path(sys.executable).with_name("uv"))
        lock = ["--require-hashes", "-r", str(LOCK)]
        for command in (
            [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(FOLDER)],
            [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python), *lock],
        ):
            try:
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
            except (OSError, subprocess.SubprocessError) as error:
                told = getattr(error, "stderr", None) or str(error)
                return f"Quix Streams could not be installed: {str(told).strip().splitlines()[-1]}"
        packages = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        (Path(packages) / "project.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        stamp.write_text(locked, encoding="utf-8")
    shown = subprocess.run(
        [python, "-c", "from importlib.metadata import version; print(version('quixstreams'))"],
        check=True,
        capture_output=True,
        text=True,
    )
    return Quix(python, shown.stdout.strip())


def process(
    quix: Quix, kind: str, settings: Settings, readings: int, payload: bytes, hidden_size: int, broker: int
) -> Run:
    """Let an application of this kind (``quix_app``) read all readings of the topic, in a process of its own.

    ``settings`` have the horizon, the quantiles, and names of topics and group that nothing has used before.
    """
    job = {
        "kind": kind,
        "servers": settings.kafka.bootstrap_servers,
        "group": settings.forecaster.group_id,
        "readings_topic": settings.kafka.topics.readings,
        "forecasts_topic": settings.kafka.topics.forecasts,
        "readings": readings,
        "partitions": settings.kafka.partitions,
        "features": settings.features,
        "payload": payload.decode(),
        "hidden_size": hidden_size,
        "horizon_steps": settings.horizon_steps,
        "quantiles": settings.quantiles,
        "folder": str(settings.home / f"quix-{settings.forecaster.group_id}"),
        "broker": broker,
    }
    done = subprocess.run(
        [quix.python, PROGRAM, json.dumps(job)], stdout=subprocess.PIPE, text=True, check=True, timeout=TIMEOUT_S
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return Run(readings, found["seconds"], found["cpu_seconds"], found["broker_seconds"])


def changelog(settings: Settings) -> Sequence[str]:
    """The names of the changelog topics that an application makes, with a ``*``."""
    return [f"changelog__{settings.forecaster.group_id}--*"]
