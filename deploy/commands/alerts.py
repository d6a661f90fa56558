"""``streamgru alerts``: automations in Prefect that notify a person of overdue flows."""

from pathlib import Path
from typing import Final

import click

from deploy.context import Context
from deploy.terminal_text import say
from flows.orchestrator import connect

AUTOMATIONS: Final = Path(__file__).parents[1] / "automations.json"


@click.command()
@click.option(
    "--notify",
    metavar="TYPE/NAME",
    help="A notification block in Prefect that gets the messages, such as slack-webhook/ops.",
)
@click.option(
    "--file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=AUTOMATIONS,
    help="Automations to install; by default deploy/automations.json.",
)
@click.pass_obj
def alerts(context: Context, notify: str | None, file: Path) -> None:
    """Install automations in Prefect that fire if a flow is overdue, or if the monitor does not run.

    A second call updates them. An automation that you paused stays paused, and without --notify one that exists keeps
    its actions.
    """
    connect(context.settings, console=True)
    from flows.alerts import install

    installed = install(context.settings, file, notify)
    for alert in installed:
        paused = "" if alert.enabled else "; it is paused in Prefect"
        say(f"{'installed' if alert.was_new else 'updated'} {alert.name!r}{paused}")
    if not all(alert.notifies for alert in installed):
        say(
            "no message is sent yet: make a notification block on Prefect's page, and run "
            "`streamgru alerts --notify TYPE/NAME`"
        )
