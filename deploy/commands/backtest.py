"""``streamgru backtest``: how good a model is on data of your own, beside baselines."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, Final

import click

from deploy.context import Context
from deploy.option_types import SEED, FiniteRange
from pipeline.errors import DataFileError, ModelUnusable

if TYPE_CHECKING:
    from rich.console import Console

    from model.backtest import Predictor
    from model.config import Level
    from model.forecaster import Forecaster
    from model.metrics import Metric
    from model.sequences import Sequences, Split
    from model.training import EpochReport
    from pipeline.evaluation.report import TrainedModel
    from pipeline.settings import Settings

# Metrics on demand; `coverage` and `sensors` also bring a table of their own.
ON_DEMAND: Final = ("mase", "crps", "coverage", "winkler", "width", "sensors")
# Wide enough for every table where the output is no terminal.
WIDTH: Final = 120


@click.command()
@click.argument("data", nargs=-1, type=click.Path(path_type=Path), metavar="[DATA]...")
@click.option("--time-column", metavar="NAME", help="Column with the time; by default the one that can only be it.")
@click.option("--timezone", metavar="ZONE", help="Zone of times that name none, for example Asia/Shanghai.")
@click.option("--sensor-column", metavar="NAME", help="Column with the sensor ids; by default each file is one sensor.")
@click.option("--columns-as-sensors", is_flag=True, help="Take each column of a wide table as a sensor of its own.")
@click.option(
    "--cadence",
    "cadence_s",
    type=FiniteRange(min=1e-6),
    metavar="SECONDS",
    help="By default as in the settings; where these do not set it, the usual time between two readings in DATA.",
)
@click.option("--horizon", type=click.IntRange(min=1), metavar="STEPS", help="By default as in the settings.")
@click.option(
    "--split",
    default="0.7,0.1,0.2",
    show_default=True,
    help="Training, validation and test: fractions of the readings, or months of 30 days as 12/4/4.",
)
@click.option("--version", type=click.IntRange(min=1), help="Score this registered version instead of training.")
@click.option(
    "--model",
    "report",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="FOLDER",
    help="Score the model in this folder of an earlier back-test's results instead of training.",
)
@click.option("--preset", type=click.Choice(["stateful", "plain"]), help="How to train; by default as in the settings.")
@click.option("--budget", "budget_s", type=FiniteRange(min=0, min_open=True), help="Seconds to train for at most.")
@click.option("--epochs", type=click.IntRange(min=1), help="Epochs at most; by default as in the settings.")
@click.option(
    "--adaptation",
    "levels",
    multiple=True,
    type=click.Choice(["off", "light", "full"]),
    help="How forecasts adapt from reading to reading; by default as in the settings. More than one: scored beside it.",
)
@click.option(
    "--calibration/--no-calibration", default=None, help="Whether intervals do; by default as in the settings."
)
@click.option(
    "--baseline",
    type=click.Choice(["plain"]),
    help="Train the plain preset too, in as much time again, and score it beside.",
)
@click.option(
    "--retrain-every",
    type=FiniteRange(min=0, min_open=True),
    metavar="DAYS",
    help="Also score the model retrained so often in the test part, from its weights, on what was read by then.",
)
@click.option("--seed", type=SEED, help="Seed of everything random; by default as in the settings.")
@click.option(
    "--standardise",
    is_flag=True,
    help="Divide errors by each sensor's standard deviation on the training part, as the literature does.",
)
@click.option(
    "--metrics",
    default="",
    metavar="LIST",
    help=f"Show these too, divided by commas: {', '.join(ON_DEMAND)}; or all. scores.json always holds them.",
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for scores.json and plots.")
@click.pass_obj
def backtest(
    context: Context,
    /,
    data: tuple[Path, ...],
    cadence_s: float | None,
    horizon: int | None,
    split: str,
    version: int | None,
    report: Path | None,
    standardise: bool,
    metrics: str,
    levels: tuple["Level", ...],
    baseline: str | None,
    retrain_every: float | None,
    out: Path | None,
    **others: Any,
) -> None:
    """Score a model on the newest part of DATA, CSV or Parquet files, or of the history table.

    It is trained on the oldest part, its best epoch chosen on the middle one; or it is a registered VERSION, or the
    MODEL of an earlier back-test, and the newest part begins no earlier than the readings end that it was chosen on.
    Every reading of the newest part is then forecast from in turn, with the state carried and the forecasts adapted as
    in the stream, and scored on the same values as baselines: persistence, the seasonal-naive forecast, and an
    autoregression over 24 steps that recursive least squares fit anew with every reading. Features, targets and season
    are those of the settings.
    """
    from rich.console import Console

    from deploy.score_tables import interval_table, score_table, sensor_table
    from model.metrics import METRICS
    from pipeline.evaluation.evaluate import MODEL, evaluate, plain_predictor, retrained_predictor, split_by, train_on
    from pipeline.evaluation.report import TrainedModel, read_trained_model, write_report
    from pipeline.history.table import History
    from pipeline.windows import cadence_warning, load_sequences

    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=WIDTH)
    wanted = _on_demand(metrics)
    if version is not None and report is not None:
        raise click.UsageError("--version and --model each name the model to score: give one of them")
    layout = {key: others[key] for key in ("time_column", "timezone", "sensor_column", "columns_as_sensors")}
    training = {key: others[key] for key in ("preset", "budget_s", "epochs", "seed")}
    adapting = {"adaptation": levels[0] if levels else None, "calibration": others["calibration"]}
    settings = _settings(context.settings, cadence_s, horizon, training, adapting)
    source = ", ".join(str(path) for path in data) or str(settings.history_path)
    name = data[0].name.split(".")[0] if data else "history"
    trained = read_trained_model(report) if report is not None else None
    if report is not None and trained is not None:
        settings = _with_model_cadence(trained.forecaster, settings, cadence_s, horizon)
        _require_compatible(trained.forecaster, settings, report)
    folder = out or settings.home / "backtests" / f"{name}-{settings.horizon_steps}"
    if report is not None and folder.exists() and folder.samefile(report):
        raise click.UsageError(f"the model's own results are in {folder}; give another folder with --out")
    checkpoint = folder / "training.pt"
    if data:
        settings, sequences = _from_files(settings, data, layout, keeps_cadence=version is not None)
    else:
        sequences = load_sequences(History(settings.history_path, settings.features), settings)
    if warning := cadence_warning(sequences):
        click.echo(f"warning: {warning}", err=True)
    with _naming_source(source):
        sequences, bounds = split_by(split, sequences)
        _create_folder(folder)  # before the training, whose result would have nowhere to go
        if version is not None:
            trained = _registered(settings, version)
        if trained is None:
            result = train_on(settings, sequences, bounds, lambda epoch: console.print(_line(epoch)), checkpoint)
            trained = TrainedModel.of(result, bounds)
        else:
            made_by = f"version {version}" if report is None else f"the model in {report}"
            bounds = _unseen(trained, made_by, sequences, bounds)
        also = [replace(settings.adaptation, level=level) for level in dict.fromkeys(levels[1:]) if level != levels[0]]
        beside: list[Predictor] = []
        if retrain_every is not None:
            told = partial(_print_retraining, console)
            beside.append(retrained_predictor(settings, trained.forecaster, sequences, bounds, retrain_every, told))
        if baseline is not None:
            beside.append(
                plain_predictor(settings, sequences, bounds, lambda epoch: console.print(f"plain, {_line(epoch)}"))
            )
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
    console.print(score_table(done, name, unit, more))
    if "coverage" in wanted:
        console.print(interval_table(done.scores))
    if "sensors" in wanted:
        console.print(sensor_table(done.scores[MODEL]))
    made_with = {"data": source, "split": split, "version": version, **training, "retrain_every": retrain_every}
    write_report(done, trained, folder, made_with | {"standardise": standardise})
    checkpoint.unlink(missing_ok=True)  # the result is safe
    console.print(f"scores and plots are in {folder}", soft_wrap=True)


def _on_demand(metrics: str) -> set[str]:
    """The names in a list, all of them for ``all``."""
    names = {name.strip() for name in metrics.split(",")} - {""}
    unknown = sorted(names - {*ON_DEMAND, "all"})
    if unknown:
        raise click.BadParameter(
            f"there is no {', '.join(unknown)}; there are {', '.join(ON_DEMAND)}, and all", param_hint="--metrics"
        )
    return set(ON_DEMAND) if "all" in names else names


def _settings(
    settings: "Settings",
    cadence_s: float | None,
    horizon: int | None,
    training: dict[str, Any],
    adapting: dict[str, Any],
) -> "Settings":
    """The settings with what was given on the command line in their place."""

    def given(options: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in options.items() if value is not None}

    changes: dict[str, Any] = {
        "training": settings.training.model_copy(update=given(training)),
        "forecaster": settings.forecaster.model_copy(update=given(adapting)),
    }
    changes |= given({"cadence_s": cadence_s, "horizon_steps": horizon})
    return settings.model_copy(update=changes)


def _from_files(
    settings: "Settings", files: tuple[Path, ...], layout: dict[str, Any], *, keeps_cadence: bool
) -> tuple["Settings", "Sequences"]:
    """The steps in the files, and the settings, whose cadence is that of the files unless it was set."""
    from pipeline.files.reading_table import FileLayout, read_readings
    from pipeline.windows import sequences_from_table, usual_interval_us

    table = read_readings(files, FileLayout(**layout), settings.features)
    for note in table.notes:
        click.echo(f"note: {note}", err=True)
    if not len(table):
        raise DataFileError(
            f"{', '.join(map(str, files))}: no row has a value of {', '.join(settings.features)}; set features (and "
            "targets) to columns that hold numbers"
        )
    usual_us = usual_interval_us(table)
    # To the second where that is within the jitter of clocks.
    cadence_s = None if usual_us is None else usual_us / 1e6 if usual_us < 60_000_000 else float(round(usual_us / 1e6))
    is_set = keeps_cadence or "cadence_s" in settings.model_fields_set
    if not is_set and cadence_s not in (None, settings.cadence_s):
        settings = settings.model_copy(update={"cadence_s": cadence_s})
        click.echo(
            f"note: the cadence is {cadence_s:g} s, the usual time between two readings here, with a season of "
            f"{settings.season} steps; set it with --cadence, or cadence_s in the settings",
            err=True,
        )
    return settings, sequences_from_table(table, settings)


def _with_model_cadence(
    forecaster: "Forecaster", settings: "Settings", asked_s: float | None, asked_steps: int | None
) -> "Settings":
    """The settings with the model's cadence and horizon in their place, which options must not contradict."""
    cadence_s, horizon = forecaster.config.cadence_us / 1e6, forecaster.config.horizon_steps
    if asked_s not in (None, cadence_s):
        raise click.UsageError(
            f"the model was trained at a cadence of {cadence_s:g} s, which --cadence {asked_s:g} contradicts; leave it "
            "out"
        )
    if asked_steps not in (None, horizon):
        raise click.UsageError(
            f"the model forecasts {horizon} steps, which --horizon {asked_steps} contradicts; leave it out"
        )
    return settings.model_copy(update={"cadence_s": cadence_s, "horizon_steps": horizon})


