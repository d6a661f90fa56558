"""The registry on a real MLflow: versions, aliases, artefacts, and the pyfunc as MLflow users load it."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import requests
import torch
from click.testing import CliRunner

from deploy.commands.models import models as models_command
from deploy.commands.models import promote as promote_command
from deploy.context import Context
from model.artefact import load_artefact, save_artefact
from model.config import Adaptation, ModelConfig
from model.forecaster import Forecaster
from model.known_ahead import CalendarCovariate
from model.state import blank_states
from model.stepper import Stepper
from pipeline.errors import ModelMissing, ModelUnusable, RegistryError, RegistryUnreachable
from pipeline.forecaster.champion import RegistryChampion
from pipeline.registry.mlflow_session import MlflowSession, mlflow_error
from pipeline.registry.promotion import Promotion, promote
from pipeline.registry.promotion_log import Mover, events, this_user
from pipeline.registry.training_run import last_trained, training_run
from pipeline.registry.training_set import TrainingSet
from pipeline.registry.versions import CHALLENGER, CHAMPION, Registry
from pipeline.settings import Settings
from tests.conftest import SettingsFactory
from tests.ports import free_port

# One test moves MLflow's artefact store and one reads its log, so only one worker at a time may use MLflow.
pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("mlflow"), pytest.mark.long(150)]

HOUR_US = 3_600_000_000


@pytest.fixture
def settings(mlflow_server: Settings, fresh_settings: SettingsFactory) -> Settings:
    return fresh_settings(features=["a", "b"], targets=["a"], horizon_steps=3)


def artefact(settings: Settings, tmp_path: Path, seed: int = 0, **changes: object) -> Path:
    """The artefact of an untrained forecaster; ``changes`` go into its configuration. Its calendar has an effect."""
    config = ModelConfig(
        features=settings.features,
        targets=settings.targets,
        cadence_us=settings.cadence_us,
        horizon_steps=settings.horizon_steps,
        quantiles=settings.quantiles,
        max_gap_steps=settings.max_gap_steps,
        season_steps=settings.season,
        hidden_size=8,
        sensors=("s0", "s1"),
    )
    torch.manual_seed(seed)
    folder = tmp_path / f"artefact-{seed}-{len(list(tmp_path.iterdir()))}"
    forecaster = Forecaster(replace(config, **changes))  # type: ignore[arg-type]
    if forecaster.ahead is not None:
        torch.nn.init.normal_(forecaster.ahead.give_out.weight)
    save_artefact(forecaster, folder)
    return folder


def registered(settings: Settings, folder: Path, **scores: float) -> int:
    with training_run(settings, "a run", {}) as run:
        return run.register(folder, scores, {"gate.reason": "because"})


def test_an_empty_registry_has_no_versions_and_raises_for_a_version_number(settings: Settings) -> None:
    registry = Registry(settings)
    assert registry.resolve(CHAMPION) is None
    assert registry.versions() == []
    assert last_trained(settings) is None
    with pytest.raises(ModelMissing, match=r"no version 1.*streamgru models"):
        registry.version(1)
    with pytest.raises(ModelMissing, match="no version 1"):
        registry.set_alias(CHAMPION, 1)


def test_the_registry_lists_versions_with_aliases_scores_and_tags(settings: Settings, tmp_path: Path) -> None:
    registry = Registry(settings)
    first = registered(settings, artefact(settings, tmp_path), pinball=0.25)
    assert registry.resolve(CHAMPION) is None
    second = registered(settings, artefact(settings, tmp_path, seed=1), pinball=0.2)
    registry.set_alias(CHAMPION, first)
    registry.set_alias(CHALLENGER, second)
    registry.set_alias("other", first)
    registry.tag(second, {"note": "added later"})

    newest, oldest = registry.versions()
    assert (newest.version, newest.aliases, newest.metrics) == (second, (CHALLENGER,), {"pinball": 0.2})
    assert newest.tags == {"gate.reason": "because", "note": "added later"}
    assert (oldest.version, oldest.aliases) == (first, (CHAMPION, "other"))
    assert registry.version(first) == oldest
    registry.set_alias(CHAMPION, second)
    assert registry.resolve(CHAMPION) == second
    assert last_trained(settings) is not None


def test_an_alias_that_mlflow_reserves_is_refused_with_a_message(settings: Settings, tmp_path: Path) -> None:
    version = registered(settings, artefact(settings, tmp_path))
    with pytest.raises(RegistryError, match="setting alias latest"):
        Registry(settings).set_alias("latest", version)


def test_a_download_is_complete_and_is_made_once(settings: Settings, tmp_path: Path) -> None:
    folder = artefact(settings, tmp_path)
    registry = Registry(settings)
    version = registered(settings, folder)
    copy = registry.load_copy(version, tmp_path / "models").folder
    assert (copy / "weights.pt").read_bytes() == (folder / "weights.pt").read_bytes()
    assert load_artefact(copy).config == load_artefact(folder).config
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]

    before = copy.stat().st_mtime_ns
    assert registry.load_copy(version, tmp_path / "models").folder == copy
    assert copy.stat().st_mtime_ns == before


def test_without_mlflow_the_copy_loads_and_other_calls_fail_at_once(settings: Settings, tmp_path: Path) -> None:
    version = registered(settings, artefact(settings, tmp_path))
    copy = Registry(settings).load_copy(version, tmp_path / "models").folder
    nobody = free_port()
    away = Registry(settings.model_copy(update={"mlflow_tracking_uri": f"http://127.0.0.1:{nobody}"}))
    assert away.load_copy(version, tmp_path / "models").folder == copy
    began = time.monotonic()
    with pytest.raises(RegistryUnreachable, match=rf"127.0.0.1:{nobody}.*streamgru up"):
        away.resolve(CHAMPION)
    with pytest.raises(RegistryUnreachable):
        away.load(version, tmp_path / "elsewhere")
    assert time.monotonic() - began < 10


def test_a_version_with_a_damaged_artefact_is_unusable(settings: Settings, tmp_path: Path) -> None:
    folder = artefact(settings, tmp_path)
    weights = (folder / "weights.pt").read_bytes()
    (folder / "weights.pt").write_bytes(weights[: len(weights) // 2])
    version = registered(settings, folder)
    with pytest.raises(ModelUnusable, match=f"version {version} cannot be loaded"):
        Registry(settings).load(version, tmp_path / "models")
    assert not any(path.is_dir() for path in (tmp_path / "models" / settings.model_name).iterdir())


@pytest.mark.parametrize("name", ["weights.pt", "config.json"])
def test_a_damaged_copy_is_downloaded_again(settings: Settings, tmp_path: Path, name: str) -> None:
    version = registered(settings, artefact(settings, tmp_path))
    champion = RegistryChampion(settings)
    champion.load(version)
    champion.save_last_served(version)
    copy = Registry(settings).load_copy(version, settings.home / "models").folder
    whole = (copy / name).read_bytes()
    (copy / name).write_bytes(whole[: len(whole) // 2])

    restarted = RegistryChampion(settings)
    assert restarted.last_served() is None
    nobody = free_port()
    away = Registry(settings.model_copy(update={"mlflow_tracking_uri": f"http://127.0.0.1:{nobody}"}))
    with pytest.raises(RegistryUnreachable):
        away.load(version, settings.home / "models")
    restarted.load(version)
    assert (copy / name).read_bytes() == whole
    last_served = RegistryChampion(settings).last_served()
    assert last_served is not None
    assert last_served.version == version


def test_a_folder_that_cannot_be_written_is_an_error_that_names_it(settings: Settings, tmp_path: Path) -> None:
    version = registered(settings, artefact(settings, tmp_path))
    (tmp_path / "models").write_text("a file in its place")
    with pytest.raises(RegistryError, match=rf"cannot keep a copy .* in {tmp_path / 'models'}"):
        Registry(settings).load(version, tmp_path / "models")


def test_a_version_without_a_forecaster_is_unusable(settings: Settings, tmp_path: Path) -> None:
    session = MlflowSession(settings.mlflow_tracking_uri, settings.model_name)
    with training_run(settings, "somebody else's", {}) as run, session.client("a foreign model") as client:
        client.log_text(run.id, "hello", "thing/hello.txt")
        client.create_registered_model(settings.model_name)
        made = client.create_model_version(settings.model_name, f"runs:/{run.id}/thing", run_id=run.id)
    with pytest.raises(ModelUnusable, match="holds no forecaster of streamgru"):
        Registry(settings).load(int(made.version), tmp_path / "models")


@pytest.mark.parametrize("source", ["models", "s3://bucket/x"])
def test_versions_of_other_tools_are_listed_and_refused_and_do_not_stop_a_retraining(
    settings: Settings, tmp_path: Path, source: str
) -> None:
    good = registered(settings, artefact(settings, tmp_path), pinball=0.25)
    registry = Registry(settings)
    session = MlflowSession(settings.mlflow_tracking_uri, settings.model_name)
    with session.client("foreign tags") as client:
        for key, value in {"score.mae": "great", "gate.reason": "[/x]", "validate_until": "soon", "a b": "é"}.items():
            client.set_model_version_tag(settings.model_name, str(good), key, value)
        if source == "models":
            run = client.create_run(client.create_experiment(f"{settings.model_name} of another team"))
            client.log_text(run.info.run_id, "hello", "thing/hello.txt")
            made = client.create_model_version(
                settings.model_name, f"runs:/{run.info.run_id}/thing", run_id=run.info.run_id
            )
            client.delete_run(run.info.run_id)
        else:
            made = client.create_model_version(settings.model_name, source, tags={"score.pinball": "low"})
        client.set_registered_model_alias(settings.model_name, "champion", made.version)
        client.set_registered_model_alias(settings.model_name, "their-alias", made.version)
    foreign = int(made.version)

    newest, oldest = registry.versions()
    assert (newest.version, newest.aliases) == (foreign, ("champion", "their-alias"))
    assert newest.trouble.startswith("not made by streamgru: ")
    assert (oldest.trouble, oldest.metrics) == ("", {"pinball": 0.25})
    assert oldest.tags["score.mae"] == "great"
    with pytest.raises(ModelUnusable, match="holds no forecaster of streamgru"):
        promote(settings, foreign)
    # A retraining and a forecaster take this for a champion that cannot be used, and go on.
    with pytest.raises(ModelUnusable):
        registry.load(foreign, tmp_path / "models")
    run_command = CliRunner()
    shown = run_command.invoke(models_command, obj=Context(lambda: settings))
    assert shown.exit_code == 0
    assert "not made by streamgru" in shown.output
    assert promote(settings, good).changed


def test_a_deleted_experiment_is_restored_for_a_retraining(settings: Settings, tmp_path: Path) -> None:
    registered(settings, artefact(settings, tmp_path))
    session = MlflowSession(settings.mlflow_tracking_uri, settings.model_name)
    with session.client("a deletion") as client:
        client.delete_experiment(client.get_experiment_by_name(settings.model_name).experiment_id)
    assert last_trained(settings) is None
    assert registered(settings, artefact(settings, tmp_path, seed=1)) == 2
    assert last_trained(settings) is not None


def test_a_run_that_is_deleted_during_the_training_is_named_with_the_remedy(settings: Settings) -> None:
    with (
        pytest.raises(RegistryError, match=r"refused logging parameters.*deleted it in MLflow; restore it"),
        training_run(settings, "doomed", {}) as run,
        run.session.client("a deletion") as client,
    ):
        client.delete_run(run.id)
        run.log_params({"a": 1})


def test_a_registered_model_that_is_deleted_is_made_again_by_the_next_version(
    settings: Settings, tmp_path: Path
) -> None:
    registered(settings, artefact(settings, tmp_path))
    with MlflowSession(settings.mlflow_tracking_uri, settings.model_name).client("a deletion") as client:
        client.delete_registered_model(settings.model_name)
    assert Registry(settings).versions() == []
    assert Registry(settings).resolve(CHAMPION) is None
    assert registered(settings, artefact(settings, tmp_path, seed=1)) == 1


def test_the_registry_on_loopback_does_not_ask_a_proxy(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert Registry(settings).resolve(CHAMPION) is None


class ArtefactFault(BaseHTTPRequestHandler):
    """Forwards requests to the MLflow at ``upstream``; answers 500 if their path contains ``broken``."""

    upstream = ""
    broken: str | None = None

    def do_GET(self) -> None:
        if self.broken is not None and self.broken in self.path:
            self.send_error(500)
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        answer = requests.request(self.command, self.upstream + self.path, data=body, headers=headers, timeout=30)
        self.send_response(answer.status_code)
        self.send_header("Content-Type", answer.headers["Content-Type"])
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def faulty(settings: Settings) -> Iterator[tuple[Settings, type[ArtefactFault]]]:
    """Settings that reach the real MLflow through the proxy ``ArtefactFault``, and the class of the proxy."""
    handler = type("Fault", (ArtefactFault,), {"upstream": settings.mlflow_tracking_uri})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        yield settings.model_copy(update={"mlflow_tracking_uri": address}), handler
        server.shutdown()


@pytest.mark.parametrize("broken", ["mlflow-artifacts/artifacts?", "weights.pt"], ids=["listing", "file"])
def test_a_version_loads_after_a_download_that_failed(
    settings: Settings,
    faulty: tuple[Settings, type[ArtefactFault]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
) -> None:
    monkeypatch.setattr("pipeline.registry.mlflow_session.LOGGING_RETRIES", 0)
    version = registered(settings, artefact(settings, tmp_path))
    through, handler = faulty
    registry = Registry(through)
    handler.broken = broken
    with pytest.raises(RegistryUnreachable, match=rf"version {version} could not be downloaded.*space on this disk"):
        registry.load(version, tmp_path / "models")
    handler.broken = None
    assert registry.load(version, tmp_path / "models").config.features == ("a", "b")


def test_a_missing_artefact_store_is_unreachable_and_not_an_empty_version(
    settings: Settings, mlflow_server: Settings, tmp_path: Path
) -> None:
    """MLflow lists a missing folder, such as a disk that is not mounted, as an empty folder."""
    version = registered(settings, artefact(settings, tmp_path))
    registry = Registry(settings)
    store = mlflow_server.home / "mlflow" / "artifacts"
    away = store.rename(store.with_name("away"))
    try:
        with pytest.raises(RegistryUnreachable, match=rf"version {version} but lists none of its files"):
            registry.load(version, tmp_path / "models")
    finally:
        if store.exists():
            store.rmdir()
        away.rename(store)
    assert registry.load(version, tmp_path / "models").config.features == ("a", "b")


def test_resolving_an_alias_writes_nothing_to_the_servers_log(settings: Settings, mlflow_server: Settings) -> None:
    """Forecasters resolve the alias every two seconds, for years."""
    log = mlflow_server.home / "logs" / "mlflow.log"
    registry = Registry(settings)
    registry.resolve(CHAMPION)
    before = log.stat().st_size
    for _ in range(20):
        registry.resolve(CHAMPION)
    assert log.stat().st_size == before


def test_a_recreated_model_with_the_same_version_number_is_an_error(
    settings: Settings, mlflow_server: Settings, tmp_path: Path
) -> None:
    """A model that is deleted and recreated counts its versions from 1 again."""
    import mlflow  # only here: five of six processes run no such test

    chosen = settings.model_copy(update={"home": tmp_path / "home"})
    promote(settings, registered(settings, artefact(settings, tmp_path)))
    first = RegistryChampion(chosen)
    assert first.resolve() == 1
    first.load(1)
    first.save_last_served(1)
    assert first.resolve() == 1
    mlflow.MlflowClient(mlflow_server.mlflow_tracking_uri).delete_registered_model(settings.model_name)
    assert first.resolve() is None
    promote(settings, registered(settings, artefact(settings, tmp_path, seed=1)))
    restarted = RegistryChampion(chosen)
    assert restarted.last_served() is not None
    for champion in (first, restarted):
        with pytest.raises(RegistryError, match="is not the model that was loaded under this number"):
            champion.resolve()


def test_a_promotion_moves_the_alias_and_returns_the_previous_version(settings: Settings, tmp_path: Path) -> None:
    first = registered(settings, artefact(settings, tmp_path))
    second = registered(settings, artefact(settings, tmp_path, seed=1))
    assert promote(settings, first) == Promotion(first, CHAMPION, None)
    assert promote(settings, second) == Promotion(second, CHAMPION, first)
    assert not promote(settings, second).changed
    assert promote(settings, first).previous == second
    assert Registry(settings).resolve(CHAMPION) == first
    with pytest.raises(ModelMissing):
        promote(settings, 99)


def test_promotions_and_rollbacks_are_tags_of_both_versions(settings: Settings, tmp_path: Path) -> None:
    first = registered(settings, artefact(settings, tmp_path))
    second = registered(settings, artefact(settings, tmp_path, seed=1))
    promote(settings, first)
    promote(settings, second, mover=Mover("ann", "lower loss in winter"))
    promote(settings, first, mover=Mover("bob"))

    def history(version: int) -> list[str]:
        return [event.text for event in events(Registry(settings).version(version).tags)]

    assert history(first) == [
        f"champion: rolled back to this version from version {second} by bob",
        f"champion: replaced, now version {second}, by ann: lower loss in winter",
        f"champion: promoted by {this_user()}",
    ]
    assert history(second) == [
        f"champion: rolled back, now version {first}, by bob",
        f"champion: promoted in place of version {first} by ann: lower loss in winter",
    ]


def test_a_version_of_other_settings_is_not_promoted(settings: Settings, tmp_path: Path) -> None:
    good = registered(settings, artefact(settings, tmp_path))
    promote(settings, good)
    other = registered(settings, artefact(settings, tmp_path, features=("a", "c"), horizon_steps=5))
    with pytest.raises(ModelUnusable, match=r"(?s)does not fit the settings.*horizon"):
        promote(settings, other, mover=Mover("ann", "a try"))
    assert Registry(settings).resolve(CHAMPION) == good
    (refusal,) = events(Registry(settings).version(other).tags)
    assert refusal.text.startswith("champion: refused (")
    assert "does not fit the settings" in refusal.text
    assert refusal.text.endswith("; asked for by ann: a try")


def test_the_commands_list_and_promote_versions(settings: Settings, tmp_path: Path) -> None:
    context = Context(lambda: settings)
    run = CliRunner()
    assert "streamgru retrain" in run.invoke(models_command, obj=context).output
    first = registered(settings, artefact(settings, tmp_path), pinball=0.25)
    second = registered(settings, artefact(settings, tmp_path, seed=1), pinball=0.125)
    assert run.invoke(promote_command, [str(first)], obj=context).output == (
        f"version {first} of {settings.model_name} is champion now\n"
    )
    output = run.invoke(promote_command, [str(second), "--reason", "better at night"], obj=context).output
    assert f"to go back: streamgru promote {first}\n" in output
    table = run.invoke(models_command, obj=context, env={"COLUMNS": "160"}).output
    assert "0.125" in table
    assert "champion" in table
    assert "because" in table
    assert "better at night" in run.invoke(models_command, obj=context).output
    listed = json.loads(run.invoke(models_command, ["--json"], obj=context).output)
    assert [(entry["version"], entry["aliases"]) for entry in listed] == [(second, ["champion"]), (first, [])]


def test_registry_calls_do_not_change_the_environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    Registry(settings).resolve(CHAMPION)  # the import of some libraries sets variables
    before = dict(os.environ)
    Registry(settings).resolve(CHAMPION)
    assert dict(os.environ) == before


def test_the_registry_ignores_the_environments_registry_uri(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = free_port()
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"http://127.0.0.1:{nobody}")
    monkeypatch.setattr("pipeline.registry.mlflow_session.LOGGING_RETRIES", 0)
    version = registered(settings, artefact(settings, tmp_path))
    assert Registry(settings).load(version, tmp_path / "models").config.features == ("a", "b")


def test_a_training_run_records_its_training_set(settings: Settings) -> None:
    training_set = TrainingSet("/somewhere/history", 7, "readings", {"0": 12, "1": 34}, 46, 3)
    with training_run(settings, "a run", {}) as run:
        run.log_training_set(training_set)
    with MlflowSession(settings.mlflow_tracking_uri, settings.model_name).client("reading a run") as client:
        found = client.get_run(run.id)
    (logged,) = found.inputs.dataset_inputs
    assert logged.dataset.name == "history@7"
    assert json.loads(logged.dataset.source)["next_offsets"] == {"0": 12, "1": 34}
    assert found.info.status == "FINISHED"


def test_a_training_run_that_raises_is_marked_as_failed(settings: Settings) -> None:
    with pytest.raises(ZeroDivisionError), training_run(settings, "a run", {}) as run:
        _ = 1 / 0
    with MlflowSession(settings.mlflow_tracking_uri, settings.model_name).client("reading a run") as client:
        assert client.get_run(run.id).info.status == "FAILED"
    assert last_trained(settings) is None


# --- the pyfunc -------------------------------------------------------------------------------------------------------

# Without the site module there is no editable install: only the dependencies of streamgru can be imported.
USER = """
import json, sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
import model
assert model.DECOY
try:
    import pipeline
