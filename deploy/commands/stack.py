"""``streamgru up``, ``status`` and ``down``: the local stack."""

import re
import threading
from contextlib import AbstractContextManager

import click
from rich.progress import Progress, SpinnerColumn, TaskID, TimeElapsedColumn

from deploy.context import Context
from deploy.literal_console import TaskText, make_console
from deploy.stack import SERVICES, ServiceStatus, Stack
from deploy.terminal_text import say, say_lines

chosen_services = click.argument("services", nargs=-1, type=click.Choice(SERVICES), metavar="[SERVICE]...")


@click.command()
@chosen_services
@click.pass_obj
def up(context: Context, services: tuple[str, ...]) -> None:
    """Start Kafka, MLflow and Prefect on this machine and wait until they answer.

    Services that run already keep running. Name some of kafka, mlflow and prefect to start only these. The first start
    downloads Apache Kafka (60 MB).
    """
    stack = Stack(context.settings)
    with ServiceProgress() as progress:
        stack.up(services or SERVICES, progress.report)


@click.command()
@click.pass_obj
def status(context: Context) -> None:
    """Show each service with its state, address and log; exit code 1 unless all are up."""
    statuses = Stack(context.settings).status()
    say_lines(_table(statuses))
    if not all(service.up for service in statuses):
        click.get_current_context().exit(1)


@click.command()
@chosen_services
@click.pass_obj
def down(context: Context, services: tuple[str, ...]) -> None:
    """Stop the Kafka, MLflow and Prefect that `streamgru up` started. Their data stays.

    Name some of kafka, mlflow and prefect to stop only these.
    """
    stack = Stack(context.settings)
    with ServiceProgress() as progress:
        stack.down(services or SERVICES, progress.report)


class ServiceProgress(AbstractContextManager["ServiceProgress"]):
    """The progress of each service: a terminal shows one line per service, other outputs one line per change."""

    def __init__(self) -> None:
        self._console = make_console()
        self._progress = Progress(
            SpinnerColumn(finished_text=" "),
            TaskText("{task.fields[service]:<8}{task.description}"),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._last: dict[str, str] = {}
        self._lock = threading.Lock()
        self._progress.start()

    def report(self, service: str, doing: str, *, done: bool = False) -> None:
        """Show that ``service`` is ``doing`` something now."""
        with self._lock:
            if self._console.is_terminal:
                if service not in self._tasks:
                    self._tasks[service] = self._progress.add_task(doing, total=1, service=service)
                self._progress.update(self._tasks[service], description=doing, completed=int(done))
            elif self._last.get(service) != (kind := re.sub(r"\d+", "", doing)):
                self._last[service] = kind  # print a rising count once, not each of its numbers
                say(f"{service:<8}{doing}")

    def __exit__(self, *error: object) -> None:
        self._progress.stop()


def _table(statuses: list[ServiceStatus]) -> str:
    rows = [("SERVICE", "STATE", "ADDRESS", "PROCESS", "LOG")]
    rows += [(each.name, each.state, each.address, str(each.pid or "-"), str(each.log)) for each in statuses]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