def _require_compatible(forecaster: "Forecaster", settings: "Settings", folder: Path) -> None:
    """Refuse a model of other features, say, whose values it would take one for the other."""
    from pipeline.registry.versions import settings_differences

    differences = settings_differences(forecaster.config, settings)
    if differences:
        raise ModelUnusable(
            f"the model in {folder} does not fit the settings: {'; '.join(differences)}. Give the settings that it was "
            "made with, or leave out --model to train one with these"
        )


def _registered(settings: "Settings", version: int) -> "TrainedModel":
    from pipeline.evaluation.report import TrainedModel
    from pipeline.registry.versions import VALIDATE_UNTIL, Registry

    registry = Registry(settings)
    forecaster = registry.load(version, settings.home / "models")
    return TrainedModel(forecaster, selected_until=registry.version(version).tags.get(VALIDATE_UNTIL))


def _unseen(trained: "TrainedModel", name: str, sequences: "Sequences", bounds: "Split") -> "Split":
    """The split with nothing in its test part that the model was trained or chosen on, as far as that is known."""
    from pipeline.evaluation.evaluate import Selection, unseen_part

    made = Selection(name, trained.forecaster.config, trained.selected_until)
    moved, remark = unseen_part(bounds, sequences, made)
    if remark:
        click.echo(f"{'warning' if moved == bounds else 'note'}: {remark}", err=True)
    return moved


def _create_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass  # it can be written to
    except OSError as error:
        raise DataFileError(
            f"scores and plots cannot be written to {folder}: {error.strerror}; name another folder with --out"
        ) from error


@contextmanager
def _naming_source(source: str) -> Iterator[None]:
    """What is wrong with the data, with its name."""
    try:
        yield
    except ValueError as error:
        raise DataFileError(f"{source} cannot be back-tested on: {error}") from error


def _print_retraining(console: "Console", moment_us: int, epoch: "EpochReport") -> None:
    from pipeline.messages import iso_timestamp

    console.print(f"retrained at {iso_timestamp(moment_us)}, {_line(epoch)}")


def _line(epoch: "EpochReport") -> str:
    return (
        f"epoch {epoch.epoch}: training loss {epoch.train_loss:.4f}, validation loss {epoch.validation_loss:.4f} "
        f"after {epoch.seconds:.0f} s"
    )