except ImportError:
    pass
else:
    raise AssertionError("streamgru can be imported")
import mlflow, pandas as pd
loaded = mlflow.pyfunc.load_model(sys.argv[3])
frame = pd.DataFrame(json.load(open(sys.argv[4])))
loaded.predict(frame).to_json(sys.argv[5], orient="records", date_format="iso", date_unit="us", double_precision=15)
"""


def readings(count: int = 60) -> pd.DataFrame:
    random = np.random.default_rng(5)
    frame = pd.DataFrame(
        {
            "sensor_id": [f"s{number % 3}" for number in range(count)],
            "timestamp": pd.to_datetime([HOUR_US * (number // 3) for number in range(count)], unit="us", utc=True),
            "a": random.normal(size=count),
            "b": random.normal(size=count),
        }
    )
    frame.loc[7, "b"] = np.nan
    return frame


def stepped(folder: Path, frame: pd.DataFrame, adaptation: Adaptation) -> dict[str, np.ndarray]:
    """The last forecast (K, Q, h) of each sensor, by the stepper of this project."""
    stepper = Stepper(load_artefact(folder), adaptation)
    found = {}
    for sensor, part in frame.groupby("sensor_id"):
        states = blank_states(stepper.config, 1, adaptation)
        timestamp_us = part["timestamp"].dt.as_unit("us").astype("int64").to_numpy()
        values = part[["a", "b"]].to_numpy()
        forecasts = stepper.step(
            states, [str(sensor)], np.zeros(len(part), np.int64), timestamp_us, values, np.arange(len(part))
        )
        found[str(sensor)] = forecasts.quantiles[-1]
    return found


def test_a_user_of_mlflow_can_forecast_with_the_pyfunc(settings: Settings, tmp_path: Path) -> None:
    folder = artefact(settings, tmp_path, calendar=(CalendarCovariate("day off", (18 * 3_600, 21 * 3_600)),))
    version = registered(settings, folder)
    Registry(settings).set_alias(CHAMPION, version)
    decoy = tmp_path / "elsewhere"
    (decoy / "model").mkdir(parents=True)
    (decoy / "model" / "__init__.py").write_text("DECOY = True\n")
    frame = readings()
    shuffled = frame.sample(frac=1.0, random_state=1).assign(timestamp=lambda f: f["timestamp"].astype(str))
    shuffled.to_json(decoy / "readings.json", orient="records", double_precision=15)  # the default rounds to 10

    done = subprocess.run(
        [
            *(sys.executable, "-S", "-c", USER, str(decoy), next(path for path in sys.path if "site-packages" in path)),
            *(f"models:/{settings.model_name}@{CHAMPION}", "readings.json", "forecasts.json"),
        ],
        cwd=decoy,
        env={
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("STREAMGRU_", "MLFLOW_", "PYTHONPATH"))
            },
            "MLFLOW_TRACKING_URI": settings.mlflow_tracking_uri,
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        },
        capture_output=True,
        text=True,
        timeout=300,  # it compiles the kernels, beside other tests
        check=False,
    )
    assert done.returncode == 0, done.stderr

    forecasts = pd.DataFrame(json.loads((decoy / "forecasts.json").read_text()))
    for column in ("issued_at", "timestamp"):
        forecasts[column] = pd.to_datetime(forecasts[column])
    assert list(forecasts) == ["sensor_id", "issued_at", "target", "step", "timestamp", "0.1", "0.5", "0.9"]
    assert len(forecasts) == 3 * 1 * 3
    for sensor, expected in stepped(folder, frame, settings.adaptation).items():
        rows = forecasts[forecasts["sensor_id"] == sensor].sort_values("step")
        np.testing.assert_allclose(rows[["0.1", "0.5", "0.9"]].to_numpy().T, expected[0], rtol=1e-9, atol=1e-9)
        assert (rows["issued_at"] == pd.Timestamp(19 * HOUR_US, unit="us", tz="UTC")).all()
        assert list((rows["timestamp"] - rows["issued_at"]) / pd.Timedelta(hours=1)) == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.drop(columns="timestamp"), "timestamp"),
        (lambda frame: frame.drop(columns=["a", "b"]), "none of the model's features: a, b"),
        (lambda frame: frame.assign(timestamp=None), "without sensor_id or timestamp"),
    ],
)
def test_the_pyfunc_refuses_an_invalid_frame_with_a_message(
    settings: Settings, tmp_path: Path, change: object, message: str
) -> None:
    import mlflow

    # Without adaptation, because the artefact's copy of its kernel takes a quarter of a minute to compile.
    plain = settings.forecaster.model_copy(update={"adaptation": "off", "calibration": False})
    settings = settings.model_copy(update={"forecaster": plain})
    version = registered(settings, artefact(settings, tmp_path))
    with MlflowSession(settings.mlflow_tracking_uri, settings.model_name).client("loading the pyfunc"):
        loaded = mlflow.pyfunc.load_model(f"models:/{settings.model_name}/{version}")
    with pytest.raises((ValueError, mlflow_error()), match=message):
        loaded.predict(change(readings()))  # type: ignore[operator]
    integers = readings().assign(a=1, b=2)
    assert len(loaded.predict(integers)) == 9
