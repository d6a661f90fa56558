"""``streamgru demo``: the whole job on real sensor data."""

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploy.context import Context
from deploy.loading import loading
from deploy.option_types import FiniteRange
from deploy.terminal_text import say
from pipeline.text.plural import counted

if TYPE_CHECKING:
    from rich.console import Console

    from deploy.demo.report import Outcome
    from pipeline.settings import Settings

PORT_VARIABLES = {f"{name}_port": f"STREAMGRU_STACK__{name.upper()}_PORT" for name in ("kafka", "mlflow", "prefect")}
PAGE_PORT_VARIABLE = "STREAMGRU_SERVE__PORT"
# Prefixes of variables for a user's own servers, data and forecasters, after STREAMGRU_: the demo does not use these.
SERVERS = ("KAFKA", "FORECASTER", "MLFLOW_TRACKING_URI", "PREFECT_API_URL", "HISTORY")
FOREIGN = (*SERVERS, "FEATURES", "TARGETS", "CADENCE_S", "GRACE_STEPS")


@click.command()
@click.option("--sensors", type=click.IntRange(min=1), metavar="N", help="Use only N of the 12 stations.")
@click.option("--history-days", type=click.IntRange(min=30), metavar="N", help="Train on N days; by default 3 years.")
@click.option("--live-days", type=click.IntRange(min=2), metavar="N", help="Send N days live; by default a year.")
@click.option(
    "--live-seconds",
    type=FiniteRange(min=1.0),
    metavar="S",
    help="Send the live days within S seconds, or longer if the second training takes longer; by default as fast as "
    "the second training allows.",
)
@click.option("--keep", is_flag=True, help="Leave Kafka, MLflow and Prefect running at the end.")
@click.pass_obj
def demo(
    context: Context,
    sensors: int | None,
    history_days: int | None,
    live_days: int | None,
    live_seconds: float | None,
    keep: bool,
) -> None:
    """Do the whole job on real sensor data, write a report, and stop everything again.

    The demo starts Kafka, MLflow and Prefect on this machine. It publishes three years of hourly readings of Beijing's
    12 air-quality stations, ingests the older half, trains a model on it and starts two forecasters. Then it sends the
    readings of the next year live. Meanwhile it ingests the rest and trains a second model, which replaces the first
    one if the gate finds it better. At the end it checks that every accepted reading has exactly one forecast. All of
    this takes about 4 minutes on two cores.

    The demo reads its settings from deploy/beijing.toml and ignores --settings and STREAMGRU_SETTINGS. Its data are in
    the folder `demo` under STREAMGRU_HOME; the next demo deletes them. The exit code is 1 if a forecast is missing,
    appears twice, or differs from the evaluator's.
    """
    with loading():
        from deploy.demo.data import Amounts
        from deploy.demo.job import DemoOptions, run_demo
        from deploy.literal_console import make_console

    console = make_console()
    settings = _demo_settings()
    options = DemoOptions(Amounts(sensors, history_days, live_days), live_seconds, keep)
    outcome = run_demo(settings, options, console)
    _print_outcome(outcome, settings.home, console)
    if not (outcome.audit.exactly_once and outcome.agreement.holds):
        click.get_current_context().exit(1)


def _demo_settings() -> "Settings":
    """The example's settings, with the demo's home and with free ports, for this process and its children."""
    from deploy.service import bind
    from pipeline.settings import SETTINGS_FILE_VARIABLE, load_settings

    for variable in list(os.environ):
        if variable.upper().startswith(tuple(f"STREAMGRU_{name}" for name in FOREIGN)):
            del os.environ[variable]
    example = Path(__file__).resolve().parents[1] / "beijing.toml"
    named = os.environ.get(SETTINGS_FILE_VARIABLE)
    if named and Path(named).resolve() != example:
        say(f"note: the demo uses its own settings, deploy/beijing.toml, and does not read {named}", err=True)
    os.environ[SETTINGS_FILE_VARIABLE] = str(example)
    given = load_settings()
    os.environ["STREAMGRU_HOME"] = str((given.home / "demo").resolve())
    ports = {variable: getattr(given.stack, name) for name, variable in PORT_VARIABLES.items()}
    for variable, port in (ports | {PAGE_PORT_VARIABLE: given.serve.port}).items():
        try:
            bind(port)
        except OSError:
            os.environ[variable] = str(bind(0))
    # Each question to MLflow and the history starts a process that would take a core from the trainings for seconds.
    os.environ["STREAMGRU_SERVE__REFRESH_S"] = "0"
    return load_settings()


def _print_outcome(outcome: "Outcome", home: Path, console: "Console") -> None:
    from rich.table import Table

    from deploy.demo.job import PICTURE, REPORT
    from deploy.demo.report import coverage_note, mae_table
    from deploy.demo.scores import FORECAST
    from deploy.literal_console import styled

    counts, ours = outcome.audit, outcome.scores[FORECAST]
    show = partial(console.print, soft_wrap=True)
    show(
        f"\n{counts.readings:,} readings, {counts.accepted:,} accepted ({counted(counts.duplicates, 'duplicate')}, "
        f"{counts.late:,} late, {counts.rejected:,} malformed), {counts.forecasts:,} forecasts"
    )
    show(
        styled(f"lost {counts.lost:,}, twice {counts.twice:,}", _bold(counts.exactly_once)),
        f", out of order {counts.out_of_order:,}, unexpected {counts.unexpected:,}",
        sep="",
    )
    for kind, positions in counts.examples.items():
        show(f"  {kind}: {', '.join(positions)} of the readings")
    targets, rows = mae_table(outcome.scores)
    table = Table("mean absolute error", *(name for name, *_ in rows))
    for target, *errors in zip(targets, *(errors for _, *errors in rows), strict=True):
        table.add_row(target, *errors)
    console.print(table)
    show(styled(outcome.agreement, _bold(outcome.agreement.holds)))
    show(f"coverage of the {ours.nominal_coverage:.0%} interval: {coverage_note(ours)}")
    for swap in outcome.swaps:
        show(str(swap))
    if outcome.silence is not None:
        show(styled(outcome.silence, _bold(outcome.silence.is_short, "yellow")))
    for version in outcome.versions:
        show(f"version {version.version}: {version.standing}")
    show(f"report: {home / REPORT}; picture: {home / PICTURE}; {outcome.took_s:.0f} s in all")


def _bold(is_well: bool, otherwise: str = "red") -> str:
    """The style of a finding."""
    return f"bold {'green' if is_well else otherwise}"
