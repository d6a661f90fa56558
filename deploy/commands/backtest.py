"""``streamgru backtest``: scores a model on data of your own, and compares it with baselines."""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, Final

import click

from deploy.context import Context
from deploy.data_files import read_outlook_files, read_reading_files, say_notes
from deploy.loading import loading
from deploy.option_types import (
    POSITIVE,
    FiniteRange,
    issued_column_option,
    layout_options,
    training_options,
)
from deploy.terminal_text import say
from pipeline.best_effort import best_effort
from pipeline.errors import DataFileError, ModelUnusable, SettingsError

if TYPE_CHECKING:
    from model.backtest import Predictor
    from model.config import Level
    from model.forecaster import Forecaster
    from model.metrics import Metric
    from model.sequences import Sequences, Split
    from model.training import EpochReport
    from pipeline.evaluation.report import TrainedModel
    from pipeline.files.outlook_table import OutlookRecord
    from pipeline.files.reading_table import ReadingTable
    from pipeline.settings import Settings

log = logging.getLogger("streamgru.backtest")

# Metrics on demand; `coverage` and `sensors` also bring a table of their own.
ON_DEMAND: Final = ("mase", "crps", "coverage", "winkler", "width", "sensors")
WIDTH: Final = 120  # characters of an output that is not a terminal; enough for every table


