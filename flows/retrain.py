"""The retrain flow: trains a challenger on the history, scores it against the champion, and applies the gate.

The run in MLflow records all its inputs: the version of the history table, its Kafka offsets, settings and seed. The
champion alias moves last, so forecasters do not notice a run that is killed earlier. The next run on the same version
of the history continues its training.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Final

from prefect import flow, get_run_logger
from pydantic import Field

from flows.data_remarks import log_data_remarks
from flows.model_card import CARD_FILE, PLOTS, CardFacts, model_card
from flows.progress import Progress, report_progress
from flows.retrain_report import RetrainReport, describe_late, epoch_curves, horizon_curves, publish, summarise
from flows.run_settings import load_run_settings
from flows.user_errors import run_as_task, user_errors_as_state
from model.artefact import save_artefact
from model.backtest import Predictor, Scores, model_predictor
from model.config import Adaptation, ModelConfig
from model.forecaster import Forecaster
from model.scale_choice import scaled_config
from model.sequences import Sequences, Split, split_by_time
from model.target_scale import same_shape
from model.training import DeviceError, EpochReport, TrainingOptions, TrainingResult, choose_device, train
from pipeline.best_effort import best_effort
from pipeline.errors import HistoryError, ModelUnusable, RegistryUnreachable, SettingsError
from pipeline.evaluation.evaluate import Evaluation, Selection, evaluate, model_config, training_options, unseen_part
from pipeline.evaluation.gate import Decision, decide
from pipeline.evaluation.report import write_plots
from pipeline.file_lock import hold_lock
from pipeline.history.table import History
from pipeline.messages import iso_timestamp
from pipeline.registry.input_example import input_example
from pipeline.registry.promotion_log import GATE, Mover, record_move
from pipeline.registry.training_run import TrainingRun, training_run
from pipeline.registry.training_set import TrainingSet
from pipeline.registry.versions import CHALLENGER, CHAMPION, VALIDATE_UNTIL, Registry, version_url
from pipeline.settings import Settings
from pipeline.settings.sections import LARGEST_SEED, TrainingSettings
from pipeline.text.plural import counted
from pipeline.windows import load_training

log = logging.getLogger("streamgru.retrain")

FEWEST_COMPARED: Final = 24  # forecasts of a sensor on which challenger and champion are compared


@flow(name="retrain", description="Train a challenger, back-test it, register it, and let the gate decide.")
@user_errors_as_state
def retrain(
    settings_file: Path | None = None,
    history_version: Annotated[int, Field(ge=0)] | None = None,
    epochs: Annotated[int, Field(ge=1)] | None = None,
    budget_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None,
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] | None = None,
    warm_start: bool | None = None,
) -> RetrainReport:
    """The registered version and the gate's decision.

    Arguments default to the settings, ``history_version`` to the newest. A lock allows one retraining at a time on a
    machine, and Prefect's concurrency limit one per deployment.
    """
    given = {"epochs": epochs, "budget_s": budget_s, "seed": seed, "warm_start": warm_start}
    settings = load_run_settings(settings_file)
    training = settings.training.model_copy(update={name: value for name, value in given.items() if value is not None})
    with hold_lock(settings.home / "retrain.lock", "another retraining is running"):
        return _retrain(settings.model_copy(update={"training": training}), history_version)


@dataclass(frozen=True)
class _Champion:
    """The champion at the start of the run; ``forecaster`` is None if it is unusable with the settings."""

    version: int
    forecaster: Forecaster | None
    trouble: str = ""  # why the forecaster is unusable
    selected_until: str | None = None  # the version's tag VALIDATE_UNTIL


@dataclass(frozen=True)
class _Data:
    """The data for training and scores."""

    training_set: TrainingSet
    sequences: Sequences  # for scores: the readings that the stream accepts
    trained: Sequences  # for training, see ``pipeline.windows.TrainingReadings``
    split: Split
    late: Mapping[str, int]  # sensor -> late readings
    tags: Mapping[str, str]  # of the version that is trained on them
    unfair: str = ""  # why a comparison with the champion is not fair


def _retrain(settings: Settings, history_version: int | None) -> RetrainReport:
    registry = Registry(settings, patient=True)
    # The registry is needed before the training, so that an unreachable one does not waste a training.
    champion = _champion(registry, settings)
    options = _options(settings.training)
    data = run_as_task("read the history", lambda: _unseen(_read(settings, registry, history_version), champion))
    config = model_config(settings)
    initial = _initial(settings.training, config, options, champion, data.unfair)
    config = run_as_task("choose scales", lambda: scaled_config(config, options, data.trained, data.split, initial))
    tags = {"settings": settings.fingerprint, "champion": str(champion.version) if champion else "none"}
    with training_run(settings, f"retrain on history {data.training_set.version}", tags) as run:
        run.log_training_set(data.training_set)
        started_from = champion if initial else None
        run.log_params(_params(options, config, data.split, started_from, settings.adaptation))
        run.log_params({"late_readings": settings.training.late})
        checkpoint = settings.home / "checkpoints" / "retrain.pt"
        result = run_as_task("train", lambda: _train(config, options, data, initial, checkpoint))
        done = run_as_task("back-test", lambda: _evaluate(settings.adaptation, result.forecaster, champion, data))
        run_as_task("log", lambda: _log(run, result, done))
        summary = summarise(done.scores)
        version = run_as_task("register", lambda: _register(registry, run, result.forecaster, summary, data))
        decision = _decide(registry, settings, champion, done.scores, data.unfair)
        gate = {"gate.decision": "promoted" if decision.promote else "declined", "gate.reason": decision.reason}
        registry.tag(version, gate)
        run.tag(gate)
        late = describe_late(data.late, settings.training.late) if data.late else ""
        facts = CardFacts(
            done=done,
            decision=decision,
            training_set=data.training_set,
            trained=data.trained,
            late=late,
            options=options,
            result=result,
            started_from=started_from.version if started_from else None,
            champion=champion.version if champion else None,
            run_id=run.id,
            run_url=run.url,
        )
        # After the tags, so that the page of a serving version has the reason.
        if decision.promote:
            registry.set_alias(CHAMPION, version)
            record_move(registry, CHAMPION, version, champion.version if champion else None, Mover(GATE))
        checkpoint.unlink(missing_ok=True)  # the result is registered
        run_as_task("describe", lambda: _describe(registry, version, run, facts))  # the result must not wait for it
        page = version_url(settings, version)
        report = RetrainReport(settings.model_name, version, decision, summary, result.device, run.url, late, page)
    publish(report, facts)
    get_run_logger().info("%s", report)
    return report


def _champion(registry: Registry, settings: Settings) -> _Champion | None:
    version = registry.resolve(CHAMPION)
    if version is None:
        return None
    try:
        forecaster = registry.load(version, settings.home / "models")
        return _Champion(version, forecaster, selected_until=registry.version(version).tags.get(VALIDATE_UNTIL))
    except ModelUnusable as error:
        get_run_logger().warning(
            "champion version %d is unusable, so the new version is not compared with it: %s", version, error
        )
        return _Champion(version, None, str(error))


def _options(training: TrainingSettings) -> TrainingOptions:
    options = training_options(training)
    try:
        device = choose_device(options.device)
    except ValueError as error:
        raise SettingsError(f"training.device: {error}; `auto` uses a GPU if one is available") from error
    get_run_logger().info("training on %s", device)
    return options


def _read(settings: Settings, registry: Registry, version: int | None) -> _Data:
    history = History(settings.history_path, settings.features)
    version = history.version if version is None else version
    topic = settings.kafka.topics.readings
    found = load_training(history, settings, version)
    tags = {"history.version": str(version), **log_data_remarks(found.trained, settings, registry)}
    if found.late:
        get_run_logger().warning("%s", describe_late(found.late, settings.training.late))
    training_set = TrainingSet(
        table=str(history.path.resolve()),
        version=version,
        topic=topic,
        next_offsets={str(partition): offset for partition, offset in history.next_offsets(topic, version).items()},
        readings=int(found.trained.observed.sum()),
        sensors=len(found.trained.sensors),
    )
    with _explain_short_history(training_set, settings.horizon_steps):
        split = split_by_time(found.trained, settings.training.validation_fraction, settings.training.test_fraction)
    return _Data(training_set, found.stream, found.trained, split, found.late, tags)


def _unseen(data: _Data, champion: _Champion | None) -> _Data:
    """The data with a held-out tail that the champion has not seen in training or selection.

    Otherwise, after a backfill or with a longer tail, the champion's scores would be too good. With less than a season,
    or a few steps, chance would decide, so the comparison is marked as unfair.
    """
    if champion is None or champion.forecaster is None:
        return data
    log = get_run_logger()
    config = champion.forecaster.config
    least = max(config.season_steps, FEWEST_COMPARED)
    made = Selection(f"version {champion.version}, the champion,", config, champion.selected_until)
    try:
        split, remark = unseen_part(data.split, data.sequences, made, least)
    except ValueError as error:
        log.warning("the challenger is not compared with version %d, the champion: %s", champion.version, error)
        return replace(data, unfair=str(error))
    if remark:
        log.log(logging.WARNING if split == data.split else logging.INFO, "%s", remark)
    return replace(data, split=split)


@contextmanager
def _explain_short_history(training_set: TrainingSet, horizon_steps: int) -> Iterator[None]:
    """Convert the model's errors about too few readings, with the next step."""
    try:
        yield
    except ValueError as error:
        raise HistoryError(
            f"version {training_set.version} of the history table {training_set.table} is too short for a retraining "
            f"({counted(training_set.readings, 'reading')} of {counted(training_set.sensors, 'sensor')}): {error}. "
            f"Each of its parts, training, validation and held-out tail, must span more than the horizon "
            f"of {horizon_steps} steps; ingest more readings, or change horizon_steps or the fractions under [training]"
        ) from error


