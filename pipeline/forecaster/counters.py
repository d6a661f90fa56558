"""The counts of a forecaster since its start, in its log and in a file.

``Reporter`` logs the counts in regular intervals and writes them to a JSON file if one is configured (--stats).
``health`` shows them in the answers to probes, and ``metrics`` makes Prometheus metrics of them.
"""

import json
import logging
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pipeline.forecaster.rebuild import RebuildReport

logger = logging.getLogger("streamgru.forecaster")

REPORT_INTERVAL_S: Final = 10.0
_BATCH_COUNTS: Final = (  # the counts of a batch that ``add`` sums up, in addition to its dead letters
    "readings",
    "accepted",
    "duplicates",
    "late",
    "outlooks",
    "late_outlooks",
    "unused_outlooks",
    "ignored_features",
    "forecasts",
    "withheld_values",
    "unit_changes",
    "transactions",
    "state_bytes",
)


@dataclass
class Counters:
    """Counts of committed work since the start, except ``aborted``, and ``held``, which is the present number."""

    readings: int = 0  # records of the readings topic without outlooks: accepted, duplicate, late or rejected
    accepted: int = 0
    duplicates: int = 0
    late: int = 0
    held: int = 0  # readings in the reorder buffers now; a reading counts as accepted once it is stepped
    # Offsets from the first buffered reading on that retention had deleted at a restore. Of the buffered readings, at
    # least one and at most this number got no forecast.
    held_lost: int = 0
    outlooks: int = 0  # records with outlooks that the state of at least one sensor accepted
    late_outlooks: int = 0  # records with outlooks no newer than the current outlooks of their sensors
    unused_outlooks: int = 0  # records with outlooks whose sensors have no state on the partition
    ignored_features: int = 0  # features in readings, and covariates in outlooks, that the settings do not name
    dead_letters: Counter[str] = field(default_factory=Counter)  # reason -> dead letters
    implausible_times: dict[str, int] = field(default_factory=dict)  # sensor -> dead letters; the sensors with most
    forecasts: int = 0
    withheld_values: int = 0  # values that counted as missing, because the sensor's unit may have changed
    unit_changes: int = 0  # features of sensors that were found in another unit
    transactions: int = 0
    aborted: int = 0
    swaps: int = 0
    swap_pause_s: float = 0.0  # seconds without a forecast at the last model swap
    state_bytes: int = 0  # keys and values of the records in the changelog, positions included
    restores: int = 0  # finished restores, each of one partition or several
    restored_sensors: int = 0
    rebuilt_sensors: int = 0
    cold_sensors: int = 0
    quarantined_states: int = 0  # non-finite states; they were discarded
    restore_s: float = 0.0  # seconds of the last restore
    model_version: int | None = None
    started: float = field(default_factory=time.monotonic)  # monotonic seconds

    def add(self, batch: "Counters") -> None:
        """Add the counts of a committed batch."""
        for name in _BATCH_COUNTS:
            setattr(self, name, getattr(self, name) + getattr(batch, name))
        self.dead_letters = self.dead_letters + batch.dead_letters  # replaced, since the health server may iterate it

    def count_restored(self, sensors: int, rebuilt: RebuildReport, held_lost: int, seconds: float) -> None:
        """Add the counts of a finished restore."""
        self.restores += 1
        self.restored_sensors += sensors
        self.rebuilt_sensors += rebuilt.sensors
        self.cold_sensors += len(rebuilt.cold)
        self.held_lost += held_lost
        self.restore_s = seconds

    def line(self) -> str:
        """The counts that are not 0, as ``name=value``."""
        content = self.content()
        letters = content.pop("dead_letters")
        content.pop("implausible_times")  # ``TimeAlarms`` logs the sensors
        content["dead_letters"] = self.dead_letters.total()
        content |= {f"dead_letters.{reason}": count for reason, count in sorted(letters.items())}
        return " ".join(f"{name}={value}" for name, value in content.items() if value)

    def write(self, path: Path) -> None:
        """Replace the file with the counts as JSON; after a crash it has the old or the new content, complete."""
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(self.content()) + "\n", encoding="utf-8")
        partial.replace(path)

    def content(self) -> dict[str, Any]:
        """All counts by name, ready for JSON, with the uptime in place of the start."""
        # dataclasses.asdict would rebuild the Counter from pairs, with tuples as keys, which JSON does not have.
        content = vars(self) | {"dead_letters": dict(self.dead_letters)}
        content["uptime_s"] = round(time.monotonic() - content.pop("started"), 1)
        for name in ("swap_pause_s", "restore_s"):
            content[name] = round(content[name], 3)
        return content


class Reporter:
    """Logs the counters and writes them to a file, if one is given. An error is logged, never raised.

    Args:
        path: the file, replaced by each report.
    """

    def __init__(self, counters: Counters, path: Path | None) -> None:
        self._counters = counters
        self._path = path
        self._due_at = time.monotonic() + REPORT_INTERVAL_S
        self._has_failed = False  # whether the last report failed; only the first failure of a series is logged

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
            logger.debug("cannot report the counts", exc_info=error)
            self._fail(f"cannot report the counts: {type(error).__name__}: {error}")

    def _fail(self, message: str) -> None:
        if not self._has_failed:
            logger.warning("%s; forecasting continues", message)
        self._has_failed = True
