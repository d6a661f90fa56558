"""``streamgru ingest``, ``retrain`` and ``schedule``: the flows, once now or on their schedules."""

from collections.abc import Callable
from typing import TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from deploy.context import Context
from deploy.option_types import SEED, FiniteRange
from flows.orchestrator import connect, run_once
from flows.progress import Progress as FlowProgress
from flows.progress import watch_progress

R = TypeVar("R")


@click.command()
@click.option(
    "--accept-loss",
    is_flag=True,
    help="Go on from the topic's start where its retention deleted readings before they were ingested.",
)
@click.pass_obj
def ingest(context: Context, accept_loss: bool) -> None:
    """Take the readings that are new on the topic into the history table, each once.

    It ends at the readings that are there when it starts. Run it again whenever you like, also after it was killed.
    """
    connect(context.settings, console=context.verbose)
    from flows.ingest import ingest as flow

    click.echo(str(run_once(lambda: _with_bar(lambda: flow(accept_loss=accept_loss)), context.settings)))


@click.command()
@click.option(
    "--history-version", type=click.IntRange(min=0), help="Version of the history table; by default the newest."
)
@click.option("--epochs", type=click.IntRange(min=1), help="Epochs at most; by default as in the settings.")
@click.option("--budget", "budget_s", type=FiniteRange(min=0, min_open=True), help="Seconds to train for at most.")
@click.option("--seed", type=SEED, help="Seed of everything random; by default as in the settings.")
@click.option(
    "--warm-start/--no-warm-start", default=None, help="Begin from the champion's weights, or from random ones."
)
@click.pass_obj
def retrain(
    context: Context,
    history_version: int | None,
    epochs: int | None,
    budget_s: float | None,
    seed: int | None,
    warm_start: bool | None,
) -> None:
    """Train a challenger on the history, back-test it, register it, and let the gate decide whether it is champion."""
    connect(context.settings, console=context.verbose)
    from flows.retrain import retrain as flow

    def call() -> object:
        return flow(history_version=history_version, epochs=epochs, budget_s=budget_s, seed=seed, warm_start=warm_start)

    done = run_once(lambda: _with_bar(call), context.settings)
    click.echo(str(done))


@click.command()
@click.pass_obj
def schedule(context: Context) -> None:
    """Serve ingest, retraining and the monitor on the schedules in the settings, until SIGTERM or Ctrl-C.

    Each flow runs as a process of its own, at most one of a kind at a time. The schedules stay in Prefect when this
    ends, and what is paused there stays paused; of the runs of a flow that come due meanwhile, the next
    `streamgru schedule` makes up for the last.

    A run that was killed keeps the next ones of its flow away for up to five minutes. A Prefect server of your own must
    keep its concurrency leases on disk for that, as deploy/prefect.yaml says; `streamgru up` sees to it.
    """
    settings = context.settings
    connect(settings, console=True)
    from flows.schedules import scheduled_deployments, serve

    scheduled_deployments(settings)  # what is no schedule is said first
    for name in ("ingest", "retrain", "monitor"):
        when = getattr(settings.schedules, name)
        click.echo(f"{name:<8} {f'every {when.interval_s:g} s' if when.cron is None else f'{when.cron} (UTC)'}")
    click.echo(f"serving them with Prefect at {settings.prefect_api_url}; Ctrl-C ends it")
    serve(settings)
    click.echo("no longer serving; the schedules stay in Prefect, and the last run to come due waits")


def _with_bar(call: Callable[[], R]) -> R:
    """The outcome of a flow, with a bar on stderr that shows how far it is; none where stderr is no terminal."""
    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[detail]}"),
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
