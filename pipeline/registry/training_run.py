"""A training run in MLflow: its parameters, curves, plots and training set, and the version that it registers."""

import json
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from model.config import Adaptation
from model.feature_columns import input_column
from pipeline.errors import RegistryError
from pipeline.registry.bundle import bundle_artefact, pip_requirements
from pipeline.registry.mlflow_session import MlflowSession, mlflow_error
from pipeline.registry.training_set import TrainingSet
from pipeline.registry.versions import ARTEFACT, SCORE_PREFIX, logger
from pipeline.settings import Settings
from pipeline.text.visible_text import visible

if TYPE_CHECKING:
    import pandas as pd

METRICS_PER_CALL: Final = 1_000  # MLflow refuses more


@dataclass(frozen=True)
class TrainingRun:
    """An active run, from ``training_run``. ``url`` is its page."""

    session: MlflowSession
    id: str
    url: str
    adaptation: Adaptation  # how the forecasts of the registered pyfunc adapt

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log the parameters of the training."""
        with self._client("logging parameters") as client:
            from mlflow.entities import Param

            client.log_batch(self.id, params=[Param(key, str(value)) for key, value in params.items()])

    def log_curves(self, curves: Mapping[str, Mapping[int, float]]) -> None:
        """Log metrics by name, with a value per epoch or per step of the horizon."""
        now_ms = int(time.time() * 1_000)
        with self._client("logging metrics") as client:
            from mlflow.entities import Metric

            metrics = [
                Metric(name, float(value), now_ms, step)
                for name, curve in curves.items()
                for step, value in curve.items()
            ]
            for start in range(0, len(metrics), METRICS_PER_CALL):
                client.log_batch(self.id, metrics=metrics[start : start + METRICS_PER_CALL])

    def log_files(self, folder: Path, into: str) -> None:
        """Log the files of a folder as artifacts of the run, below ``into``."""
        with self._client(f"logging {into}") as client:
            client.log_artifacts(self.id, str(folder), into)

    def log_training_set(self, training_set: TrainingSet) -> None:
        """Log the training set: the version of the history table and its Kafka offsets."""
        with self._client("logging the data set") as client:
            from mlflow.data.meta_dataset import MetaDataset
            from mlflow.entities import DatasetInput, InputTag

            from pipeline.registry.history_source import HistorySource

            described = MetaDataset(HistorySource(training_set), name=f"history@{training_set.version}")
            entity = described._to_mlflow_entity()
            client.log_inputs(self.id, [DatasetInput(entity, [InputTag("mlflow.data.context", "training")])])
            client.set_tag(self.id, "history.version", str(training_set.version))
            client.set_tag(self.id, "history.next_offsets", json.dumps(training_set.next_offsets))

    def tag(self, tags: Mapping[str, str]) -> None:
        """Add tags to the run."""
        with self._client("tagging a run") as client:
            for key, value in tags.items():
                client.set_tag(self.id, key, visible(value))

    def log_text(self, text: str, file: str) -> None:
        """Log a text as an artifact of the run."""
        with self._client(f"logging {file}") as client:
            client.log_text(self.id, text, file)

    def register(
        self,
        artefact: Path,
        scores: Mapping[str, float],
        tags: Mapping[str, str],
        example: "pd.DataFrame | None" = None,
    ) -> int:
        """Log an artefact of ``model.artefact.save_artefact`` as a pyfunc, and register it as the next version.

        ``scores`` become the version's metrics in ``streamgru models``. MLflow's page shows them and ``tags`` as tags.
        ``example`` is an input of the model, as from ``input_example``; MLflow keeps it beside the model.
        """
        name = self.session.model_name
        with (
            tempfile.TemporaryDirectory(prefix="streamgru-") as folder,
            self._client("registering a version") as client,
        ):
            import mlflow
            from mlflow.models import Model

            from model.artefact import CONFIG_FILE  # imports torch, which the monitor does without

            bundle = bundle_artefact(artefact, Path(folder) / ARTEFACT, self.adaptation)
            config = json.loads((bundle / CONFIG_FILE).read_text(encoding="utf-8"))
            with warnings.catch_warnings(), _quiet("mlflow.pyfunc"), mlflow.start_run(run_id=self.id):
                # MLflow warns if there is no input example; the signature describes the input.
                warnings.filterwarnings("ignore", category=UserWarning, module="mlflow")
                logged = Model.log(
                    artifact_path=None,
                    name=ARTEFACT,
                    flavor=_Pyfunc,
                    # MLflow would load the model and forecast the example, and compiling its code takes many seconds.
                    validate_serving_input=False,
                    python_model=str(Path(__file__).with_name("pyfunc_model.py")),
                    artifacts={ARTEFACT: str(bundle)},
                    pip_requirements=pip_requirements(),
                    signature=_signature(config["features"], config["quantiles"]),
                    metadata={"streamgru": config},
                    input_example=example,
                )
            client.update_run(self.id, status="RUNNING")  # the end of start_run ended the run too early
            try:
                client.create_registered_model(name)
            except mlflow_error() as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            made = client.create_model_version(
                name,
                logged.model_uri,
                run_id=self.id,
                tags={f"{SCORE_PREFIX}{key}": f"{value:.6g}" for key, value in scores.items()} | dict(tags),
                model_id=logged.model_id,
                await_creation_for=None,  # the version exists once the server answers
            )
        return int(made.version)

    def _client(self, doing: str) -> Any:
        return self.session.client(doing, patient=True)


@contextmanager
def training_run(settings: Settings, name: str, tags: Mapping[str, str]) -> Iterator[TrainingRun]:
    """A new run in the experiment with the model's name; it fails if the block raises.

    Raises:
        RegistryUnreachable: MLflow does not answer.
    """
    session = MlflowSession(settings.mlflow_tracking_uri, settings.model_name)
    with session.client("starting a run", patient=True) as client:
        experiment = client.get_experiment_by_name(settings.model_name)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(settings.model_name)
        if experiment is not None and experiment.lifecycle_stage != "active":
            # Its name stays taken until MLflow's garbage collection, so a new experiment is not possible.
            client.restore_experiment(experiment_id)
            logger.warning(
                "the experiment %s was deleted in MLflow; it is restored with its earlier runs for this run",
                settings.model_name,
            )
        run_id = client.create_run(experiment_id, run_name=name, tags=dict(tags)).info.run_id
    url = f"{session.uri.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"
    try:
        yield TrainingRun(session, run_id, url, settings.adaptation)
    except BaseException:
        try:
            _end(session, run_id, "FAILED")
        except RegistryError as error:
            logger.warning("the failed run %s still shows as running in MLflow: %s", run_id, error)
        raise
    try:
        _end(session, run_id, "FINISHED")
    except RegistryError as error:  # the model is registered, so this is not a failure
        logger.warning("run %s succeeded but shows as running in MLflow; the monitor ignores it: %s", run_id, error)


def last_trained(settings: Settings) -> datetime | None:
    """The end of the last successful training run; None if there was no successful run.

    Raises:
        RegistryUnreachable: MLflow does not answer.
    """
    session = MlflowSession(settings.mlflow_tracking_uri, settings.model_name)
    with session.client("looking up the last training run") as client:
        experiment = client.get_experiment_by_name(settings.model_name)
        if experiment is None or experiment.lifecycle_stage != "active":
            return None
        found = client.search_runs(
            [experiment.experiment_id], "attributes.status = 'FINISHED'", max_results=1, order_by=["end_time DESC"]
        )
    # A run that another tool made may have no end.
    return datetime.fromtimestamp(found[0].info.end_time / 1_000, UTC) if found and found[0].info.end_time else None


class _Pyfunc:
    """The flavor ``mlflow.pyfunc`` for ``Model.log``, with the option that ``mlflow.pyfunc.log_model`` lacks."""

    @staticmethod
    def save_model(*, validate_serving_input: bool, **options: Any) -> None:
        import mlflow.pyfunc

        mlflow.pyfunc.save_model(**options)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Let a logger write warnings and errors only."""
    library_log = logging.getLogger(name)
    before = library_log.level
    library_log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        library_log.setLevel(before)


def _end(session: MlflowSession, run_id: str, status: str) -> None:
    with session.client("ending a run", patient=True) as client:
        client.set_terminated(run_id, status)


def _signature(features: Sequence[str], quantiles: Sequence[float]) -> Any:
    """Input and output columns. The model converts inputs: MLflow's date-time refuses zones, its double integers."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, Schema

    inputs = [ColSpec("string", "sensor_id"), ColSpec(AnyType(), "timestamp")]
    inputs += [ColSpec(AnyType(), input_column(feature), required=False) for feature in features]
    outputs = [ColSpec("string", "sensor_id"), ColSpec("datetime", "issued_at"), ColSpec("string", "target")]
    outputs += [ColSpec("long", "step"), ColSpec("datetime", "timestamp")]
    outputs += [ColSpec("double", str(level)) for level in quantiles]
    return ModelSignature(Schema(inputs), Schema(outputs))
