"""SPEED.md: one section per benchmark, so that one section can be measured and replaced alone."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TITLE = "# Speed"
INTRODUCTION = (
    "`make bench` wrote this page (`python -m tests.benchmarks NAME` measures one section). Ratios can be compared "
    "between machines; rates and times cannot. The broker and all clients share one machine."
)


@dataclass(frozen=True)
class Figure:
    """A measured figure and its limit."""

    name: str
    found: str
    asked: str = "for the record"
    is_met: bool = True


@dataclass(frozen=True)
class Section:
    """The results and the method of one benchmark."""

    key: str
    title: str
    figures: Sequence[Figure]
    how: str
    tables: str = ""  # Markdown, after the figures

    def as_markdown(self) -> str:
        """The section as Markdown."""
        rows = [f"| {figure.name} | {figure.found} | {figure.asked} |" for figure in self.figures]
        parts = [
            f"<!-- {self.key} -->",
            f"## {self.title}",
            "\n".join(["| | measured | promised |", "|---|---|---|", *rows]),
            *([self.tables] if self.tables else []),
            self.how,
        ]
        return "\n\n".join(parts)

    def unmet(self) -> list[str]:
        """A line for each figure that misses its limit."""
        return [
            f"{figure.name}: {figure.found}, must be {figure.asked}" for figure in self.figures if not figure.is_met
        ]


def write(path: Path, sections: Sequence[Section], order: Sequence[str], machine: str) -> None:
    """Write the sections into the page; each replaces the earlier section with its key."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    kept = {
        match[1]: match[0].strip()
        for match in re.finditer(r"^<!-- (\w+) -->$.*?(?=^<!-- \w+ -->$|\Z)", text, re.MULTILINE | re.DOTALL)
    }
    kept |= {section.key: section.as_markdown() for section in sections}
    parts = [TITLE, INTRODUCTION, machine, *(kept[key] for key in order if key in kept)]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
