"""``streamgru models`` and ``promote``: list the versions in the registry, and choose the champion."""

from dataclasses import asdict

import click
from rich.table import Table

from deploy.context import Context
from deploy.literal_console import make_console
from deploy.terminal_text import say, say_lines
from pipeline.json_text import json_text
from pipeline.registry.versions import CHAMPION, ModelInfo, Registry
from pipeline.visible_text import visible

# The version's error, the errors of its rivals, another error, and the coverage of its intervals.
COLUMNS = ("pinball", "pinball.champion", "pinball.naive", "mae", "coverage")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.pass_obj
def models(context: Context, as_json: bool) -> None:
    """List the versions of the model, newest first: aliases, back-test scores, and the gate's decision."""
    versions = Registry(context.settings).versions()
    if as_json:
        say_lines(json_text([asdict(info) for info in versions]))
    elif versions:
        make_console().print(_table(context.settings.model_name, versions))
    else:
        say(f"{context.settings.model_name} has no versions yet; `streamgru retrain` trains one")


@click.command()
@click.argument("version", type=click.IntRange(min=1))
@click.option("--alias", default=CHAMPION, show_default=True, help="The alias to move.")
@click.pass_obj
def promote(context: Context, version: int, alias: str) -> None:
    """Make VERSION the champion, if it loads and fits the settings. Running forecasters load it within seconds."""
    from pipeline.registry.promotion import promote as move_alias

    done = move_alias(context.settings, version, alias)
    name = context.settings.model_name
    if not done.changed:
        say(f"version {version} of {name} is {alias} already")
        return
    say(f"version {version} of {name} is {alias} now")
    if done.previous is not None:
        option = "" if alias == CHAMPION else f" --alias {alias}"
        say(f"the previous one was version {done.previous}; to go back: streamgru promote {done.previous}{option}")


def _table(name: str, versions: list[ModelInfo]) -> Table:
    table = Table(title=f"{name}: mean scores of the back-test, in units of each sensor's scale", title_justify="left")
    table.add_column("version", justify="right")
    table.add_column("aliases")
    table.add_column("created (UTC)")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    table.add_column("gate", overflow="fold")
    for info in versions:
        table.add_row(
            str(info.version),
            visible(" ".join(info.aliases)),
            f"{info.created:%Y-%m-%d %H:%M}",
            *(f"{info.metrics[column]:.4g}" if column in info.metrics else "" for column in COLUMNS),
            visible(info.tags.get("gate.reason", "")),
        )
    return table
