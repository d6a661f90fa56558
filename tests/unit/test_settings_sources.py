"""Settings as people write them: lists with commas, mistyped names, odd encodings, absurd sizes, hidden passwords."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy.cli import streamgru
from model.artefact_size import size_faults
from model.config import ModelConfig
from pipeline.errors import SettingsError
from pipeline.settings import Settings, load_settings, unknown_variables
from pipeline.settings.file import read_settings_file
from pipeline.settings.sections import KafkaSettings
from pipeline.settings.variables import form, setting_paths

PASSWORD = "hunter2"


def complaint(monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    for name, text in variables.items():
        monkeypatch.setenv(f"STREAMGRU_{name}", text)
    with pytest.raises(SettingsError) as raised:
        load_settings()
    assert raised.value.exit_code == 2
    assert PASSWORD not in str(raised.value)
    return str(raised.value)


def file_complaint(folder: Path, content: bytes) -> str:
    path = folder / "settings.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsError) as raised:
        load_settings(path)
    assert PASSWORD not in str(raised.value)
    return str(raised.value)


# --- variables --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "features"),
    [
        ("temperature", ("temperature",)),
        ("temperature,humidity", ("temperature", "humidity")),
        (" PM2.5 , air temperature ", ("PM2.5", "air temperature")),
        ("5", ("5",)),
        ('["temperature"]', ("temperature",)),
        (' ["a,b", "c"] ', ("a,b", "c")),
    ],
)
def test_a_list_is_written_with_commas_or_as_json(
    monkeypatch: pytest.MonkeyPatch, text: str, features: tuple[str, ...]
) -> None:
    monkeypatch.setenv("STREAMGRU_FEATURES", text)
    monkeypatch.setenv("STREAMGRU_TARGETS", json.dumps(features))
    assert load_settings().features == features


def test_quantiles_are_written_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMGRU_QUANTILES", "0.9, 0.5,0.1")
    assert load_settings().quantiles == (0.1, 0.5, 0.9)


@pytest.mark.parametrize(
    ("text", "trouble"),
    [
        ('["a"', "STREAMGRU_FEATURES is not valid JSON: Expecting ',' delimiter at character 5 (it holds '[\"a\"')"),
        ('"a"', "STREAMGRU_FEATURES begins with a quote"),
        ("a,,b", "STREAMGRU_FEATURES has nothing before or after a comma (it holds 'a,,b')"),
        ("", "STREAMGRU_FEATURES is empty"),
        ('{"a": 1}', "STREAMGRU_FEATURES holds JSON of another kind than a list"),
        ("[1]", "features: Input should be text; STREAMGRU_FEATURES holds 1"),
        ("[" * 50_000, "STREAMGRU_FEATURES is not valid JSON: it is nested too deeply"),
    ],
)
def test_a_list_of_another_form_is_refused_with_the_form(
    monkeypatch: pytest.MonkeyPatch, text: str, trouble: str
) -> None:
    message = complaint(monkeypatch, FEATURES=text)
    assert trouble in message
    assert 'STREAMGRU_FEATURES=temperature,humidity, or as JSON, STREAMGRU_FEATURES=\'["temperature",' in message


def test_features_without_targets_say_that_targets_must_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    message = complaint(monkeypatch, FEATURES="temperature")
    assert "which lack value; the features are temperature; it is not set and by default ['value']" in message
    assert "set STREAMGRU_TARGETS, or targets in the file" in message


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("GATE__AUTOMATIC", "maybe", "gate.automatic: Input should be true or false; STREAMGRU_GATE__AUTOMATIC holds"),
        ("GATE__AUTOMATIC", "", "STREAMGRU_GATE__AUTOMATIC is empty; unset the variable for the default"),
        ("HORIZON_STEPS", "24h", "STREAMGRU_HORIZON_STEPS holds '24h'; for example STREAMGRU_HORIZON_STEPS=24"),
        ("KAFKA__RETENTION_S", "1 week", "STREAMGRU_KAFKA__RETENTION_S holds '1 week'; for example"),
        (
            "QUANTILES",
            "0,1;0,5",
            "STREAMGRU_QUANTILES holds '1;0'; write a list with commas, as STREAMGRU_QUANTILES=0.",
        ),
        ("SCHEDULES__INGEST", '{"cron": 5}', "STREAMGRU_SCHEDULES__INGEST, under schedules.ingest.cron, holds 5"),
        ("KAFKA__TOPICS__READINGS", "forecasts", "set by STREAMGRU_KAFKA__TOPICS__READINGS"),
        ("KAFKA__BOOTSTRAP_SERVER", "b:1", "did you mean STREAMGRU_KAFKA__BOOTSTRAP_SERVERS?"),
        ("KAFKA__PARTITIONS__X", "3", "STREAMGRU_KAFKA__PARTITIONS__X is not a setting"),
        ("TRAINING", "plain", "STREAMGRU_TRAINING is not valid JSON"),
        ("MODEL_NAME", "caf\udce9", "STREAMGRU_MODEL_NAME is not UTF-8"),
        ("TARGETS", "a\nb", "which lack 'a\\nb'; the features are value"),
        ("TRAINING", "[]", "STREAMGRU_TRAINING holds JSON of another kind than an object"),
    ],
)
def test_a_wrong_variable_is_named_with_its_value(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, expected: str
) -> None:
    assert expected in complaint(monkeypatch, **{name: text})


@pytest.mark.parametrize("text", ["true", "True", "1", "yes", "on"])
def test_true_has_several_spellings(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("STREAMGRU_TRAINING__WARM_START", text)
    assert load_settings().training.warm_start


def test_a_section_as_json_is_joined_with_its_variables_and_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('[kafka]\npartitions = 3\nreplication_factor = 2\nsasl_username = "file"\n', encoding="utf-8")
    monkeypatch.setenv("STREAMGRU_KAFKA", '{"partitions": 5, "sasl_username": "section"}')
    monkeypatch.setenv("STREAMGRU_KAFKA__SASL_USERNAME", "variable")
    monkeypatch.setenv("streamgru_schedules__ingest__interval_s", "60")  # lower case works, too
    settings = load_settings(path)
    assert (settings.kafka.partitions, settings.kafka.replication_factor) == (5, 2)
    assert settings.kafka.sasl_username == "variable"
    assert settings.schedules.ingest.interval_s == 60


@pytest.mark.parametrize(
    "variables",
    [
        {"KAFKA": '{"sasl_password": "hunter2", "partitions": "many"}'},
        {"KAFKA": '{"sasl_password": "hunter2"'},
        {"KAFKA": '{"sasl_passwrd": "hunter2"}'},
        {"KAFKA": '{"sasl_password": ["hunter2"]}'},
        {"KAFKA": PASSWORD},
        {"KAFKA__SASL_PASSWRD": PASSWORD},
        {"KAFKA__SASL_PASSWORD": PASSWORD, "KAFKA__TOPICS__STATE": "readings"},
        {"KAFKA__SASL_PASSWORD__X": PASSWORD},
        {"MLFLOW_TRACKING_URI": f"http://me:{PASSWORD}@registry", "CADENCE_S": "-1"},
    ],
)
def test_a_password_is_not_in_a_message(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    complaint(monkeypatch, **variables)


@pytest.mark.parametrize(
    "content", [b'kafka = "hunter2"', b'[[kafka]]\nsasl_password = "hunter2"', b"[kafka]\nsasl_password = hunter2"]
)
def test_a_password_in_a_broken_file_is_not_in_a_message(tmp_path: Path, content: bytes) -> None:
    file_complaint(tmp_path, content)


def test_unknown_variables_are_named_once_without_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMGRU_KAFKA_BOOTSTRAP_SERVERS", PASSWORD)
    monkeypatch.setenv("STREAMGRU_FEATURE", PASSWORD)
    monkeypatch.setenv("STREAMGRU_COLOUR", PASSWORD)
    monkeypatch.setenv("STREAMGRU_KAFKA_SERVICE_HOST", "10.0.0.1")  # set by Kubernetes
    monkeypatch.setenv("STREAMGRU_KAFKA_PORT_9092_TCP_ADDR", "10.0.0.1")
    assert unknown_variables() == [
        "STREAMGRU_COLOUR is not a setting",
        "STREAMGRU_FEATURE is not a setting; did you mean STREAMGRU_FEATURES?",
        "STREAMGRU_KAFKA_BOOTSTRAP_SERVERS is not a setting; did you mean STREAMGRU_KAFKA__BOOTSTRAP_SERVERS?",
    ]
    assert load_settings() == Settings()


def test_the_command_line_warns_of_an_unknown_variable_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMGRU_FEATURE", PASSWORD)
    done = CliRunner().invoke(streamgru, ["status"])
    assert done.stderr.count("warning: STREAMGRU_FEATURE is not a setting; did you mean STREAMGRU_FEATURES?") == 1
    assert PASSWORD not in done.output
    assert done.exit_code in (0, 1)


def test_every_setting_has_a_form_for_its_messages() -> None:
    for path in setting_paths(Settings):
        for toml in (True, False):
            assert form(Settings, path, toml=toml), path


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_byte_order_mark_at_the_beginning_of_the_file_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(b"\xef\xbb\xbfhorizon_steps = 5\r\ncadence_s = 60\r\n")
    assert (load_settings(path).horizon_steps, load_settings(path).cadence_s) == (5, 60)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("horizon_steps = 5\n".encode("utf-16"), "it is encoded in UTF-16 or UTF-32; save it as UTF-8"),
        (b"horizon_steps = 5\n# caf\xe9\n", "line 2 has the byte 0xE9, which is not UTF-8"),
        (
            b"\nmodel_name = roof\n",
            "(at line 2, column 14). A setting is a line such as horizon_steps = 24; text is in",
        ),
        (b"x = " + b"[" * 5_000, "is not valid TOML"),
        (b"horizon_steps = " + b"9" * 5_000, "a number of thousands of digits"),
        (
            b'features = "temperature"',
            "features: Input should be a list; it holds 'temperature' in line 1; for example",
        ),
        (b'\n[kafka]\n\npartitions = "many"', "it holds 'many' in line 4; for example partitions = 8 under [kafka]"),
        (b"[gate]\nmargn = 3", "gate.margn in line 2 is not a setting; did you mean gate.margin?"),
        (b'bootstrap_servers = "a"', "did you mean kafka.bootstrap_servers?"),
        (b"kafka = 3", "kafka is a section: write [kafka] and its settings in the lines below"),
        (b'quantiles = [\n  0.5,\n  "x",\n]', "it holds 'x' in line 1"),
        (b"#" * 1_048_577, "is larger than 1,048,576 bytes"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(tmp_path: Path, content: bytes, expected: str) -> None:
    message = file_complaint(tmp_path, content)
    assert expected in message
    assert str(tmp_path / "settings.toml") in message


def test_a_folder_as_settings_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        load_settings(tmp_path)


def test_the_line_of_a_setting_is_the_first_of_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('# one\nfeatures = [\n"a",\n]\n\n[kafka]\n# seven\npartitions = 3\n', encoding="utf-8")
    file = read_settings_file(path)
    assert [file.line(name) for name in (("features",), ("kafka",), ("kafka", "partitions"))] == [2, 6, 8]
    assert file.line(("gate",)) is None


# --- absurd values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("HORIZON_STEPS", "1000000000"),
        ("HORIZON_STEPS", "-1"),
        ("HORIZON_STEPS", "9" * 5_000),
        ("CADENCE_S", "1e300"),
        ("CADENCE_S", "nan"),
        ("QUANTILES", "nan,0.5"),
        ("QUANTILES", "[0.1, NaN, 0.5]"),
        ("QUANTILES", ",".join(str(number / 4_000) for number in range(1, 4_000))),
        ("FEATURES", ",".join(f"feature {number}" for number in range(10_000))),
        ("FEATURES", "a,a"),
        ("MAX_GAP_STEPS", "1000000000000"),
        ("MODEL_NAME", ""),
        ("MODEL_NAME", "../models"),
        ("KAFKA__MAX_READING_BYTES", "1e12"),
        ("KAFKA__REPLICATION_FACTOR", "100000"),
        ("FORECASTER__POLL_INTERVAL_S", "1e300"),
        ("TRAINING__EPOCHS", "1000000000000000"),
        ("SCHEDULES__INGEST__INTERVAL_S", "1e300"),
        ("MONITOR__RETRAIN_WITHIN_S", "1e300"),
    ],
)
def test_an_absurd_value_is_refused_with_its_variable(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    message = complaint(monkeypatch, **{name: text})
    assert f"STREAMGRU_{name}" in message
    assert len(message) < 1_000


def test_sizes_that_are_too_large_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = ",".join(str(number / 1_000) for number in range(1, 1_000))
    assert "9,990,000 numbers per forecast" in complaint(monkeypatch, HORIZON_STEPS="10000", QUANTILES=levels)


def test_a_forecast_that_the_settings_allow_fits_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = tuple(number / 200 for number in range(1, 141))
    made = Settings(horizon_steps=10_000, quantiles=levels[:-1])
    config = ModelConfig(made.features, made.targets, made.cadence_us, made.horizon_steps, quantiles=made.quantiles)
    assert not any("a forecast would take" in fault for fault in size_faults(config))
    assert any("a forecast would take" in fault for fault in size_faults(replace(config, quantiles=levels)))
    texts = ",".join(map(str, levels))
    assert "a message takes 1,398,101" in complaint(monkeypatch, HORIZON_STEPS="10000", QUANTILES=texts)


@pytest.mark.parametrize(
    ("name", "setting"), [("HOME", "home"), ("HISTORY", "history"), ("STACK__CACHE", "stack.cache")]
)
@pytest.mark.parametrize("below", ["", "/below/it"])
def test_a_file_in_place_of_a_folder_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, setting: str, below: str
) -> None:
    file = tmp_path / "file"
    file.touch()
    message = complaint(monkeypatch, **{name: f"{file}{below}"})
    assert f"{setting}: {file}{below}" in message
    assert f"{file} is a file" in message
    assert f"STREAMGRU_{name}" in message


def test_a_wrong_setting_does_not_end_in_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMGRU_FEATURES", '["temperature"')
    done = CliRunner().invoke(streamgru, ["status"])
    assert isinstance(done.exception, SettingsError)
    assert "STREAMGRU_FEATURES" in str(done.exception)


def test_an_error_of_a_section_hides_the_values_of_its_traceback() -> None:
    with pytest.raises(ValueError, match="partitions") as raised:
        KafkaSettings(sasl_password=PASSWORD, partitions=0)
    assert PASSWORD not in str(raised.value)
