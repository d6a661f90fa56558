"""Settings come from a file and the environment; contradictory settings are refused with a plain message."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import deploy
from model.config import ANCHORS, Adaptation
from model.known_ahead import OutlookConfig
from pipeline.errors import SettingsError
from pipeline.settings import Settings, load_settings


def write(folder: Path, text: str) -> Path:
    path = folder / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(folder: Path, text: str) -> str:
    with pytest.raises(SettingsError) as raised:
        load_settings(write(folder, text))
    assert raised.value.exit_code == 2
    return str(raised.value)


def test_the_defaults_are_valid() -> None:
    settings = load_settings()
    assert settings == Settings()
    assert settings.history_path == Path(".streamgru/history")
    assert settings.season == 24


def test_the_example_file_is_valid() -> None:
    settings = load_settings(Path(deploy.__path__[0]) / "beijing.toml")
    assert set(settings.targets) <= set(settings.features)


def test_the_environment_outranks_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, 'horizon_steps = 5\nmodel_name = "mine"\n[kafka]\npartitions = 3\n')
    monkeypatch.setenv("STREAMGRU_HORIZON_STEPS", "7")
    monkeypatch.setenv("STREAMGRU_KAFKA__BOOTSTRAP_SERVERS", "broker:9092")
    monkeypatch.setenv("STREAMGRU_SETTINGS", str(path))
    settings = load_settings()
    assert (settings.horizon_steps, settings.model_name) == (7, "mine")
    assert (settings.kafka.partitions, settings.kafka.bootstrap_servers) == (3, "broker:9092")


def test_a_named_file_outranks_the_one_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMGRU_SETTINGS", str(tmp_path / "missing.toml"))
    with pytest.raises(SettingsError, match=r"missing\.toml cannot be read: No such file"):
        load_settings()
    assert load_settings(write(tmp_path, "horizon_steps = 5")).horizon_steps == 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("horizon_steps = ", "is not valid TOML"),
        ("horizont_steps = 3", "horizont_steps in line 1 is not a setting; did you mean horizon_steps?"),
        ("horizon_steps = 0", "horizon_steps: Input should be greater than or equal to 1"),
        ('horizon_steps = "many"', "horizon_steps: Input should be a valid integer"),
        ("features = []", "features: "),
        ('features = ["a", "a"]\ntargets = ["a"]', "features must differ from each other"),
        ('features = ["a\\u0000b"]\ntargets = ["a\\u0000b"]', "a feature cannot contain control characters: 'a\\x00b'"),
        ('features = ["a"]\ntargets = ["b"]', "targets must be among the features, which lack b"),
        ("quantiles = [0.1, 0.9]", "quantile levels must contain 0.5"),
        ("quantiles = [0.5, 1.0]", "quantile levels lie strictly between 0 and 1"),
        ("quantiles = [0.5, 0.5]", "quantile levels must differ"),
        ("cadence_s = 1e-7", "cadence_s must be at least a microsecond"),
        ("[kafka]\npartitions = 0", "kafka.partitions: Input should be greater than or equal to 1"),
        ('[kafka.topics]\nreadings = "a b"', "'a b' is not a topic name"),
        ('[kafka.topics]\nreadings = "forecasts"', "the topics must differ from each other"),
        ("[forecaster]\nrequest_timeout_s = 4", "request_timeout_s (4) must be below delivery_timeout_s (4): timeouts"),
        ("[forecaster]\ndelivery_timeout_s = 7", "delivery_timeout_s (7) must be below session_timeout_s (6)"),
        ("[forecaster]\nsession_timeout_s = 9", "session_timeout_s (9) must be below transaction_timeout_s (8)"),
        ("[forecaster]\npoll_interval_s = 7.5", "transaction_timeout_s (8) must be below poll_interval_s (7.5)"),
        ("[forecaster]\nsession_timeout_s = 3", "session_timeout_s: Input should be greater than or equal to 6"),
        (
            '[forecaster]\nadaptation = "off"\ncalibration = false\nrewarm_steps = 514',
            "forecaster.rewarm_steps must be at most 513",
        ),
        ("[schedules.ingest]\n", "a schedule has either cron or interval_s"),
        ('[schedules.ingest]\ncron = "* * * * *"\ninterval_s = 5', "a schedule has either cron or interval_s"),
        ("[training]\nbudget_s = inf", "training.budget_s: Input should be a finite number"),
        ("[training]\nseed = -1", "training.seed: Input should be greater than or equal to 0"),
        ("[training]\nseed = 9223372036854775808", "training.seed: Input should be less than or equal to 92233720"),
        ("[schedules.ingest]\ninterval_s = inf", "schedules.ingest.interval_s: Input should be a finite number"),
        ("cadence_s = inf", "cadence_s: Input should be a finite number"),
        ("[outlooks]\nsteps = 3", "outlooks: name the covariates of the outlooks, or leave out steps and groups"),
        ('[outlooks]\ncovariates = ["a", "a"]', "outlooks: covariates: 'a' is repeated"),
        ('[outlooks]\ncovariates = ["a"]\n[outlooks.groups]\nb = []', "outlooks: group 'b' names no sensor"),
        ('[outlooks]\ncovariates = ["a"]\n[outlooks.groups]\nb = ["c", "c"]', "group 'b': 'c' is repeated"),
        (
            '[outlooks]\ncovariates = ["a"]\n[outlooks.groups]\nb = ["c"]\nd = ["b"]',
            "outlooks: group 'd': its sensor 'b' is also the name of a group; rename the group",
        ),
        ('[outlooks]\ncovariates = [""]', "a name cannot be empty or contain control characters: ''"),
        ("[outlooks]\ncovariates = ['a']\nsteps = 0", "outlooks.steps: Input should be greater than or equal to 1"),
        ('[training]\npreset = "deep"', "training.preset: Input should be 'stateful' or 'plain'"),
    ],
)
def test_an_invalid_setting_is_named_with_its_file(tmp_path: Path, text: str, expected: str) -> None:
    message = complaint(tmp_path, text)
    assert expected in message
    assert str(tmp_path / "settings.toml") in message


def test_an_invalid_environment_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMGRU_KAFKA__PARTITIONS", "many")
    with pytest.raises(SettingsError, match=r"the environment \(STREAMGRU_…\):\n  kafka.partitions: Input should be"):
        load_settings()


def test_quantiles_are_sorted() -> None:
    assert Settings(quantiles=(0.9, 0.5, 0.1)).quantiles == (0.1, 0.5, 0.9)


@pytest.mark.parametrize(
    ("cadence_s", "season_steps", "season"),
    [
        (3600, None, 24),
        (900, None, 96),
        (86_400, None, 1),
        (604_800, None, 1),
        (3600, 7, 7),
        (10, None, 8_640),
        (1, None, 1),
        (1, 60, 60),
    ],
)
def test_the_season_is_a_day_unless_set(cadence_s: float, season_steps: int | None, season: int) -> None:
    assert Settings(cadence_s=cadence_s, season_steps=season_steps).season == season


@pytest.mark.parametrize(
    "changed",
    [
        {"features": ("value", "other")},
        {"cadence_s": 60.0},
        {"horizon_steps": 3},
        {"quantiles": (0.5,)},
        {"max_gap_steps": 3},
        {"grace_steps": 1.5},
        {"forecaster": {"adaptation": "off"}},
        {"forecaster": {"calibration": False}},
        {"outlooks": {"covariates": ["TEMP"]}},
    ],
)
def test_the_fingerprint_changes_with_each_setting_that_shapes_a_forecast(changed: dict[str, Any]) -> None:
    assert Settings(**changed).fingerprint != Settings().fingerprint


def test_the_fingerprint_changes_with_covariates_kept_steps_and_members_of_a_group() -> None:
    groups = {"city": ["roof", "harbour"]}
    made: list[dict[str, Any]] = [
        {"covariates": ["TEMP"]},
        {"covariates": ["TEMP", "WSPM"]},
        {"covariates": ["WSPM", "TEMP"]},
        {"covariates": ["TEMP"], "steps": 9},
        {"covariates": ["TEMP"], "groups": groups},
        {"covariates": ["TEMP"], "groups": {"city": ["roof"]}},
    ]
    prints = [Settings(outlooks=each).fingerprint for each in made]
    assert len(set(prints)) == len(made)
    assert Settings(outlooks={"covariates": ["TEMP"], "steps": 48}).fingerprint == prints[0], "twice the horizon"
    swapped = {"covariates": ["TEMP"], "groups": {"city": ["harbour", "roof"]}}
    assert Settings(outlooks=swapped).fingerprint == prints[4]


def test_outlooks_of_the_settings_become_those_of_a_model() -> None:
    assert Settings().outlook_config is None
    made = Settings(horizon_steps=7, outlooks={"covariates": ["TEMP"], "groups": {"b": ["y", "x"], "a": ["z"]}})
    assert made.outlook_config == OutlookConfig(("TEMP",), 14, (("a", ("z",)), ("b", ("x", "y"))))


def test_the_fingerprint_without_grace_equals_that_of_versions_without_the_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.settings.ADAPTATION_RULE", 4)  # the rule of these versions
    assert Settings(grace_steps=0).fingerprint == Settings().fingerprint == "2c97dad8c733"


@pytest.mark.parametrize("steps", [-1, float("nan"), float("inf")])
def test_grace_is_a_number_of_cadences(steps: float) -> None:
    with pytest.raises(ValidationError, match="grace_steps"):
        Settings(grace_steps=steps)


def test_the_fingerprint_ignores_settings_that_do_not_shape_a_forecast() -> None:
    other = Settings(home=Path("elsewhere"), model_name="other", kafka={"partitions": 3}, training={"epochs": 1})
    assert other.fingerprint == Settings().fingerprint
    assert len(other.fingerprint) == 12


def test_a_password_is_not_shown() -> None:
    settings = Settings(kafka={"sasl_username": "me", "sasl_password": "secret"})
    assert "secret" not in repr(settings)


def test_the_servers_are_the_local_stacks_unless_set() -> None:
    settings = Settings(stack={"kafka_port": 1, "mlflow_port": 2, "prefect_port": 3})
    assert settings.kafka.bootstrap_servers == "127.0.0.1:1"
    assert settings.mlflow_tracking_uri == "http://127.0.0.1:2"
    assert settings.prefect_api_url == "http://127.0.0.1:3/api"
    assert Settings(kafka={"bootstrap_servers": "b:9"}, stack={"kafka_port": 1}).kafka.bootstrap_servers == "b:9"


@pytest.mark.parametrize("adaptation", [Adaptation(), Adaptation("off", True), Adaptation("light"), Adaptation("full")])
def test_rewarm_steps_beyond_the_reach_of_the_anchors_are_refused(adaptation: Adaptation) -> None:
    promised = (ANCHORS - 1) * adaptation.anchor_spacing + 1

    def with_rewarm_steps(steps: int | None) -> Settings:
        return Settings(
            forecaster={
                "adaptation": adaptation.level,
                "calibration": adaptation.calibrated,
                "rewarm_steps": steps,
            }
        )

    assert with_rewarm_steps(None).rewarm_steps == adaptation.replay_steps <= promised
    assert with_rewarm_steps(promised).rewarm_steps == promised
    with pytest.raises(ValidationError, match="rewarm_steps"):
        with_rewarm_steps(promised + 1)