def _initial(
    training: TrainingSettings, config: ModelConfig, options: TrainingOptions, champion: _Champion | None, unfair: str
) -> Forecaster | None:
    """The forecaster whose weights training starts from: the champion with a warm start, if possible."""
    if not training.warm_start or champion is None or champion.forecaster is None:
        return None
    if unfair or champion.selected_until is None:
        # The new model would depend on readings of the test part that only the champion has seen.
        why = unfair or f"version {champion.version}, the champion, has no tag {VALIDATE_UNTIL}"
        get_run_logger().warning("no warm start; training starts from random weights: %s", why)
        return None
    wanted = replace(config, preset=options.preset, hidden_size=options.hidden_size)
    if not same_shape(champion.forecaster.config, wanted):
        get_run_logger().warning(
            "no warm start: version %d, the champion, has another architecture; training starts from random weights",
            champion.version,
        )
        return None
    return champion.forecaster


def _params(
    options: TrainingOptions,
    config: ModelConfig,
    split: Split,
    started_from: _Champion | None,
    adaptation: Adaptation,
) -> dict[str, object]:
    return {
        **asdict(options),
        "warm_start_from": started_from.version if started_from else "random weights",
        "features": ", ".join(config.features),
        "targets": ", ".join(config.targets),
        "cadence_s": config.cadence_us / 1_000_000,
        "horizon_steps": config.horizon_steps,
        "quantiles": ", ".join(map(str, config.quantiles)),
        "season_steps": config.season_steps,
        "max_gap_steps": config.max_gap_steps,
        "bounds": "; ".join(f"{name}: {each}" for name, each in zip(config.targets, config.bounds, strict=False)),
        "calendar": ", ".join(each.name for each in config.calendar),
        "attributes": ", ".join(each.name for each in config.attributes),
        "by_roots": ", ".join(config.targets_by_roots),
        "adaptation": adaptation.level,
        "calibration": adaptation.calibrated,
        "train_until": iso_timestamp(split.train_end_us),
        VALIDATE_UNTIL: iso_timestamp(split.validation_end_us),
    }


