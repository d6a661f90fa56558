"""The transitions of partitions that a forecaster logged, checked against the table of allowed ones."""

import re
from collections import Counter
from typing import Final

from pipeline.forecaster.partitions import ASSIGNED, TRANSITIONS

# As ``forecaster_main`` formats it: the process, the logger, and the message of ``Partition.enter``.
_LINE: Final = re.compile(r"^.* (\d+) streamgru\.partitions: (partition (\d+): (\S+) -> (\S+))$", re.MULTILINE)
ALLOWED: Final = frozenset((before.value, after.value) for before, states in TRANSITIONS.items() for after in states)


def walk(log: str) -> tuple[Counter[str], list[str]]:
    """Follow every partition through the log of a forecaster and its restarts.

    Returns:
        How often each transition was logged; and the lines that no partition may log, since the transition is not
        allowed, or does not begin in the state that the one before ended in.
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
