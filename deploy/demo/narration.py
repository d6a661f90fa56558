"""What the demo tells in the terminal: one line per step, with what came of it and how long it took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from deploy.demo.report import Step

_LONGEST_NOTE = 100


class Telling:
    """A step under way."""

    def __init__(self, label: str, status: Status | None) -> None:
        self.result = ""
        self._label = label
        self._status = status
        self._started = time.monotonic()
        self._ended: float | None = None

    def __call__(self, doing: str) -> None:
        """Say what is being done now; shown while the step lasts, in a terminal only."""
        if self._status is not None:
            note = escape(doing.strip()[:_LONGEST_NOTE])
            self._status.update(f"{self._label} [dim]{self.seconds:.0f} s  {note}[/]")

    @property
    def seconds(self) -> float:
        """How long it has taken, or took."""
        return (self._ended or time.monotonic()) - self._started

    def end(self) -> None:
        """Stop the clock."""
        self._ended = time.monotonic()


class Narration:
    """Numbers the steps, shows them, and keeps them for the report."""

    def __init__(self, console: Console, total: int) -> None:
        self.console = console
        self.steps: list[Step] = []
        self._total = total

    @contextmanager
    def step(self, title: str, *, spinner: bool = True) -> Iterator[Telling]:
        """Announce a step, and afterwards its ``result`` and duration. ``spinner=False`` leaves the terminal to it."""
        label = f"[bold cyan]{len(self.steps) + 1:>2}/{self._total}[/] {title}"
        status = self.console.status(label) if spinner and self.console.is_terminal else None
        if status is None:
            self.console.print(f"{label} …", soft_wrap=True)
        with status or nullcontext():
            telling = Telling(label, status)
            yield telling
        telling.end()
        done = "[green]✓[/] " + (label if status is not None else f"[dim]{title}[/]")
        self.console.print(f"{done}: {escape(telling.result)} [dim]({telling.seconds:.1f} s)[/]", soft_wrap=True)
        self.steps.append(Step(title, telling.result, telling.seconds))