def _train(
    config: ModelConfig, options: TrainingOptions, data: _Data, initial: Forecaster | None, checkpoint: Path
) -> TrainingResult:
    log = get_run_logger()

    def report(epoch: EpochReport) -> None:
        log.info(
            "epoch %d: training loss %.4f, validation loss %.4f after %.0f s",
            *(epoch.epoch, epoch.train_loss, epoch.validation_loss, epoch.seconds),
        )
        # Training ends after the epochs or the seconds, whichever comes first.
        done = max(epoch.epoch / options.epochs, min(1.0, epoch.seconds / options.budget_s))
        detail = f"epoch {epoch.epoch} of {options.epochs}, validation loss {epoch.validation_loss:.4f}"
        report_progress(Progress("training", done, 1.0, detail))

    report_progress(Progress("training", 0.0, 1.0))
    with _explain_short_history(data.training_set, config.horizon_steps):
        try:
            result = train(
                config, options, data.trained, data.split, initial=initial, report=report, checkpoint=checkpoint
            )
        except DeviceError as error:
            raise SettingsError(f"training.device: {error}") from error
    report_progress(Progress("training", 1.0, 1.0, f"{len(result.epochs)} epochs on {result.device}"))
    return result


def _evaluate(adaptation: Adaptation, forecaster: Forecaster, champion: _Champion | None, data: _Data) -> Evaluation:
    """Scores on the held-out tail by name; forecasts adapt as in the stream."""
    rivals: list[Predictor] = []
    if champion is not None and champion.forecaster is not None and not data.unfair:
        rivals.append(model_predictor(champion.forecaster, CHAMPION, adaptation))
    report_progress(Progress("back-testing", 0.0))

    def score(sequences: Sequences) -> Evaluation:
        return evaluate(
            forecaster,
            sequences,
            data.split,
            adaptation,
            name=CHALLENGER,
            beside=rivals,
            robust=True,  # one absurd value in a sensor's past must not take its weight from the gate
            scale_until_us=data.split.validation_end_us,  # not the training part, so that newer sensors have a scale
        )

    with _explain_short_history(data.training_set, forecaster.config.horizon_steps):
        try:
            done = score(data.sequences)
        except ValueError as error:
            if data.trained is data.sequences:
                raise
            get_run_logger().warning(
                "the scores are of readings in order of time, late ones included, because the stream accepts too few "
                "of the newest readings: %s",
                error,
            )
            done = score(data.trained)
    report_progress(Progress("back-testing", 1.0, 1.0))
    return done


