"""Versions from MLflow, and overdue flows. ``python -m deploy.serve.registry_report`` prints it.

MLflow's and Prefect's packages take 200 MB of memory, so a process of its own asks, and ends. ``RegistryReports``
starts it at intervals.
"""

import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime

import msgspec

from deploy.loading import loading
from deploy.serve import answers
from pipeline.errors import StreamgruError
from pipeline.settings import Settings, load_settings
from pipeline.text.visible_text import visible

logger = logging.getLogger("streamgru.serve")

_LIMIT_S = 120.0  # of one report; MLflow's client retries for some seconds
_FIRST_AFTER_S = 5.0  # the look back has the processor first
_NICE = 10  # the report may wait for every other process


class RegistryReport(msgspec.Struct):
    """The answer of one report."""

    checked_ms: int = 0
    versions: list[answers.Version] = []
    models_trouble: str = ""
    overdue: list[str] = []
    flows_trouble: str = ""


class RegistryReports:
    """The newest report, from a thread that asks every ``serve.refresh_s``."""

    def __init__(self, settings: Settings) -> None:
        self._interval_s = settings.serve.refresh_s
        self._latest: RegistryReport | None = None
        self._trouble = "" if self._interval_s else "not asked, because serve.refresh_s is 0"
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = threading.Event()

    def models(self) -> tuple[int | None, str, list[answers.Version]]:
        """When MLflow was asked, why it did not answer, and its versions."""
        latest = self._latest
        if latest is None:
            return None, self._trouble, []
        return latest.checked_ms, self._trouble or latest.models_trouble, latest.versions

    def flows(self) -> answers.Flows:
        """The overdue flows."""
        latest = self._latest
        if latest is None:
            return answers.Flows(None, self._trouble, [])
        return answers.Flows(latest.checked_ms, self._trouble or latest.flows_trouble, latest.overdue)

    def stop(self) -> None:
        """End ``run`` and its process."""
        self._stopped.set()
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    def run(self) -> None:
        """Ask at intervals until ``stop``."""
        if not self._interval_s or self._stopped.wait(_FIRST_AFTER_S):
            return
        while not self._stopped.is_set():
            self._ask()
            self._stopped.wait(self._interval_s)

    def _ask(self) -> None:
        command = [sys.executable, "-m", "deploy.serve.registry_report"]
        errors = b""
        try:
            with subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            ) as self._process:
                try:
                    output, errors = self._process.communicate(timeout=_LIMIT_S)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    raise
            self._latest = msgspec.json.decode(output.rstrip().rpartition(b"\n")[2], type=RegistryReport)
            self._trouble = ""
        except subprocess.TimeoutExpired:
            self._trouble = f"MLflow and the history were not asked within {_LIMIT_S:g} s"
        except (msgspec.MsgspecError, OSError) as error:
            if not self._stopped.is_set():
                last = visible(errors.decode(errors="replace").strip().rpartition("\n")[2])
                self._trouble = f"MLflow and the history could not be asked: {error}; {last}"
                logger.warning("%s", self._trouble)


def report(settings: Settings) -> RegistryReport:
    """Ask MLflow and the history."""
    found = RegistryReport(checked_ms=round(time.time() * 1_000))
    try:
        found.versions = _versions(settings)
    except StreamgruError as error:
        found.models_trouble = str(error)
    try:
        found.overdue = _overdue(settings)
    except StreamgruError as error:
        found.flows_trouble = str(error)
    return found


def _versions(settings: Settings) -> list[answers.Version]:
    from pipeline.registry.versions import Registry

    return [
        answers.Version(
            version=info.version,
            aliases=list(info.aliases),
            created_ms=round(info.created.timestamp() * 1_000),
            scores=info.metrics,
            reason=info.tags.get("gate.reason", "") or info.trouble,
        )
        for info in Registry(settings).versions()
    ]


def _overdue(settings: Settings) -> list[str]:
    from flows.monitor import overdue_now

    return overdue_now(settings, datetime.now(UTC))


def main() -> None:
    """Print the report of the settings in the environment as one line of JSON."""
    os.nice(_NICE)
    with loading():  # the packages of MLflow and Prefect
        found = report(load_settings())
    sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")


if __name__ == "__main__":
    main()
