"""``streamgru ingest``, ``retrain`` and ``schedule``: the flows, once now or on their schedules."""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import click
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TimeElapsedColumn

from deploy.context import Context
from deploy.literal_console import TaskText, make_console
from deploy.loading import loading
from deploy.option_types import health_port_option, training_options
from deploy.terminal_text import say
from flows.orchestrator import connect, run_once
from flows.progress import Progress as FlowProgress
from flows.progress import watch_progress
from pipeline.observability.log_format import is_json

R = TypeVar("R")

logger = logging.getLogger("streamgru.schedules")


@click.command()
@click.option(
    "--accept-loss",
    is_flag=True,
    help="If retention deleted readings before they were ingested, continue at the first one left.",
)
@click.pass_obj
def ingest(context: Context, accept_loss: bool) -> None:
    """Append the new readings on the topic to the history table, each once.

    The command stops at the newest reading that the topic had at the start. It can be run again at any time, even after
    it was killed.
    """
    connect(context.settings, console=context.verbose)
    with loading():
        from flows.ingest import ingest as flow

    say(str(run_once(lambda: _with_bar(lambda: flow(accept_loss=accept_loss)), context.settings)))


@click.command()
@click.option(
    "--history-version", type=click.IntRange(min=0), help="Version of the history table; by default the newest."
)
@training_options
@click.option(
    "--warm-start/--no-warm-start",
    default=None,
    help="Begin from the champion's weights or from random weights; by default from the settings.",
)
@click.pass_obj
def retrain(context: Context, /, **options: Any) -> None:
    """Train a challenger on the history, back-test it, register it, and let the gate decide whether it is champion."""
    connect(context.settings, console=context.verbose)
    with loading():
        from flows.retrain import retrain as flow

    say(str(run_once(lambda: _with_bar(lambda: flow(**options)), context.settings)))


@click.command()
@health_port_option("schedules.health_port")
@click.pass_obj
def schedule(context: Context, health_port: int | None) -> None:
    """Serve ingest, retraining and the monitor on the schedules in the settings, until SIGTERM or Ctrl-C.

    Each run of a flow is a process of its own, and a flow has at most one run at a time. When this command ends, the
    schedules stay in Prefect; a paused deployment or schedule stays paused. The next `streamgru schedule` starts the
    newest overdue run of each flow and deletes the older ones.

    After a run is killed, its flow cannot run again for up to five minutes. A Prefect server of your own must keep its
    concurrency leases on disk, as deploy/prefect.yaml explains; otherwise the flow could never run again.
    """
    settings = context.settings
    connect(settings, console=True)
    with loading():
        from flows.schedule_health import answering_probes
        from flows.schedules import scheduled_deployments, serve

    scheduled_deployments(settings)  # fails for an invalid schedule before anything is printed
    for name in ("ingest", "retrain", "monitor"):
        when = getattr(settings.schedules, name)
        _announce(f"{name:<8} {f'every {when.interval_s:g} s' if when.cron is None else f'{when.cron} (UTC)'}")
    _announce(f"serving these flows with Prefect at {settings.prefect_api_url}; press Ctrl-C to stop")
    with answering_probes(settings, health_port):
        serve(settings)
    _announce(
        "stopped; the schedules stay in Prefect, and the next `streamgru schedule` starts the newest overdue runs"
    )


def _announce(text: str) -> None:
    """Print a line, or log it if the log is JSON: a program collects both outputs of a container."""
    if is_json():
        logger.info("%s", text)
    else:
        say(text)


def _with_bar(call: Callable[[], R]) -> R:
    """The outcome of a flow; a terminal shows its progress on stderr."""
    console = make_console(stderr=True)
    columns = (
        TaskText("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TaskText("{task.fields[detail]}"),
        TimeElapsedColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:

        def show(progress: FlowProgress) -> None:
            if progress.doing not in tasks:
                tasks[progress.doing] = bar.add_task(progress.doing, detail="")
            bar.update(tasks[progress.doing], completed=progress.done, total=progress.total, detail=progress.detail)

        with watch_progress(show):
            return call()
