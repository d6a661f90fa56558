"""The retrain, promote and monitor flows, against a real Prefect and a real MLflow."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from deploy.commands.backtest import backtest
from deploy.context import Context
from flows.model_card import LONGEST_DESCRIPTION
from flows.monitor import monitor, overdue
from flows.progress import Progress, watch_progress
from flows.promote import promote
from flows.retrain import retrain
from flows.retrain_report import RetrainReport
from model.artefact import save_artefact
from model.attributes import Attribute
from model.bounds import Bounds
from model.config import ModelConfig
from model.forecaster import Forecaster
from pipeline.errors import Busy, HistoryError, ModelMissing, RegistryUnreachable, SettingsError
from pipeline.file_lock import hold_lock
from pipeline.history.table import History
from pipeline.registry.input_example import EXAMPLE_READINGS, EXAMPLE_SENSORS
from pipeline.registry.mlflow_session import MlflowSession
from pipeline.registry.promotion_log import events
from pipeline.registry.training_run import training_run
from pipeline.registry.versions import CHALLENGER, CHAMPION, Registry
from pipeline.settings import Settings
from pipeline.settings.calendar import CalendarSettings
from pipeline.settings.sections import MonitorSettings
from tests.conftest import SettingsFactory
from tests.environment import environment
from tests.ports import free_port

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("mlflow"), pytest.mark.long(150)]  # see test_registry

HOUR_US = 3_600_000_000
SENSORS = 4
Use = Callable[[Settings], None]


@pytest.fixture
def use(prefect_server: Settings, tmp_path: Path) -> Iterator[Use]:
    """A function that makes flows of this process use the given settings and the Prefect of this test run."""
    outside = dict(os.environ)

    def now(settings: Settings) -> None:
        os.environ.update(environment(settings))

    with temporary_settings(
        {PREFECT_API_URL: prefect_server.prefect_api_url, PREFECT_HOME: tmp_path / "prefect-client"}
    ):
        yield now
    for name in set(os.environ) - set(outside):
        del os.environ[name]
    os.environ.update(outside)


@pytest.fixture
def settings(mlflow_server: Settings, fresh_settings: SettingsFactory, use: Use) -> Settings:
    chosen = fresh_settings(
        features=["a", "b"],
        targets=["a"],
        horizon_steps=6,
        training={"hidden_size": 8, "epochs": 2, "budget_s": 20, "test_fraction": 0.2},
    )
    use(chosen)
    return chosen


@pytest.fixture
def flow_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The log of flows and their tasks, which Prefect keeps from the root logger."""
    logger = logging.getLogger("prefect")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def remarks_in(flow_log: pytest.LogCaptureFixture) -> set[str]:
    """The remarks about broken bounds; each names the number of readings of its retraining."""
    return {message for message in flow_log.messages if "breaks its bounds" in message}


def fill_history(settings: Settings, hours: int, first_hour: int = 0, *, skewed: bool = False) -> None:
    """Append a daily cycle around a drifting level, for which both naive forecasts are poor; or its exponential."""
    random = np.random.default_rng(first_hour)
    history = History(settings.history_path, settings.features)
    history.create()
    hour = np.arange(first_hour, first_hour + hours)
    frames = []
    for sensor in range(SENSORS):
        level = np.cumsum(random.normal(0, 0.4, hours))
        cycle = level + 3 * np.sin(2 * np.pi * hour / 24 + sensor) + random.normal(0, 0.1, hours)
        frames.append(
            pl.DataFrame(
                {
                    "sensor_id": [f"s{sensor}"] * hours,
                    "timestamp": hour * HOUR_US,
                    "a": np.exp(cycle / 3) if skewed else cycle,
                    "b": random.normal(size=hours),
                    "partition": np.zeros(hours, np.int32),
                    "offset": hour * SENSORS + sensor,
                }
            )
        )
    end = (first_hour + hours) * SENSORS
    history.append(pl.concat(frames).sort("offset"), {0: end}, settings.kafka.topics.readings)


