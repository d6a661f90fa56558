"""The two commits of an upgrade as command lines, and a forecaster's slot that either commit can fill."""

import json
import os
import signal
import subprocess
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

REPOSITORY: Final = Path(__file__).resolve().parents[2]
COMMAND_S: Final = 400.0
END_S: Final = 30.0
_FOREIGN: Final = ("STREAMGRU_", "MLFLOW_", "PREFECT_")  # left out: a developer's settings may name other servers


class Failed(Exception):
    """The upgrade cannot continue."""


@dataclass(frozen=True)
class Side:
    """One of the two commits."""

    name: str
    tree: Path
    python: str
    settings: Path
    logs: Path

    def run(self, *arguments: str, check: bool = True) -> str:
        """Run a ``streamgru`` command; return its standard output.

        Raises:
            Failed: ``check`` is true and the exit code is not 0.
        """
        number = len(list(self.logs.glob("command-*")))
        log = self.logs / f"command-{number:02}-{arguments[0]}-{self.name}.log"
        with log.open("wb") as errors:
            done = subprocess.run(
                [self.python, "-m", "deploy.cli", *arguments],
                cwd=self.tree,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                timeout=COMMAND_S,
                check=False,
            )
        if check and done.returncode:
            raise Failed(f"`streamgru {' '.join(arguments)}` of {self.name} exited with {done.returncode}; see {log}")
        return done.stdout.decode()

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the commands of this commit."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        return kept | {"PYTHONPATH": str(self.tree), "STREAMGRU_SETTINGS": str(self.settings)}


@dataclass
class Forecaster:
    """A place in the fleet, and the process that fills it now."""

    name: str
    port: int  # port of its health endpoint
    folder: Path
    side: Side | None = None
    process: "subprocess.Popen[bytes] | None" = None

    def start(self, side: Side) -> None:
        """Start a forecaster of a commit."""
        self.side = side
        number = len(list(side.logs.glob(f"forecaster-{self.name}-*")))
        arguments = ("forecast", "--instance", self.name, "--health-port", str(self.port), "--stats", str(self._stats))
        with (side.logs / f"forecaster-{self.name}-{number}-{side.name}.log").open("wb") as output:
            self.process = subprocess.Popen(
                [side.python, "-m", "deploy.cli", *arguments],
                cwd=side.tree,
                env=side.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def stop(self) -> tuple[int | None, dict[str, Any]]:
        """Send SIGTERM; return the exit code (None if it had to be killed) and the counts."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            code: int | None = self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            code = None
            self.kill()
        self.process = None
        counts: dict[str, Any] = json.loads(self._stats.read_text())
        self._stats.unlink()
        return code, counts

    def kill(self) -> None:
        """Send SIGKILL to the process, if any, and wait for its end."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def health(self) -> dict[str, Any]:
        """The answer of the forecaster's health endpoint; empty without an answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=2) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except (OSError, ValueError):
            return {}

    def serves(self) -> bool:
        """Whether the forecaster has partitions and has restored their states."""
        health = self.health()
        return health.get("state") == "serving" and bool(health["lag"])

    @property
    def _stats(self) -> Path:
        return self.folder / f"stats-{self.name}.json"


def check_out(revision: str, folder: Path) -> tuple[str, Path]:
    """The short name of a commit, and a folder with its files.

    The folder stays for the next run, because the cache of compiled code depends on its path.

    Raises:
        Failed: this clone does not contain the commit.
    """
    name = _git("rev-parse", "--short", "--verify", f"{revision}^{{commit}}").decode().strip()
    tree = folder / name
    if not tree.exists():
        folder.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder))
        subprocess.run(["tar", "-x", "-C", str(draft)], input=_git("archive", name), check=True)
        draft.rename(tree)
    return name, tree


def _git(*arguments: str) -> bytes:
    done = subprocess.run(["git", "-C", str(REPOSITORY), *arguments], capture_output=True, check=False)
    if done.returncode:
        raise Failed(f"git {' '.join(arguments)}: {done.stderr.decode().strip()}; a shallow clone lacks older commits")
    return done.stdout
