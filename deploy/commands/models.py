"""``streamgru models`` and ``promote``: list the versions in the registry, and choose the champion."""

import os
from dataclasses import asdict

import click
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from deploy.context import Context
from deploy.literal_console import make_console
from deploy.terminal_text import say, say_lines
from pipeline.registry.promotion_log import Mover, events, this_user
from pipeline.registry.versions import CHAMPION, ModelInfo, Registry
from pipeline.text.json_text import json_text
from pipeline.text.visible_text import visible

# The version's error, the errors of its rivals, another error, and the coverage of its intervals.
COLUMNS = ("pinball", "pinball.champion", "pinball.naive", "mae", "coverage")
_TITLE = "mean scores of the back-test, in units of each sensor's scale"
# Characters of a terminal from which the table is readable, with the gate's sentences wrapped in the last column.
_TABLE_WIDTH = 120
_UNLIMITED = 100_000


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.pass_obj
def models(context: Context, as_json: bool) -> None:
    """List the versions of the model, newest first: aliases, back-test scores, and the gate's decision."""
    versions = Registry(context.settings).versions()
    if as_json:
        say_lines(json_text([asdict(info) for info in versions]))
    elif versions:
        _print(make_console(), context.settings.model_name, versions)
    else:
        say(f"{context.settings.model_name} has no versions yet; `streamgru retrain` trains one")


@click.command()
@click.argument("version", type=click.IntRange(min=1))
@click.option("--alias", default=CHAMPION, show_default=True, help="The alias to move.")
@click.option("--reason", default="", help="Why; kept on the version, with your name and the time.")
@click.pass_obj
def promote(context: Context, version: int, alias: str, reason: str) -> None:
    """Make VERSION the champion, if it loads and fits the settings. Running forecasters load it within seconds."""
    from pipeline.registry.promotion import promote as move_alias

    done = move_alias(context.settings, version, alias, Mover(this_user(), reason))
    name = context.settings.model_name
    if not done.changed:
        say(f"version {version} of {name} is {alias} already")
        return
    say(f"version {version} of {name} is {alias} now")
    if done.undo is not None:
        say(f"the previous one was version {done.previous}; to go back: {done.undo}")


def _print(console: Console, name: str, versions: list[ModelInfo]) -> None:
    """The versions as a table, or in blocks if the terminal is too narrow. A file or a pipe gets the full table."""
    table = _table(name, versions)
    needed = console.measure(table, options=console.options.update(max_width=_UNLIMITED)).maximum
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = needed
        console.print(table)
    elif console.width >= min(needed, _TABLE_WIDTH):
        console.print(table)
    else:
        _print_blocks(console, name, versions)


def _table(name: str, versions: list[ModelInfo]) -> Table:
    table = Table(title=f"{name}: {_TITLE}", title_justify="left")
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
            "\n".join(map(visible, _remarks(info))),
        )
    return table


def _print_blocks(console: Console, name: str, versions: list[ModelInfo]) -> None:
    """A few lines per version: no number is cut, and sentences wrap at words."""
    console.print(f"{name}: {_TITLE}")
    for info in versions:
        aliases = f", {visible(' '.join(info.aliases))}" if info.aliases else ""
        console.print(f"\nversion {info.version}{aliases}, created {info.created:%Y-%m-%d %H:%M} UTC")
        scores = [f"{column} {info.metrics[column]:.4g}" for column in COLUMNS if column in info.metrics]
        for line in (", ".join(scores), *map(visible, _remarks(info))):
            if line:
                console.print(Padding(line, (0, 0, 0, 2)))


def _remarks(info: ModelInfo) -> list[str]:
    """The trouble of the version or the reason of the gate, and the newest promotion, rollback or refusal."""
    newest = [f"{event.at[:16].replace('T', ' ')} {event.text}" for event in events(info.tags)[:1]]
    return [text for text in (info.trouble or info.tags.get("gate.reason", ""), *newest) if text]