@click.command()
@click.argument("data", nargs=-1, type=click.Path(path_type=Path), metavar="[DATA]...")
@layout_options
@click.option(
    "--outlooks",
    "outlook_files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A file of outlooks that came between the readings of DATA, in the order of `streamgru publish --outlooks`.",
)
@issued_column_option()
@click.option(
    "--cadence",
    "cadence_s",
    type=FiniteRange(min=1e-6),
    metavar="SECONDS",
    help="Time between two readings; by default from the settings, or if these do not set it, the usual time in DATA.",
)
@click.option(
    "--horizon",
    "horizon_steps",
    type=click.IntRange(min=1),
    metavar="STEPS",
    help="Steps to forecast; by default from the settings.",
)
@click.option(
    "--split",
    default="0.7,0.1,0.2",
    show_default=True,
    help="Training, validation and test part: fractions of the readings, or months of 30 days, such as 12/4/4.",
)
@click.option("--version", type=click.IntRange(min=1), help="Score this registered version instead of training.")
@click.option(
    "--model",
    "report",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="FOLDER",
    help="Score the model of an earlier back-test, from the folder of its results, instead of training.",
)
@click.option(
    "--preset",
    type=click.Choice(["stateful", "plain"]),
    help="Recipe of the training; by default from the settings.",
)
@training_options
@click.option(
    "--adaptation",
    "levels",
    multiple=True,
    type=click.Choice(["off", "light", "full"]),
    help="How much forecasts adapt from reading to reading; by default from the settings. Repeat the option to "
    "score several levels.",
)
@click.option(
    "--calibration/--no-calibration", default=None, help="Calibrate the intervals; by default from the settings."
)
@click.option(
    "--baseline",
    type=click.Choice(["plain"]),
    help="Also train the plain preset, for the same time, and compare it with the model.",
)
@click.option(
    "--retrain-every",
    type=POSITIVE,
    metavar="DAYS",
    help="Also score the model retrained every DAYS of the test part, from its weights, on all earlier readings.",
)
@click.option(
    "--standardise",
    is_flag=True,
    help="Divide errors by each sensor's standard deviation on the training part, as the literature does.",
)
@click.option(
    "--metrics",
    default="",
    metavar="LIST",
    help=f"Metrics to show as well, separated by commas: {', '.join(ON_DEMAND)}, or all. scores.json has them all.",
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for scores.json and plots.")
@click.pass_obj
def backtest(
    context: Context,
    /,
    data: tuple[Path, ...],
    outlook_files: tuple[Path, ...],
    issued_column: str | None,
    cadence_s: float | None,
    horizon_steps: int | None,
    split: str,
    version: int | None,
    report: Path | None,
    standardise: bool,
    metrics: str,
    levels: tuple["Level", ...],
    calibration: bool | None,
    baseline: str | None,
    retrain_every: float | None,
    out: Path | None,
    **others: Any,
) -> None:
    """Score a model on the newest part of DATA, CSV or Parquet files, or of the history table.

    The model is trained on the oldest part, and its best epoch is chosen on the middle part. Or it is a registered
    VERSION or the MODEL of an earlier back-test; the newest part then begins after the readings that it was trained and
    chosen on.

    Every reading of the newest part gets a forecast, with the state carried and the forecasts adapted as in the stream.
    Baselines are scored on the same values: persistence, the seasonal-naive forecast, and an autoregression over 24
    steps that recursive least squares update with every reading. Features, targets and season come from the settings.
    """
    with loading():
        from deploy.literal_console import make_console
        from deploy.score_tables import interval_table, score_table, sensor_table
        from model.metrics import METRICS
        from pipeline.evaluation.evaluate import (
            MODEL,
            evaluate,
            plain_predictor,
            retrained_predictor,
            split_by,
            train_on,
        )
        from pipeline.evaluation.report import TrainedModel, read_trained_model, write_report
        from pipeline.history.table import History
        from pipeline.messages import iso_timestamp
        from pipeline.registry.versions import VALIDATE_UNTIL, Registry
        from pipeline.remarks.bounds import bounds_findings
        from pipeline.remarks.data import data_remarks
        from pipeline.windows import cadence_warning, load_sequences, sequences_from_table

    console = make_console(width=None if sys.stdout.isatty() else WIDTH)
    wanted = _on_demand(metrics)
    if version is not None and report is not None:
        raise click.UsageError("--version and --model each name the model to score: give one of them")
    if issued_column is not None and not outlook_files:
        raise click.UsageError("--issued-column is a column of the files of --outlooks: give these too")
    if outlook_files and not data:
        raise click.UsageError("--outlooks needs DATA: the history has outlooks of its own")
    training = {key: others.pop(key) for key in ("preset", "budget_s", "epochs", "seed")}
    steps = {"cadence_s": cadence_s, "horizon_steps": horizon_steps}
    adapting = {"adaptation": levels[0] if levels else None, "calibration": calibration}
    settings = context.settings.model_copy(
        update={
            "training": context.settings.training.model_copy(update=_given(training)),
            "forecaster": context.settings.forecaster.model_copy(update=_given(adapting)),
            **_given(steps),
        }
    )
    source = ", ".join(str(path) for path in data) or str(settings.history_path)
    name = _name_of(data[0]) if data else "history"
    trained = None
    if report is not None:
        trained = read_trained_model(report)
        settings = _with_steps_of(trained.forecaster, settings, steps, report)
    folder = out or settings.home / "backtests" / f"{name}-{settings.horizon_steps}"
    if report is not None and folder.exists() and folder.samefile(report):
        raise click.UsageError(f"the model's own results are in {folder}; give another folder with --out")
    checkpoint = folder / "training.pt"
    if data:
        settings, table = _from_files(settings, data, others, keeps_cadence=version is not None)
        sequences = sequences_from_table(table, settings, _outlooks(settings, outlook_files, issued_column, others))
    else:
        sequences = load_sequences(History(settings.history_path, settings.features), settings)
    if warning := cadence_warning(sequences):
        say(f"warning: {warning}", err=True)
    say_notes(data_remarks(sequences, settings, bounds_findings(sequences, settings)))

    def told(epoch: "EpochReport", of: str = "") -> None:
        with best_effort("the progress of the training", log):  # such as a closed pipe
            say(
                f"{of}epoch {epoch.epoch}: training loss {epoch.train_loss:.4f}, validation loss "
                f"{epoch.validation_loss:.4f} after {epoch.seconds:.0f} s"
            )

    with _naming_source(source):
        sequences, bounds = split_by(split, sequences)
        _create_folder(folder)  # fail before the training if its result cannot be written
        if version is not None:
            registry = Registry(settings)
            forecaster = registry.load(version, settings.home / "models")
            trained = TrainedModel(forecaster, selected_until=registry.version(version).tags.get(VALIDATE_UNTIL))
        if trained is None:
            trained = TrainedModel.of(train_on(settings, sequences, bounds, told, checkpoint), bounds)
        else:
            made_by = f"version {version}" if report is None else f"the model in {report}"
            bounds = _unseen(trained, made_by, sequences, bounds)
        also = [replace(settings.adaptation, level=level) for level in dict.fromkeys(levels[1:]) if level != levels[0]]
        beside: list[Predictor] = []
        if retrain_every is not None:

            def told_at(moment_us: int, epoch: "EpochReport") -> None:
                told(epoch, f"retrained at {iso_timestamp(moment_us)}, ")

            beside.append(retrained_predictor(settings, trained.forecaster, sequences, bounds, retrain_every, told_at))
        if baseline is not None:
            beside.append(plain_predictor(settings, sequences, bounds, lambda epoch: told(epoch, "plain, ")))
        done = evaluate(
            trained.forecaster,
            sequences,
            bounds,
            settings.adaptation,
            also=also,
            beside=beside,
            standardise=standardise,
        )
    unit = "standard deviation" if standardise else "mean seasonal difference"
    more: list[Metric] = [name for name in METRICS if name in wanted]
    made_with = {
        "data": source,
        "outlooks": [str(path) for path in outlook_files],
        "split": split,
        "version": version,
        **training,
        "retrain_every": retrain_every,
    }
    # The files come before the tables, so that a failure to print loses no result.
    write_report(done, trained, folder, made_with | {"standardise": standardise})
    checkpoint.unlink(missing_ok=True)  # the report holds the result
    with best_effort("the table of scores", log):
        console.print(score_table(done, name, unit, more))
        if "coverage" in wanted:
            console.print(interval_table(done.scores))
        if "sensors" in wanted:
            console.print(sensor_table(done.scores[MODEL]))
    say(f"scores and plots are in {folder}")


def _name_of(path: Path) -> str:
    """The name of the data in the folder of results; of a pattern such as ``data/*.csv``, its folder's name."""
    fixed = path if not set(path.name) & set("*?[") else path.parent
    return re.sub(r"[*?\[\]]+", "", fixed.resolve().name.split(".")[0]) or "files"


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that the command line names."""
    return {name: value for name, value in options.items() if value is not None}


def _on_demand(metrics: str) -> set[str]:
    """The names in a list separated by commas; all of them for ``all``."""
    names = {name.strip() for name in metrics.split(",")} - {""}
    unknown = sorted(names - {*ON_DEMAND, "all"})
    if unknown:
        raise click.BadParameter(
            f"unknown metrics: {', '.join(unknown)}; choose from {', '.join(ON_DEMAND)}, all", param_hint="--metrics"
        )
    return set(ON_DEMAND) if "all" in names else names


def _from_files(
    settings: "Settings", files: tuple[Path, ...], layout: dict[str, Any], *, keeps_cadence: bool
) -> tuple["Settings", "ReadingTable"]:
    """The settings, with the files' cadence if it was not set, and the readings in the files."""
    from pipeline.files.file_layout import FileLayout
    from pipeline.windows import usual_interval_us

    table = read_reading_files(files, FileLayout.of(settings.files, **layout), settings)
    if not len(table):
        raise DataFileError(
            f"{', '.join(map(str, files))}: no row has a value of {', '.join(settings.features)}; set features (and "
            "targets) to columns of numbers"
        )
    usual_us = usual_interval_us(table)
    # From a minute on, round to a second: clocks jitter.
    cadence_s = None if usual_us is None else usual_us / 1e6 if usual_us < 60_000_000 else float(round(usual_us / 1e6))
    is_set = keeps_cadence or "cadence_s" in settings.model_fields_set
    if not is_set and cadence_s not in (None, settings.cadence_s):
        settings = settings.model_copy(update={"cadence_s": cadence_s})
        say(
            f"note: the cadence is {cadence_s:g} s, the usual time between two readings here, with a season of "
            f"{settings.season} steps; set it with --cadence, or cadence_s in the settings",
            err=True,
        )
    return settings, table


def _outlooks(
    settings: "Settings", files: tuple[Path, ...], issued_column: str | None, layout: dict[str, Any]
) -> tuple["OutlookRecord", ...]:
    """The outlooks in the files, with a note if the settings name outlooks and there are no files."""
    if not files:
        if settings.outlooks.are_on:
            say("note: without --outlooks the model is scored as if no outlook had come", err=True)
        return ()
    return read_outlook_files(files, issued_column, layout, settings).records


def _with_steps_of(forecaster: "Forecaster", settings: "Settings", asked: dict[str, Any], folder: Path) -> "Settings":
    """The settings with the model's cadence and horizon.

    Raises:
        UsageError: the options ``asked`` name another cadence or horizon.
        ModelUnusable: the model was made for other settings, such as other features.
    """
    from pipeline.registry.versions import settings_differences

    cadence_s, horizon_steps = forecaster.config.cadence_us / 1e6, forecaster.config.horizon_steps
    if asked["cadence_s"] not in (None, cadence_s):
        raise click.UsageError(
            f"the model was trained at a cadence of {cadence_s:g} s, which --cadence {asked['cadence_s']:g} "
            "contradicts; leave it out"
        )
    if asked["horizon_steps"] not in (None, horizon_steps):
        raise click.UsageError(
            f"the model forecasts {horizon_steps} steps, which --horizon {asked['horizon_steps']} contradicts; leave "
            "it out"
        )
    settings = settings.model_copy(update={"cadence_s": cadence_s, "horizon_steps": horizon_steps})
    if differences := settings_differences(forecaster.config, settings):
        raise ModelUnusable(
            f"the model in {folder} does not fit the settings: {'; '.join(differences)}. Give the settings that it was "
            "made with, or leave out --model to train one with these"
        )
    return settings


def _unseen(trained: "TrainedModel", name: str, sequences: "Sequences", bounds: "Split") -> "Split":
    """The split with a test part after the readings that the model was trained or chosen on, as far as known."""
    from pipeline.evaluation.evaluate import Selection, unseen_part

    made = Selection(name, trained.forecaster.config, trained.selected_until)
    moved, remark = unseen_part(bounds, sequences, made)
    if remark:
        say(f"{'warning' if moved == bounds else 'note'}: {remark}", err=True)
    return moved


def _create_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()  # fails if the folder cannot be written to
    except OSError as error:
        raise DataFileError(
            f"scores and plots cannot be written to {folder}: {error.strerror}; name another folder with --out"
        ) from error


@contextmanager
def _naming_source(source: str) -> Iterator[None]:
    """Name the data in the message of a ValueError, or the setting if the training's device cannot be used."""
    from model.training import DeviceError

    try:
        yield
    except DeviceError as error:
        raise SettingsError(f"training.device: {error}") from error
    except ValueError as error:
        raise DataFileError(f"{source} cannot be back-tested on: {error}") from error
