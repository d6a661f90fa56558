"""The demo's steps and its stream on the terminal."""

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from deploy.demo.report import Step
from deploy.live_forecasts import LatestForecasts, LiveForecast, StreamTail, format_line
from pipeline.text.visible_text import visible

STEPS: Final = 13
REPORT_S: Final = 10.0  # between two lines of progress, if the output is not a terminal
_LONGEST_NOTE: Final = 100


class Task:
    """A step that runs or has ended."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.doing = ""
        self.result = ""
        self._started = time.monotonic()
        self._ended: float | None = None

    def __call__(self, doing: str) -> None:
        """Note the present work, which a terminal shows while the step runs."""
        self.doing = doing

    @property
    def is_done(self) -> bool:
        """Whether the step has ended."""
        return self._ended is not None

    @property
    def seconds(self) -> float:
        """Duration of the step so far, or until its end."""
        return (self._ended or time.monotonic()) - self._started

    def end(self) -> None:
        """Mark the step as ended."""
        self._ended = time.monotonic()


class Display:
    """Shows the steps and the stream: a terminal gets one live screen, other outputs one line each. Thread-safe."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tasks: list[Task] = []
        self._latest = LatestForecasts()
        self._counts = "no readings sent yet"
        self._due_s = 0.0
        self._began = time.monotonic()
        self._lock = threading.Lock()

    @property
    def seconds(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self._began

    @property
    def steps(self) -> list[Step]:
        """The steps for the report."""
        return [Step(task.title, task.result, task.seconds) for task in self._tasks]

    def screen(self) -> AbstractContextManager[object]:
        """A block in which the screen of a terminal is kept up to date."""
        if not self._console.is_terminal:
            return nullcontext()
        return Live(console=self._console, get_renderable=self._render, refresh_per_second=4)

    @contextmanager
    def step(self, title: str) -> Iterator[Task]:
        """Show a step while the block runs, and then its ``result`` and duration."""
        task = Task(title)
        with self._lock:
            self._tasks.append(task)
            number = len(self._tasks)
        if not self._console.is_terminal:
            self._console.print(Text.assemble((f"{number:>2}/{STEPS}", "bold cyan"), f" {title} …"), soft_wrap=True)
        yield task
        task.end()
        if not self._console.is_terminal:
            done = (
                ("✓", "green"),
                " ",
                (title, "dim"),
                f": {visible(task.result)} ",
                (f"({task.seconds:.1f} s)", "dim"),
            )
            self._console.print(Text.assemble(*done), soft_wrap=True)

    def watch(self, tail: StreamTail, doing: str, live_forecasts: list[LiveForecast]) -> None:
        """Show the counts and the latest forecasts of a consumer of the stream."""
        with self._lock:  # the thread that draws the screen reads them
            self._latest.update(live_forecasts)
        self._counts = (
            f"{tail.readings:,} readings, {tail.forecasts:,} forecasts; {visible(doing.strip(), _LONGEST_NOTE)}"
        )
        if not self._console.is_terminal and live_forecasts and time.monotonic() > self._due_s:
            self._due_s = time.monotonic() + REPORT_S
            told = f"   {self._counts}\n   {format_line(live_forecasts[-1])}"
            self._console.print(told, soft_wrap=True)

    def _render(self) -> Group:
        steps = Table(box=None, show_header=False, pad_edge=False, expand=True)
        steps.add_column(min_width=4, no_wrap=True)
        steps.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        steps.add_column(min_width=5, justify="right", no_wrap=True)
        tasks = list(self._tasks)
        for number, task in enumerate(tasks, start=1):
            mark, note = (("✓", "green"), task.result) if task.is_done else (("…", "cyan"), task.doing.strip())
            text = Text.assemble(f"{task.title} ", (visible(note), "dim"))
            steps.add_row(Text.assemble(mark, f" {number:>2}"), text, f"{task.seconds:.0f} s")
        rows = max(2, self._console.height - len(tasks) - 7)
        head = Text.assemble(("streamgru demo", "bold"), f"  step {len(tasks)} of {STEPS}, {self.seconds:.0f} s")
        with self._lock:
            latest = self._latest.table(self._counts, rows, self._console.width)
        return Group(head, steps, latest)
