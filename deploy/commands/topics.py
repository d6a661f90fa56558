"""``streamgru topics`` and ``streamgru schema``: the topics on Kafka and the format of their records."""

import json

import click
from rich.table import Table

from deploy.context import Context
from deploy.literal_console import make_console
from deploy.terminal_text import say, say_lines
from pipeline.asyncapi import asyncapi_document
from pipeline.kafka.topics import TopicStatus, ensure_topics, topic_statuses
from pipeline.outlook_messages import ALL_SCHEMA_URIS, all_json_schemas


@click.group()
def topics() -> None:
    """Create or show the Kafka topics: readings, forecasts, states, dead letters, and flat forecasts if set."""


@topics.command()
@click.option(
    "--alter",
    is_flag=True,
    help="Change the settings of existing topics that differ. Partitions and replicas stay as they are.",
)
@click.pass_obj
def create(context: Context, alter: bool) -> None:
    """Create missing topics. Fail if existing topics differ from the settings."""
    for line in ensure_topics(context.settings, alter=alter):
        say(line)


@topics.command()
@click.pass_obj
def show(context: Context) -> None:
    """Show the topics and their records. Exit with code 1 if a topic differs from the settings."""
    statuses = topic_statuses(context.settings)
    make_console().print(_table(statuses))
    for status in statuses:
        for difference in status.differences:
            say(difference)
    if not all(status.partitions and not status.differences for status in statuses):
        say("`streamgru topics create` creates missing topics, with --alter it changes settings that differ")
        click.get_current_context().exit(1)


@click.command()
@click.argument("message", type=click.Choice(["reading", "forecast", "outlook"]), required=False)
@click.option(
    "--asyncapi", is_flag=True, help="Print an AsyncAPI document of all topics, with the names in the settings."
)
@click.pass_obj
def schema(context: Context, message: str | None, asyncapi: bool) -> None:
    """Print the JSON Schema of readings, forecasts and outlooks, or of one of them."""
    if asyncapi and message is not None:
        raise click.UsageError(f"--asyncapi describes all topics; leave out {message!r}")
    schemas = asyncapi_document(context.settings) if asyncapi else all_json_schemas()
    if message is not None:
        head = {"$schema": schemas["$schema"], "$id": ALL_SCHEMA_URIS[message]}
        schemas = {**head, **schemas[message], "$defs": schemas["$defs"]}
    say_lines(json.dumps(schemas, indent=2, ensure_ascii=False))


def _table(statuses: list[TopicStatus]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("topic", "holds"):
        table.add_column(column)
    for column in ("partitions", "records"):
        table.add_column(column, justify="right")
    table.add_column("")
    for status in statuses:
        word = "missing" if not status.partitions else "differs" if status.differences else "ok"
        table.add_row(status.plan.name, status.plan.purpose, str(status.partitions), f"{status.records:,}", word)
    return table