def _log(run: TrainingRun, result: TrainingResult, done: Evaluation) -> None:
    # If MLflow does not answer, the version cannot be registered either.
    with best_effort("logging the curves in MLflow", log, but=(RegistryUnreachable,)):
        run.log_params({"device_used": result.device, "sensor_steps_per_s": round(result.sensor_steps_per_s)})
        run.log_curves(epoch_curves(result.epochs) | horizon_curves(done.scores))


def _describe(registry: Registry, version: int, run: TrainingRun, facts: CardFacts) -> None:
    """Log the model card and the plots; a failure is only a warning, because the version is registered."""
    with best_effort("the model card in MLflow", log):
        card = model_card(facts)
        with best_effort("logging the complete model card in MLflow", log):
            run.log_text(card.complete, CARD_FILE)
        registry.describe(version, card.description)
    with best_effort("logging the plots in MLflow", log), tempfile.TemporaryDirectory(prefix="streamgru-") as folder:
        write_plots(facts.done, facts.result.epochs, Path(folder), previews=True)
        run.log_files(Path(folder), PLOTS)


def _register(
    registry: Registry, run: TrainingRun, forecaster: Forecaster, summary: Mapping[str, float], data: _Data
) -> int:
    tags = {**data.tags, VALIDATE_UNTIL: iso_timestamp(data.split.validation_end_us)}
    with tempfile.TemporaryDirectory(prefix="streamgru-") as folder:
        save_artefact(forecaster, Path(folder) / "artefact")
        example = None
        with best_effort("the input example of the model", log):
            example = input_example(data.sequences)
        version = run.register(Path(folder) / "artefact", summary, tags, example)
    registry.set_alias(CHALLENGER, version)
    return version


def _decide(
    registry: Registry, settings: Settings, champion: _Champion | None, scores: Mapping[str, Scores], unfair: str
) -> Decision:
    """The gate's decision; declined if the champion has changed since the start of the run."""
    now = registry.resolve(CHAMPION)
    if now != (champion.version if champion else None):
        change = "the champion lost its alias" if now is None else f"version {now} became champion"
        return Decision(False, f"declined: {change} during the training; retrain to compare")
    if champion is not None and unfair:
        return Decision(
            False,
            f"declined: no fair comparison with the champion, version {champion.version}: {unfair}; "
            "`streamgru promote` promotes this version anyway",
        )
    loss = {name: score.mean(settings.gate.metric) for name, score in scores.items()}
    others = {name: value for name, value in loss.items() if name not in (CHALLENGER, CHAMPION)}
    decision = decide(loss[CHALLENGER], loss.get(CHAMPION), others, settings.gate)
    if champion is not None and champion.forecaster is None:
        left_out = f"the champion, version {champion.version}, was not compared: {champion.trouble}"
        return replace(decision, reason=f"{decision.reason}. {left_out}")
    return decision
