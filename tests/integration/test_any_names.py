"""Features with the names of internal columns, and sensors with names that are markup, go the whole way."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from deploy.commands.backtest import backtest
from deploy.commands.dlq import dlq
from deploy.commands.models import models
from deploy.context import Context
from flows.retrain import retrain
from pipeline.audit.verify import verify
from pipeline.forecaster.champion import RegistryChampion
from pipeline.history.ingest import ingest
from pipeline.history.table import History
from pipeline.kafka.topics import ensure_topics
from pipeline.messages import microseconds
from pipeline.registry.promotion import promote
from pipeline.registry.versions import Registry
from pipeline.settings import Settings
from tests.conftest import SettingsFactory
from tests.environment import environment
from tests.integration.stream_rig import Message, publish, read_forecasts, rounds, running
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.xdist_group("mlflow"),
    pytest.mark.long(150),
    pytest.mark.timeout(480),
]  # see test_registry

FEATURES = ["sensor", "time", "offset", "partition", "timestamp", "sensor_id"]
SENSORS = ["roof[/a]", "$GPS_1_$", "_x\x1b[31m\u202e|<script>"]
STEPS = 300
REJECTED = Message(b"[/plant/line1]", b"[/plant/line1]\x1b[31m", 0, (("[/b]", b"\x1b"),))


@pytest.fixture
def settings(
    broker: Settings,
    mlflow_server: Settings,
    prefect_server: Settings,
    fresh_settings: SettingsFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Settings]:
    chosen = fresh_settings(
        features=FEATURES,
        targets=["offset"],
        horizon_steps=3,
        training={"hidden_size": 8, "epochs": 1, "budget_s": 20, "test_fraction": 0.2},
        forecaster={"poll_alias_s": 0.1, "adaptation": "off", "calibration": False},
    )
    for name, value in environment(chosen).items():
        monkeypatch.setenv(name, value)
    ensure_topics(chosen)
    with temporary_settings(
        {PREFECT_API_URL: prefect_server.prefect_api_url, PREFECT_HOME: tmp_path / "prefect-client"}
    ):
        yield chosen


def run(settings: Settings, command: object, *arguments: str) -> Result:
    result = CliRunner().invoke(command, arguments, obj=Context(lambda: settings))  # type: ignore[arg-type]
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert not {letter for letter in result.output if not letter.isprintable()} - {"\n"}
    return result


def test_any_names_go_from_readings_to_forecasts_and_the_audit(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [*rounds(settings, SENSORS, range(STEPS)), REJECTED]
    publish(settings, messages)
    assert ingest(settings).readings == len(SENSORS) * STEPS
    history = History(settings.history_path, settings.features)
    assert history.columns() == tuple(FEATURES)

    # A plot that fails must not end the retraining.
    monkeypatch.setattr("pipeline.evaluation.report.draw_loss", lambda epochs: 1 / 0)
    report = retrain()
    promote(settings, report.version)
    assert str(report.version) in run(settings, models).output

    source = RegistryChampion(settings)
    with running(settings, source) as forecaster:  # type: ignore[arg-type]
        wait_until(lambda: forecaster.counters.readings == len(messages), 120, "all readings were processed")
    assert verify(settings, source.load).faults == {}
    latest = {forecast.sensor_id: forecast for forecast in read_forecasts(settings)}
    assert set(latest) == set(SENSORS)

    found = forecasts_of_mlflow(settings, report.version, monkeypatch)
    assert set(found["sensor_id"]) == set(SENSORS)
    for sensor, forecast in latest.items():
        rows = found[(found["sensor_id"] == sensor) & (found["target"] == "offset")].sort_values("step")
        assert (rows["issued_at"] == pd.Timestamp(microseconds(forecast.issued_at), unit="us", tz="UTC")).all()
        assert np.isfinite(rows[["0.1", "0.5", "0.9"]].to_numpy()).all()

    output = run(settings, dlq, "list").output
    assert r"[/plant/line1]\x1b[31m" in output
    out = tmp_path / "scores"
    shown = run(settings, backtest, "--epochs", "1", "--metrics", "sensors", "--out", str(out)).output
    assert "roof[/a]" in shown
    assert r"_x\x1b[31m\u202e|<script>" in shown
    assert {"scores.json", "scores.png", "forecasts.png"} <= {path.name for path in out.iterdir()}


def forecasts_of_mlflow(settings: Settings, version: int, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """The forecasts of the registered pyfunc, as a user of MLflow gets them."""
    import mlflow  # only here: five of six processes run no such test

    monkeypatch.setenv("MLFLOW_TRACKING_URI", settings.mlflow_tracking_uri)
    assert Registry(settings).version(version).version == version
    loaded = mlflow.pyfunc.load_model(f"models:/{settings.model_name}/{version}")
    frame = History(settings.history_path, settings.features).scan().collect().to_pandas()
    frame = frame.rename(columns={"feature:offset": "offset2", "offset": "position", "partition": "place"})
    frame = frame.rename(columns={"offset2": "offset", "feature:partition": "partition"})
    taken = ["sensor", "time", "offset", "partition", "feature:timestamp", "feature:sensor_id"]
    predicted: pd.DataFrame = loaded.predict(frame.sort_values("timestamp")[["sensor_id", "timestamp", *taken]])
    return predicted
