"""What a forecaster has done since it started: one line in the log every so often, and a JSON file for who wants it."""

import json
import logging
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pipeline.forecaster.replay import Rebuilt

logger = logging.getLogger("streamgru.forecaster")

REPORT_INTERVAL_S: Final = 10.0


@dataclass
class Counters:
    """Counts since the start, and ``held``: now. Only what was committed counts, except ``aborted``."""

    readings: int = 0  # records of the readings topic, whatever became of them
    accepted: int = 0
    duplicates: int = 0
    late: int = 0
    held: int = 0  # readings that wait for earlier ones; each counts as accepted once it is stepped
    # Offsets from the first held reading on that retention had deleted at a restore: so many held readings at most, and
    # one at least, got no forecast.
    held_lost: int = 0
    ignored_features: int = 0
    dead_letters: Counter[str] = field(default_factory=Counter)  # by reason
    forecasts: int = 0
    transactions: int = 0
    aborted: int = 0
    swaps: int = 0
    swap_pause_s: float = 0.0  # of the last swap: how long no batch was processed
    restored_sensors: int = 0
    rebuilt_sensors: int = 0
    cold_sensors: int = 0
    quarantined_states: int = 0  # with a number that was not finite, in memory
    restore_s: float = 0.0  # of the last restore
    model_version: int | None = None
    started: float = field(default_factory=time.monotonic)

    def add(self, batch: "Counters") -> None:
        """Take in the counts of a batch that was committed."""
        for name in ("readings", "accepted", "duplicates", "late", "ignored_features", "forecasts", "transactions"):
            setattr(self, name, getattr(self, name) + getattr(batch, name))
        self.dead_letters = self.dead_letters + batch.dead_letters  # another thread may be reading the one before

    def count_restored(self, sensors: int, rebuilt: Rebuilt, held_lost: int, seconds: float) -> None:
        """Take in what restoring partitions came to."""
        self.restored_sensors += sensors
        self.rebuilt_sensors += rebuilt.sensors
        self.cold_sensors += len(rebuilt.cold)
        self.held_lost += held_lost
        self.restore_s = seconds

    def line(self) -> str:
        """All counts, as ``name=value``."""
        content = self.content()
        letters = content.pop("dead_letters")
        content["dead_letters"] = sum(letters.values())
        content |= {f"dead_letters.{reason}": count for reason, count in sorted(letters.items())}
        return " ".join(f"{name}={value}" for name, value in content.items())

    def write(self, path: Path) -> None:
        """Replace the file with the counts as JSON, whole or not at all."""
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(self.content()) + "\n", encoding="utf-8")
        partial.replace(path)

    def content(self) -> dict[str, Any]:
        """All counts by name, ready for JSON; seconds since the start instead of its time."""
        # Not dataclasses.asdict: it rebuilds a Counter from pairs, and JSON has no keys that are tuples.
        content = vars(self) | {"dead_letters": dict(self.dead_letters)}
        content["uptime_s"] = round(time.monotonic() - content.pop("started"), 1)
        for name in ("swap_pause_s", "restore_s"):
            content[name] = round(content[name], 3)
        return content


class Reporter:
    """Logs the counters, and writes them to a file if there is one. Never raises: the stream does not depend on it.

    Args:
        path: of the file, replaced at each report.
    """

    def __init__(self, counters: Counters, path: Path | None) -> None:
        self._counters = counters
        self._path = path
        self._due_at = time.monotonic() + REPORT_INTERVAL_S
        self._has_failed = False  # the last report did: only the first failure of a series is logged

    def report_if_due(self) -> None:
        """``report``, every ``REPORT_INTERVAL_S``."""
        if time.monotonic() >= self._due_at:
            self.report()
            self._due_at = time.monotonic() + REPORT_INTERVAL_S

    def report(self) -> None:
        """Log and write the present counts."""
        try:
            logger.info("counts: %s", self._counters.line())
            if self._path is not None:
                self._counters.write(self._path)
            self._has_failed = False
        except OSError as error:
            self._fail(f"cannot write the counts to {self._path}: {error.strerror}")
        except Exception as error:
            logger.debug("the report failed", exc_info=error)
            self._fail(f"cannot report the counts: {type(error).__name__}: {error}")

    def _fail(self, message: str) -> None:
        if not self._has_failed:
            logger.warning("%s; forecasting continues", message)
        self._has_failed = True
