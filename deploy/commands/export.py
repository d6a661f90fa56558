"""``streamgru export``: forecasts and readings as tables for other tools."""

from pathlib import Path

import click
from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeElapsedColumn

from deploy.context import Context
from deploy.literal_console import TaskText, make_console
from deploy.terminal_text import say
from pipeline.export.export import Content, ExportReport, TableFormat, export


@click.command("export")
@click.argument("contents", nargs=-1, type=click.Choice(["forecasts", "readings"]), metavar="[forecasts] [readings]")
@click.option(
    "--to",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the tables; by default `export` in the project's data folder (`home`).",
)
@click.option(
    "--format",
    "table_format",
    type=click.Choice(["delta", "parquet"]),
    default="delta",
    show_default=True,
    help="A Delta Lake table, or a folder of Parquet files.",
)
@click.option(
    "--accept-loss",
    is_flag=True,
    help="If retention deleted records before they were exported, continue at the first one left.",
)
@click.pass_obj
def export_command(
    context: Context, contents: tuple[Content, ...], folder: Path | None, table_format: TableFormat, accept_loss: bool
) -> None:
    """Append new forecasts and readings to tables, each record once; by default both.

    A forecast becomes one row per target and step. Each row has the partition and offset of its record. The command
    stops at the newest record that the topic had at the start. It can be run again at any time, even after it was
    killed.
    """
    settings = context.settings
    into = folder or settings.home / "export"
    console = make_console(stderr=True)
    columns = (TaskText("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        for content in contents or ("forecasts", "readings"):
            task = bar.add_task(content)

            def show(report: ExportReport, task: object = task) -> None:
                bar.update(task, completed=report.done_offsets, total=report.total_offsets)  # type: ignore[arg-type]

            done = export(settings, content, into, table_format, accept_loss=accept_loss, report=show)
            say(done)
