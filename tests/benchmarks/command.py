"""``streamgru forecast`` as a user starts it: a separate process, its model from the registry, its log in a file."""

import re
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import psutil

from model.artefact import save_artefact
from pipeline.registry.training_run import training_run
from pipeline.registry.versions import CHAMPION, Registry
from pipeline.settings import Settings
from tests.benchmarks.sides import HIDDEN_SIZE
from tests.environment import environment
from tests.integration.stream_rig import small_forecaster
from tests.waiting import wait_until

END_S = 60.0


def register(settings: Settings, seed: int = 0) -> int:
    """Register a version with random weights and the benchmarks' hidden size."""
    artefact = settings.home / f"artefact-{uuid.uuid4().hex[:8]}"
    save_artefact(small_forecaster(settings, seed, HIDDEN_SIZE), artefact)
    with training_run(settings, "bench", {}) as run:
        return run.register(artefact, {}, {})


def promote(settings: Settings, version: int) -> None:
    """Make a version the champion."""
    Registry(settings).set_alias(CHAMPION, version)


def named(base: Settings, name: str, **overrides: Any) -> Settings:
    """The base settings with separate topics, group, model name and home."""
    content = base.model_dump(exclude_unset=True) | overrides
    content["kafka"] = content.get("kafka", {}) | {
        "topics": {
            "readings": f"readings-{name}",
            "forecasts": f"forecasts-{name}",
            "state": f"state-{name}",
            "dead_letters": f"readings-{name}.dlq",
        }
    }
    content["forecaster"] = content.get("forecaster", {}) | {"group_id": f"group-{name}"}
    content["model_name"] = f"model-{name}"
    content["home"] = base.home / name
    made = Settings(**content)
    made.home.mkdir(parents=True, exist_ok=True)
    return made


class ForecastCommand:
    """A running ``streamgru forecast``. Leaving the context kills it.

    Args:
        tree: files of another commit, whose command runs instead of this tree's.
    """

    def __init__(self, settings: Settings, instance: str, tree: Path | None = None) -> None:
        self._log = settings.home / f"{instance}-{uuid.uuid4().hex[:8]}.log"
        self.began = time.monotonic()
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "deploy.cli", "forecast", "--instance", instance],
                env=environment(settings) | ({} if tree is None else {"PYTHONPATH": str(tree)}),
                cwd=tree,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> "ForecastCommand":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()

    @property
    def log(self) -> str:
        """The log of the process so far."""
        return self._log.read_text()

    def wait_for(self, pattern: str, timeout_s: float) -> "re.Match[str]":
        """Wait for a match in the log, and return the first one."""

        def search() -> "re.Match[str] | None":
            if self._process.poll() is not None:
                raise AssertionError(f"`streamgru forecast` ended with {self._process.returncode}:\n{self.log}")
            return re.search(pattern, self.log)

        found = wait_until(search, timeout_s, f"the log contains {pattern!r}")
        assert found is not None
        return found

    def memory(self) -> "Memory":
        """Resident memory of the process now, and its peak."""
        return Memory(psutil.Process(self._process.pid).memory_info().rss, _peak(self._process.pid))

    def kill(self) -> None:
        """Send SIGKILL, and wait."""
        self._process.kill()
        self._process.wait(END_S)

    def end(self) -> None:
        """Send SIGTERM, and wait."""
        self._process.terminate()
        self._process.wait(END_S)


class Memory:
    """Resident bytes of a process."""

    def __init__(self, now: int, peak: int) -> None:
        self.now = now
        self.peak = peak


def _peak(pid: int) -> int:
    """The process's peak of resident bytes (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/{pid}/status does not contain VmHWM, the peak of resident memory")
