"""The ``streamgru`` command: the table of commands, their common options, and errors as messages."""

import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from deploy.context import Context
from deploy.renamed import RenamingGroup
from deploy.terminal_text import replace_unencodable, say, show_usage_error
from pipeline.errors import StreamgruError
from pipeline.observability.log_format import formatter, is_json, use_format, write_final_line
from pipeline.text.visible_text import visible

if TYPE_CHECKING:
    from pipeline.settings import Settings

INTERRUPTED = 130  # exit code that shells use for Ctrl-C


@dataclass(frozen=True)
class LazyCommand:
    """Module and name of a command, and its line in ``streamgru --help``, which imports no commands."""

    module: str
    attribute: str
    help: str


# In the order in which a newcomer meets them.
COMMANDS = {
    "demo": LazyCommand("deploy.commands.demo", "demo", "Do the whole job on real sensor data, with a report."),
    "up": LazyCommand("deploy.commands.stack", "up", "Start the local stack: Kafka, MLflow, Prefect."),
    "status": LazyCommand("deploy.commands.stack", "status", "Show the local stack and its addresses."),
    "down": LazyCommand("deploy.commands.stack", "down", "Stop the local stack; its data stays."),
    "topics": LazyCommand("deploy.commands.topics", "topics", "Create the Kafka topics, or show them."),
    "schema": LazyCommand("deploy.commands.topics", "schema", "Print the JSON Schema of messages, or AsyncAPI."),
    "publish": LazyCommand("deploy.commands.publish", "publish", "Publish a CSV or Parquet file as readings."),
    "ingest": LazyCommand("deploy.commands.flows", "ingest", "Append new readings to the history table, once."),
    "retrain": LazyCommand("deploy.commands.flows", "retrain", "Train a challenger and let the gate decide, once."),
    "schedule": LazyCommand("deploy.commands.flows", "schedule", "Serve ingest and retrain on their schedules."),
    "alerts": LazyCommand("deploy.commands.alerts", "alerts", "Install alerts for overdue flows in Prefect."),
    "models": LazyCommand("deploy.commands.models", "models", "List model versions, aliases and scores."),
    "promote": LazyCommand("deploy.commands.models", "promote", "Make a model version the champion."),
    "backtest": LazyCommand("deploy.commands.backtest", "backtest", "Score a model on files or on the history."),
    "forecast": LazyCommand("deploy.commands.forecast", "forecast", "Run a forecaster on the stream of readings."),
    "watch": LazyCommand("deploy.commands.watch", "watch", "Show live forecasts next to their readings."),
    "serve": LazyCommand("deploy.commands.serve", "serve", "Serve a live page and an API about the stream."),
    "export": LazyCommand("deploy.commands.export", "export_command", "Export forecasts and readings to tables."),
    "verify": LazyCommand("deploy.commands.verify", "verify", "Check every forecast and state against the readings."),
    "explain": LazyCommand("deploy.commands.verify", "explain", "Show the reading, model and state behind a forecast."),
    "dlq": LazyCommand("deploy.commands.dlq", "dlq", "List, show and republish dead letters."),
}
# old name -> present name; "replay" now means only the rebuilding of states from readings
RENAMED = {"replay": "publish"}


TRAINING_COMMANDS = ("retrain", "backtest")  # the commands that `torchrun` may start


class LazyGroup(RenamingGroup):
    """A group that imports the module of a command when the command runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands, in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now; None for an unknown name."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command: click.Command = getattr(importlib.import_module(entry.module), entry.attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


@click.group(cls=LazyGroup, renamed=RENAMED, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="streamgru", message="%(prog)s %(version)s")
@click.option(
    "--settings",
    "settings_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="TOML file with the settings; by default the file in the variable STREAMGRU_SETTINGS.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log more to stderr.")
@click.option("--ends-with-parent", is_flag=True, hidden=True, help="Stop when standard input is closed.")
@click.pass_context
def streamgru(ctx: click.Context, settings_file: Path | None, verbose: bool, ends_with_parent: bool) -> None:
    """Forecast live sensor readings with a GRU that keeps each sensor's hidden state from message to message.

    `streamgru COMMAND --help` shows the arguments and options of a command.
    """
    from pipeline.settings import SETTINGS_FILE_VARIABLE

    set_up_logging(verbose)
    if "TORCHELASTIC_RUN_ID" in os.environ and ctx.invoked_subcommand not in TRAINING_COMMANDS:
        raise click.UsageError(
            f"torchrun spreads the training of `streamgru {'` and `streamgru '.join(TRAINING_COMMANDS)}`; "
            f"run `streamgru {ctx.invoked_subcommand}` without it"
        )
    if os.getpid() == 1:
        # Without a handler, process 1 of a container ignores SIGTERM. Some commands replace this handler.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if ends_with_parent:
        end_with_parent()
    if settings_file is not None:
        # The processes that a command starts, such as flow runs, read the same file.
        os.environ[SETTINGS_FILE_VARIABLE] = str(settings_file.resolve())
    ctx.obj = Context(_load_settings, verbose)


def _load_settings() -> "Settings":
    """The settings, after a warning on stderr for each variable that names none; once, because ``Context`` keeps them.

    An unknown variable is not an error: earlier versions ignored it, and other programs may use the same prefix.
    """
    from pipeline.settings import load_settings, unknown_variables

    unknown = unknown_variables()
    try:
        settings = load_settings()
        use_format(settings.logging.format)
    finally:
        for sentence in unknown:
            if is_json():
                logging.getLogger("streamgru.cli").warning("%s", sentence)
            else:
                say(f"warning: {sentence}", err=True)
    return settings


def set_up_logging(verbose: bool) -> None:
    """Log to stderr: this project from INFO on (verbose: DEBUG), libraries from WARNING on (verbose: INFO)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter("text"))  # until the settings are read
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("streamgru").setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line per request to Prefect would bury the rest
    if not verbose:
        # While a broker is unreachable the client logs every attempt; the user gets our own message about it.
        logging.getLogger("kafka").setLevel(logging.CRITICAL)


def end_with_parent() -> None:
    """Send this process SIGTERM when its standard input ends.

    Standard input is a pipe to which the parent never writes. The system closes it when the parent dies, even by
    SIGKILL, which leaves the parent no time to stop its children.
    """

    def watch() -> None:
        while os.read(0, 1_024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _follow() -> None:
    """If ``torchrun`` started this process to take part in another one's training, do only that, and exit."""
    from model.distributed import follows

    if follows():
        from model.training import follow

        follow()
        sys.exit(0)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 for success, 1 for an error, 2 for wrong usage or settings, 130 for Ctrl-C."""
    replace_unencodable()
    under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    if under_torchrun:
        _follow()
    try:
        outcome = streamgru.main(arguments, prog_name="streamgru", standalone_mode=False)
    except click.ClickException as error:
        show_usage_error(error)
        sys.exit(error.exit_code)
    except StreamgruError as error:
        write_final_line(str(error), "streamgru.cli")
        sys.exit(error.exit_code)
    except OSError as error:
        # For example a full disk, if no code below has turned this error into one of ours with a better message.
        logging.getLogger("streamgru.cli").debug("the error in full", exc_info=error)
        where = f"{error.filename}: " if error.filename is not None else ""
        write_final_line(visible(f"{where}{error.strerror or error}"), "streamgru.cli")
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    if under_torchrun:
        from model.distributed import dismiss

        dismiss()
    # After ctx.exit(code), `main` returns the code.
    sys.exit(outcome if isinstance(outcome, int) else 0)


if __name__ == "__main__":
    main()
