"""Transitions of partitions in a forecaster's log, checked against the table of allowed transitions."""

import re
from collections import Counter
from typing import Final

from pipeline.forecaster.partitions import ASSIGNED, TRANSITIONS

# The log format of ``forecaster_main``: process id, logger, and the message of ``Partition.enter``.
_LINE: Final = re.compile(r"^.* (\d+) streamgru\.partitions: (partition (\d+): (\S+) -> (\S+))$", re.MULTILINE)
ALLOWED: Final = frozenset((before.value, after.value) for before, states in TRANSITIONS.items() for after in states)


def walk(log: str) -> tuple[Counter[str], list[str]]:
    """Follow every partition through the log of one forecaster, restarts included.

    Returns:
        The count of each transition, and the wrong ones: not allowed, or not beginning in the partition's state.
    """
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    states: dict[tuple[str, str], str] = {}  # process, partition -> its state
    for process, message, number, before, after in _LINE.findall(log):
        counts[f"{before} -> {after}"] += 1
        if (before, after) not in ALLOWED or states.get((process, number), ASSIGNED.value) != before:
            wrong.append(message)
        states[process, number] = after
    return counts, wrong
