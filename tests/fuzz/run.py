"""Runs a fuzz target. Every case has a seed of its own, which is enough to repeat it."""

import random
import time
import traceback
from dataclasses import dataclass

from tests.fuzz.targets import Target


@dataclass(frozen=True)
class Finding:
    """A case that failed."""

    case: int
    error: str


def fuzz(target: Target, seed: int, seconds: float, most: int = 5) -> tuple[int, list[Finding]]:
    """Number of cases within ``seconds`` of CPU time, and the failed cases. It stops after ``most`` failures."""
    findings: list[Finding] = []
    deadline = time.thread_time() + seconds
    case = 0
    while time.thread_time() < deadline and len(findings) < most:
        try:
            target(random.Random(f"{seed}-{case}"))
        except Exception:  # noqa: BLE001 - any exception is a finding
            findings.append(Finding(case, traceback.format_exc(limit=-4)))
        case += 1
    return case, findings
