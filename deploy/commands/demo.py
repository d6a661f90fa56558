"""``streamgru demo``: the whole job on real sensor data."""

import os
import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploy.context import Context
from deploy.option_types import FiniteRange

if TYPE_CHECKING:
    from rich.console import Console

    from deploy.demo.job import DemoResult
    from pipeline.settings import Settings

PORT_VARIABLES = {
    "kafka_port": "STREAMGRU_STACK__KAFKA_PORT",
    "mlflow_port": "STREAMGRU_STACK__MLFLOW_PORT",
    "prefect_port": "STREAMGRU_STACK__PREFECT_PORT",
}
# Prefixes of the variables that name a user's servers, data and forecasters; the demo has its own.
FOREIGN_VARIABLES = (
    "STREAMGRU_KAFKA",
    "STREAMGRU_FORECASTER",
    "STREAMGRU_MLFLOW_TRACKING_URI",
    "STREAMGRU_PREFECT_API_URL",
    "STREAMGRU_HISTORY",
    "STREAMGRU_FEATURES",
    "STREAMGRU_TARGETS",
    "STREAMGRU_CADENCE_S",
    "STREAMGRU_GRACE_STEPS",
)


@click.command()
@click.option("--sensors", type=click.IntRange(min=1), metavar="N", help="Use only N of the 12 stations.")
@click.option("--history-days", type=click.IntRange(min=30), metavar="N", help="Train on N days; by default 3 years.")
@click.option("--live-days", type=click.IntRange(min=2), metavar="N", help="Send N days live; by default a year.")
@click.option(
    "--live-seconds",
    type=FiniteRange(min=1.0),
    metavar="S",
    help="Send the live days within S seconds, or as many more as a retraining takes; by default as fast as it allows.",
)
@click.option("--keep", is_flag=True, help="Leave Kafka, MLflow and Prefect up at the end, to look around.")
@click.pass_obj
def demo(
    context: Context,
    sensors: int | None,
    history_days: int | None,
    live_days: int | None,
    live_seconds: float | None,
    keep: bool,
) -> None:
    """Do the whole job on real sensor data, report, and stop everything again.

    Starts Kafka, MLflow and Prefect on this machine, publishes three years of hourly readings of Beijing's 12
    air-quality stations, ingests the older half, trains a model on it, starts two forecasters and sends the year that
    follows live. Meanwhile it ingests the rest and trains a second model, which replaces the first one if the gate
    finds it better. At the end it checks that every reading had exactly one forecast. Takes some 4 minutes on two
    cores. Its settings are deploy/beijing.toml; --settings and STREAMGRU_SETTINGS do not count. Its data lie in a
    folder `demo` under STREAMGRU_HOME, where it replaces an earlier demo's. The exit code is 1 where a forecast is
    missing, too many, or not the evaluator's.
    """
    from rich.console import Console

    from deploy.demo.data import Amounts
    from deploy.demo.job import DemoOptions, run_demo

    console = Console(highlight=False)
    settings = _demo_settings()
    options = DemoOptions(Amounts(sensors, history_days, live_days), live_seconds, keep)
    result = run_demo(settings, options, console)
    _print_result(result, console)
    if not (result.outcome.audit.exactly_once and result.outcome.agreement.holds):
        click.get_current_context().exit(1)


def _demo_settings() -> "Settings":
    """The example's settings, with a home of its own and ports that are free, for this process and its children."""
    from pipeline.settings import SETTINGS_FILE_VARIABLE, Settings, load_settings

    for variable in [name for name in os.environ if name.upper().startswith(FOREIGN_VARIABLES)]:
        del os.environ[variable]
    example = Path(__file__).resolve().parents[1] / "beijing.toml"
    named = os.environ.get(SETTINGS_FILE_VARIABLE)
    if named and Path(named).resolve() != example:
        click.echo(f"note: the demo has settings of its own, deploy/beijing.toml; {named} is not read", err=True)
    os.environ[SETTINGS_FILE_VARIABLE] = str(example)
    given = load_settings()
    os.environ["STREAMGRU_HOME"] = str((given.home / "demo").resolve())
    for name, variable in PORT_VARIABLES.items():
        port = getattr(given.stack, name)
        if not _is_free(port):
            os.environ[variable] = str(_free_port())
    settings: Settings = load_settings()
    return settings


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _print_result(result: "DemoResult", console: "Console") -> None:
    from rich.table import Table

    from deploy.demo.live import LONGEST_SILENCE_S
    from deploy.demo.report import coverage_by_target
    from deploy.demo.scores import FORECAST
    from deploy.live_forecasts import shown_steps

    outcome, counts = result.outcome, result.outcome.audit
    say = partial(console.print, soft_wrap=True)
    say(
        f"\n{counts.readings:,} readings, {counts.accepted:,} accepted ({counts.duplicates:,} duplicates, "
        f"{counts.late:,} late, {counts.rejected:,} malformed), {counts.forecasts:,} forecasts"
    )
    colour = "green" if counts.exactly_once else "red"
    say(
        f"[bold {colour}]lost {counts.lost:,}, twice {counts.twice:,}[/], out of order {counts.out_of_order:,}, "
        f"unexpected {counts.unexpected:,}"
    )
    for kind, positions in counts.examples.items():
        say(f"  {kind}: {', '.join(positions)} of the readings")
    errors = {name: found.by_horizon("mae") for name, found in outcome.scores.items()}
    steps = shown_steps(errors[FORECAST].shape[1])
    targets = outcome.scores[FORECAST].targets
    table = Table("mean absolute error", *errors)
    for row, target in enumerate(targets):
        for step in steps:
            table.add_row(f"{target} +{step}", *(f"{error[row, step - 1]:.3g}" for error in errors.values()))
    console.print(table)
    agreed = outcome.agreement
    colour = "green" if agreed.holds else "red"
    say(
        f"the evaluator on the same readings: [bold {colour}]{agreed.different:,} of {agreed.compared:,} forecasts "
        f"different[/] (largest difference {agreed.largest:.1g} standard deviations), mean absolute errors within "
        f"a part of {agreed.largest_mae:.1g}"
    )
    held = ", ".join(f"{target} {share:.1%}" for target, share in coverage_by_target(outcome.scores[FORECAST]).items())
    say(f"coverage of the {outcome.scores[FORECAST].nominal_coverage:.0%} interval: {held}")
    for swap in outcome.swaps:
        say(
            f"change from version {swap.version_before} to {swap.version_after}: longest pause {swap.pause_s:.2f} s "
            f"(99 % of pauses at other times are shorter than {swap.usual_pause_s:.2f} s)"
        )
    if outcome.silence is not None:
        colour = "green" if outcome.silence.is_short else "yellow"
        say(
            f"longest wait of a partition for a forecast while readings arrived: [bold {colour}]"
            f"{outcome.silence.seconds:.2f} s[/] (at most {LONGEST_SILENCE_S:g} s wanted)"
        )
    for version in outcome.versions:
        say(f"version {version.version}: {version.standing}", markup=False)
    say(f"report: {result.report}; picture: {result.picture}; {outcome.took_s:.0f} s in all")
