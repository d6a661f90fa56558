"""The properties of a file that the reader recognised by itself, and the options that state them."""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

_MOST_NAMES: Final = 3  # files that a note names


@dataclass
class Guesses:
    """The guesses about one file, in the order in which they were made."""

    sentences: list[str] = field(default_factory=list)
    options: list[tuple[str, str | None]] = field(default_factory=list)  # option and value; None for a flag

    def add(self, sentence: str, option: str, value: str | None = None) -> None:
        """Add a guess, such as "the decimal sign is a comma", and the option that states it."""
        self.sentences.append(sentence)
        self.options.append((option, value))

    @property
    def command(self) -> str:
        """The options as a user types them. An option with two values is left out, because it holds for all columns."""
        unique = dict.fromkeys(self.options)
        count = Counter(option for option, _ in unique)
        return " ".join(
            option if value is None else f"{option} {shlex.quote(value)}"
            for option, value in unique
            if count[option] == 1
        )


def guess_notes(names: Sequence[str], guesses: Sequence[Guesses]) -> list[str]:
    """One line for all files with the same guesses."""
    by_guess: dict[tuple[str, str], list[str]] = {}
    for name, each in zip(names, guesses, strict=True):
        by_guess.setdefault((", ".join(each.sentences), each.command), []).append(name)
    alone = "" if len(by_guess) == 1 else " for these files alone"
    found = []
    for (sentences, command), files in by_guess.items():
        if sentences:
            some = ", ".join(files[:_MOST_NAMES])
            some = some if len(files) <= _MOST_NAMES else f"{some} and {len(files) - _MOST_NAMES} more files"
            same = f"options that say the same{alone}: {command}" if command else "no option says the same"
            found.append(f"guessed for {some}: {sentences}; {same}")
    return found
