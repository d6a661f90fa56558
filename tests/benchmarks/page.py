"""The page that the benchmarks write: a section each, so that one can be measured anew without the others."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TITLE = "# Speed"
INTRODUCTION = (
    "Written by `make bench` (`python -m tests.benchmarks NAME` for one section). Ratios compare between machines, "
    "rates and times do not. The broker and all clients share one machine."
)


@dataclass(frozen=True)
class Figure:
    """Something measured, beside what it has to be."""

    name: str
    found: str
    asked: str = "for the record"
    is_met: bool = True


@dataclass(frozen=True)
class Section:
    """What one benchmark found, and how."""

    key: str
    title: str
    figures: Sequence[Figure]
    how: str
    tables: str = ""  # Markdown, behind the figures

    def as_markdown(self) -> str:
        """Its part of the page."""
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
        """A line for each figure that is not as it has to be."""
        return [
            f"{figure.name}: {figure.found}, and must be {figure.asked}" for figure in self.figures if not figure.is_met
        ]


def write(path: Path, sections: Sequence[Section], order: Sequence[str], machine: str) -> None:
    """Put sections into the page, each in place of an earlier one with its key."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    kept = {
        match[1]: match[0].strip()
        for match in re.finditer(r"^<!-- (\w+) -->$.*?(?=^<!-- \w+ -->$|\Z)", text, re.MULTILINE | re.DOTALL)
    }
    kept |= {section.key: section.as_markdown() for section in sections}
    parts = [TITLE, INTRODUCTION, machine, *(kept[key] for key in order if key in kept)]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