def mlflow_run(settings: Settings, report: RetrainReport) -> Any:
    run_id = Registry(settings).version(report.version).run_id
    with MlflowSession(settings.mlflow_tracking_uri, settings.model_name).client("reading a run") as client:
        return client.get_run(run_id)


def artifacts(settings: Settings, report: RetrainReport, folder: str) -> set[str]:
    run_id = Registry(settings).version(report.version).run_id
    with MlflowSession(settings.mlflow_tracking_uri, settings.model_name).client("reading a run") as client:
        return {file.path for file in client.list_artifacts(run_id, folder)}


def pages_of(flow_run: FlowRun) -> dict[str, str]:
    """Key -> Markdown or link of each artifact on the run's page in Prefect."""
    with get_client(sync_client=True) as client:
        found = client.request(
            "POST",
            "/artifacts/filter",
            json={"flow_runs": {"id": {"any_": [str(flow_run.id)]}}},
        ).json()
    return {artifact["key"]: artifact["data"] for artifact in found}


def model_version(settings: Settings, version: int) -> Any:
    with MlflowSession(settings.mlflow_tracking_uri, settings.model_name).client("reading a version") as client:
        return client.get_model_version(settings.model_name, str(version))


def text_of(settings: Settings, run: Any, file: str) -> str:
    import mlflow

    with MlflowSession(settings.mlflow_tracking_uri, settings.model_name).client("reading a file"):
        return str(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{file}"))


def test_the_first_model_is_registered_scored_and_promoted(settings: Settings) -> None:
    fill_history(settings, 900)
    seen: list[Progress] = []
    with watch_progress(seen.append):
        state = retrain(return_state=True)
    report = state.result()

    assert report.decision.promote, report.decision.reason
    registry = Registry(settings)
    assert registry.resolve(CHAMPION) == registry.resolve(CHALLENGER) == report.version == 1
    (info,) = registry.versions()
    assert info.metrics["pinball"] < info.metrics["pinball.naive"]
    assert {"pinball", "mae", "mse", "coverage", "mae.naive", "pinball.persistence", "pinball.rls"} <= set(info.metrics)
    assert "pinball.champion" not in info.metrics
    assert info.tags["gate.decision"] == "promoted"
    assert " forecast, " in info.tags["gate.reason"]
    assert (seen[0].doing, seen[0].done) == ("training", 0.0)
    assert [(progress.doing, progress.done) for progress in seen if progress.done == 1.0][-1] == ("back-testing", 1.0)

    run = mlflow_run(settings, report)
    assert run.info.status == "FINISHED"
    assert run.data.tags["gate.reason"] == info.tags["gate.reason"]
    assert run.data.params["validate_until"] == info.tags["validate_until"]
    assert run.data.params["seed"] == "0"
    assert run.data.params["device_used"] in ("cpu", "cuda")
    assert {"train_loss", "validation_loss", "challenger/pinball", "naive/mae/a"} <= set(run.data.metrics)
    assert artifacts(settings, report, "plots") == {
        "plots/previews",
        *(f"plots/{name}.png" for name in ("loss", "scores", "forecasts", "state_age")),
    }
    assert {"plots/previews/scores.png", "plots/previews/forecasts.png"} <= artifacts(
        settings, report, "plots/previews"
    )
    (data,) = run.inputs.dataset_inputs
    source = json.loads(data.dataset.source)
    assert source["version"] == History(settings.history_path, settings.features).version
    assert source["next_offsets"] == {"0": 900 * SENSORS}
    with MlflowSession(settings.mlflow_tracking_uri, settings.model_name).client("reading a metric") as client:
        curve = client.get_metric_history(run.info.run_id, "challenger/pinball/a")
    assert [metric.step for metric in curve] == [1, 2, 3, 4, 5, 6]

    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(state.state_details.flow_run_id)
        names = {task_run.name.rpartition("-")[0] for task_run in client.read_task_runs()}
    pages = pages_of(flow_run)
    assert report.decision.reason in pages["retrain-gate"]
    for baseline in ("seasonal naive", "persistence", "adaptive AR(24)"):
        assert f"| {baseline} |" in pages["retrain-gate"]
    assert f"Next offsets: partition 0: {900 * SENSORS}." in pages["retrain-gate"]
    address = f"{settings.mlflow_tracking_uri}/#/models/{settings.model_name}/versions/1"
    assert f"[Version 1 of {settings.model_name} in MLflow]({address})" in pages["mlflow-version"]
    assert {"train", "back-test", "register"} <= names

    card = model_version(settings, 1).description
    assert len(card) <= LONGEST_DESCRIPTION
    assert "**Promoted** by the gate: mean pinball" in card
    assert f"up to but not including these offsets: partition 0: {900 * SENSORS}." in card
    assert "Sensors: s0, s1, s2, s3." in card
    assert f"[the run]({report.run_url})" in card
    assert text_of(settings, run, "model_card.md").startswith(card[:1_000])
    (promotion,) = events(info.tags)
    assert promotion.text == "champion: promoted by the gate"


def test_the_input_example_of_a_version_can_be_forecast(settings: Settings) -> None:
    import mlflow

    fill_history(settings, 900)
    retrain(epochs=1)
    with MlflowSession(settings.mlflow_tracking_uri, settings.model_name).client("loading the pyfunc"):
        loaded = mlflow.pyfunc.load_model(f"models:/{settings.model_name}@{CHALLENGER}")
    example = loaded.input_example
    assert list(example) == ["sensor_id", "timestamp", "a", "b"]
    assert len(example) == EXAMPLE_SENSORS * EXAMPLE_READINGS
    forecasts = loaded.predict(example)
    assert set(forecasts["sensor_id"]) == {"s0", "s1"}
    assert len(forecasts) == EXAMPLE_SENSORS * settings.horizon_steps
    assert np.isfinite(forecasts[["0.1", "0.5", "0.9"]].to_numpy()).all()


@pytest.mark.usefixtures("no_plots")
def test_a_challenger_that_is_not_better_by_the_margin_stays_challenger(settings: Settings, use: Use) -> None:
    fill_history(settings, 900)
    retrain(epochs=1)
    use(settings.model_copy(update={"gate": settings.gate.model_copy(update={"margin": 0.9})}))
    report = retrain(epochs=1, seed=3, warm_start=True)
    assert not report.decision.promote
    registry = Registry(settings)
    assert (registry.resolve(CHAMPION), registry.resolve(CHALLENGER)) == (1, 2)
    newest = registry.versions()[0]
    assert newest.tags["gate.decision"] == "declined"
    assert "of the champion" in newest.tags["gate.reason"]
    assert "pinball.champion" in newest.metrics
    run = mlflow_run(settings, report)
    assert (run.data.params["warm_start_from"], run.data.params["seed"]) == ("1", "3")


@pytest.mark.usefixtures("no_plots")
def test_a_warm_start_keeps_roots_adds_days_and_attributes_and_repeats_no_remark_about_bounds(
    mlflow_server: Settings, fresh_settings: SettingsFactory, use: Use, flow_log: pytest.LogCaptureFixture
) -> None:
    chosen = fresh_settings(
        features=["a", "b"],
        targets=["a"],
        horizon_steps=6,
        bounds={"a": {"minimum": 0, "maximum": 2_000}},
        training={"hidden_size": 8, "epochs": 1, "budget_s": 20, "test_fraction": 0.2},
    )
    use(chosen)
    fill_history(chosen, 900, skewed=True)
    first = retrain()
    forecaster = Registry(chosen).load(first.version, chosen.home / "models")
    assert forecaster.config.roots == (True,)
    assert forecaster.config.bounds == (Bounds(minimum=0.0, maximum=2_000.0),)
    assert mlflow_run(chosen, first).data.params["by_roots"] == "a"
    (remark,) = remarks_in(flow_log)
    assert remark.startswith("a breaks its bounds (minimum 0, maximum 2000) in ")
    Registry(chosen).set_alias(CHAMPION, first.version)
    fill_history(chosen, 300, 900, skewed=True)
    days = CalendarSettings(timezone="UTC", days={"fair": ("1970-01-10", "1970-01-20/1970-01-22")})
    attributes = {"kind": {"s0": "old", "*": "new"}}
    use(chosen.model_copy(update={"calendar": days, "attributes": attributes}))
    second = retrain(warm_start=True)
    params = mlflow_run(chosen, second).data.params
    assert (params["warm_start_from"], params["calendar"]) == (str(first.version), "fair")
    assert params["attributes"] == "kind"
    config = Registry(chosen).load(second.version, chosen.home / "models").config
    assert config.roots == (True,)
    assert config.calendar == days.in_model
    assert config.attributes == (Attribute("kind", (("s0", "old"), ("*", "new"))),)
    assert remarks_in(flow_log) == {remark}  # the newer readings keep the bounds
    assert len({Registry(chosen).version(each.version).tags["bounds_facts"] for each in (first, second)}) == 1


@pytest.mark.usefixtures("no_plots")
def test_a_back_test_of_a_version_leaves_out_its_validation_readings(settings: Settings) -> None:
    fill_history(settings, 900)
    version = retrain(epochs=1).version
    chosen_on = Registry(settings).version(version).tags["validate_until"]
    arguments = ["--version", str(version), "--split", "0.3,0.1,0.6"]
    done = CliRunner().invoke(backtest, arguments, obj=Context(lambda: settings))
    assert done.exit_code == 0, done.output
    assert f"readings until {chosen_on}: the test part begins there instead of" in done.stderr
    scores = json.loads((settings.home / "backtests" / "history-6" / "scores.json").read_text())
    assert scores["validate_until"] == chosen_on


@pytest.mark.usefixtures("no_plots")
def test_a_longer_test_part_begins_behind_the_champions_validation_readings(settings: Settings, use: Use) -> None:
    fill_history(settings, 900)
    retrain(epochs=1)
    training = settings.training.model_copy(update={"test_fraction": 0.4})
    use(settings.model_copy(update={"training": training}))
    report = retrain(epochs=1)
    first, second = (Registry(settings).version(version).tags["validate_until"] for version in (1, report.version))
    assert first == second
    assert "of the champion" in report.decision.reason


@pytest.mark.usefixtures("no_plots")
def test_a_retraining_on_an_earlier_history_version_is_not_compared_with_a_later_champion(settings: Settings) -> None:
    fill_history(settings, 700)
    version = History(settings.history_path, settings.features).version
    fill_history(settings, 300, first_hour=700)
    assert retrain(epochs=1).decision.promote
    report = retrain(history_version=version, epochs=1, warm_start=True)
    assert mlflow_run(settings, report).data.params["warm_start_from"] == "random weights"
    source = json.loads(mlflow_run(settings, report).inputs.dataset_inputs[0].dataset.source)
    assert (source["version"], source["readings"]) == (version, 700 * SENSORS)
    # The validation readings of the champion end at hour 800.
    assert not report.decision.promote
    assert "no fair comparison with the champion, version 1" in report.decision.reason
    assert "pinball.champion" not in Registry(settings).version(report.version).metrics
    with pytest.raises(HistoryError, match="99"):
        retrain(history_version=99)


@pytest.mark.usefixtures("no_plots")
def test_a_champion_of_other_settings_is_not_compared_and_the_gate_says_so(settings: Settings, tmp_path: Path) -> None:
    fill_history(settings, 900)
    config = ModelConfig(settings.features, settings.targets, settings.cadence_us, settings.horizon_steps + 2)
    save_artefact(Forecaster(config), tmp_path / "other")
    with training_run(settings, "of another horizon", {}) as run:
        Registry(settings).set_alias(CHAMPION, run.register(tmp_path / "other", {}, {}))
    report = retrain(epochs=1, warm_start=True)
    assert " forecast" in report.decision.reason
    assert "the champion, version 1, was not compared" in report.decision.reason
    assert "horizon" in report.decision.reason
    assert mlflow_run(settings, report).data.params["warm_start_from"] == "random weights"


def test_a_retraining_without_enough_history_says_what_to_do(settings: Settings) -> None:
    with pytest.raises(HistoryError, match="streamgru ingest"):
        retrain()
    fill_history(settings, 5)
    with pytest.raises(HistoryError, match=r"is too short for a retraining.*ingest more readings"):
        retrain()
    assert Registry(settings).versions() == []


def test_a_second_retraining_at_the_same_time_is_cancelled(settings: Settings) -> None:
    with hold_lock(settings.home / "retrain.lock", "held"):
        state = retrain(return_state=True)
        assert state.is_cancelled()
        assert "another retraining is running" in str(state.message)
        with pytest.raises(Busy):
            retrain()


def test_user_errors_fail_the_run_with_their_message(settings: Settings, use: Use) -> None:
    use(settings.model_copy(update={"training": settings.training.model_copy(update={"device": "cuda:77"})}))
    with pytest.raises(SettingsError, match=r"training.device"):
        retrain()
    nobody = free_port()
    use(settings.model_copy(update={"mlflow_tracking_uri": f"http://127.0.0.1:{nobody}"}))
    state = retrain(return_state=True)
    assert state.is_failed()
    assert "MLflow does not answer" in str(state.message)
    with pytest.raises(RegistryUnreachable):
        state.result()


def test_the_promote_flow_fails_for_an_unknown_version(settings: Settings) -> None:
    with pytest.raises(ModelMissing, match="no version 5"):
        promote(5)


def test_a_gate_page_that_cannot_be_made_is_one_warning(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: object) -> str:
        raise ValueError("no page")

    for name in ("flows.retrain_report.gate_page", "flows.retrain.model_card", "flows.retrain.input_example"):
        monkeypatch.setattr(name, fail)
    fill_history(settings, 900)
    with caplog.at_level("WARNING"):
        report = retrain(epochs=1)
    assert Registry(settings).resolve(CHALLENGER) == report.version
    failed = sorted({message.partition(" failed")[0] for message in caplog.messages if "no page" in message})
    assert failed == [
        "the input example of the model",
        "the model card in MLflow",
        "the page retrain-gate in Prefect",
    ]


# --- the monitor ------------------------------------------------------------------------------------------------------


def test_the_monitor_fails_while_something_is_overdue(settings: Settings) -> None:
    state = monitor(return_state=True)
    assert (state.is_failed(), state.name) == (True, "Overdue")
    assert "no retraining has succeeded so far" in str(state.message)
    with get_client(sync_client=True) as client:
        page = pages_of(client.read_flow_run(state.state_details.flow_run_id))["monitor"]
    assert "## Overdue" in page
    assert "| retrain | never |  | 48.0 |" in page
    fill_history(settings, 10)
    with training_run(settings, "a retraining", {}):
        pass
    assert monitor() == []


def test_overdue_work_is_reported_with_its_age() -> None:
    limits = MonitorSettings(retrain_within_s=7_200, append_within_s=3_600)
    now = datetime(2024, 1, 2, 12, tzinfo=UTC)
    assert overdue(limits, now, now - timedelta(hours=2), now - timedelta(hours=1)) == []
    (sentence,) = overdue(limits, now, now - timedelta(hours=3), now)
    assert sentence == (
        "no retraining has succeeded for 3.0 hours (since 2024-01-02 09:00 UTC); `streamgru retrain` shows why"
    )
    assert len(overdue(limits, now, None, None)) == 2
