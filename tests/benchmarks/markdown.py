"""Markdown tables and formatted figures for QUALITY.md."""

import math
from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def spread(values: Sequence[float], varies: bool = True) -> str:
    """The mean, with the standard deviation between seeds if ``varies``. Baselines do not vary."""
    centre = mean(values)
    text = f"{centre:.3f}" if abs(centre) < 10 else f"{centre:.2f}"
    if len(values) < 2 or not varies:
        return text
    deviation = math.sqrt(sum((value - centre) ** 2 for value in values) / (len(values) - 1))
    return f"{text} ± {deviation:.3f}"


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
