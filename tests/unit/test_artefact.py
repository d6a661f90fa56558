"""Models on disk are loaded as they were saved; a damaged file is named and its model refused."""

import json
import resource
import zipfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.artefact import CONFIG_FILE, WEIGHTS_FILE, ArtefactError, config_differences, load_artefact, save_artefact
from model.artefact_size import size_faults, weight_bytes
from model.config import Adaptation, ModelConfig
from model.forecaster import Forecaster

CONFIG = ModelConfig(
    features=("load", "größe"),
    targets=("load",),
    cadence_us=60_000_000,
    horizon_steps=4,
    hidden_size=8,
    sensors=("a", "b/ü"),
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    forecaster = Forecaster(CONFIG)
    forecaster.scale_spread.copy_(torch.tensor([2.0, 1 / 3], dtype=torch.float64))
    save_artefact(forecaster, tmp_path / "model")
    return tmp_path / "model"


def test_a_loaded_model_equals_the_saved_one_to_the_bit(saved: Path) -> None:
    torch.manual_seed(0)
    original = Forecaster(CONFIG)
    loaded = load_artefact(saved)
    assert loaded.config == CONFIG
    assert not loaded.training
    assert loaded.scale_spread.tolist() == [2.0, 1 / 3]
    for name, tensor in original.state_dict().items():
        if name != "scale_spread":
            assert torch.equal(loaded.state_dict()[name], tensor), name


# Names of format 1. Every version of the program reads them, regardless of attribute names in memory.
NAMES_ON_DISK = {
    "embedding.weight",
    "gru.rnn.weight_ih_l0",
    "gru.rnn.weight_hh_l0",
    "gru.rnn.bias_ih_l0",
    "gru.rnn.bias_hh_l0",
    "gru.rnn.weight_ih_l1",
    "gru.rnn.weight_hh_l1",
    "gru.rnn.bias_ih_l1",
    "gru.rnn.bias_hh_l1",
    "gru.head.weight",
    "gru.head.bias",
    "skip.weight",
    "scale_spread",
}


def test_weights_keep_their_names_and_format_number_on_disk(saved: Path) -> None:
    weights = torch.load(saved / WEIGHTS_FILE, weights_only=True)
    assert weights.keys() == NAMES_ON_DISK
    assert json.loads((saved / CONFIG_FILE).read_text(encoding="utf-8"))["format_version"] == 1
    core = load_artefact(saved).gru
    assert torch.equal(core.gru.weight_hh_l1, weights["gru.rnn.weight_hh_l1"])
    assert torch.equal(core.fc.weight, weights["gru.head.weight"])


def test_a_weight_under_another_name_is_refused(saved: Path) -> None:
    weights = torch.load(saved / WEIGHTS_FILE, weights_only=True)
    weights["gru.tail.bias"] = weights.pop("gru.head.bias")
    torch.save(weights, saved / WEIGHTS_FILE)
    with pytest.raises(ArtefactError, match="does not hold the weights"):
        load_artefact(saved)


def test_a_save_leaves_only_its_two_files(saved: Path) -> None:
    assert {path.name for path in saved.iterdir()} == {CONFIG_FILE, WEIGHTS_FILE}
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_saving_again_replaces_the_model(saved: Path) -> None:
    other = replace(CONFIG, horizon_steps=9)
    save_artefact(Forecaster(other), saved)
    assert load_artefact(saved).config == other


def test_a_save_that_fails_leaves_the_old_model(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space"):
        save_artefact(Forecaster(CONFIG), saved)
    assert [path.name for path in saved.parent.iterdir()] == ["model"]
    monkeypatch.undo()
    assert load_artefact(saved).config == CONFIG


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(ArtefactError, match=name):
        load_artefact(saved)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize("keep", [0, 1, 40, 400, -1])
def test_a_truncated_file_is_named(saved: Path, name: str, keep: int) -> None:
    whole = (saved / name).read_bytes()
    (saved / name).write_bytes(whole[:keep])
    with pytest.raises(ArtefactError, match=name):
        load_artefact(saved)


def test_pickled_code_is_refused(saved: Path) -> None:
    torch.save({"weights": Path("anything")}, saved / WEIGHTS_FILE)
    with pytest.raises(ArtefactError, match=WEIGHTS_FILE):
        load_artefact(saved)


def test_weights_of_another_shape_are_refused(saved: Path) -> None:
    torch.save(Forecaster(replace(CONFIG, hidden_size=9)).stored_weights(), saved / WEIGHTS_FILE)
    with pytest.raises(ArtefactError, match="does not hold the weights"):
        load_artefact(saved)


def test_non_finite_weights_are_refused(saved: Path) -> None:
    weights = torch.load(saved / WEIGHTS_FILE, weights_only=True)
    weights["gru.head.bias"][0] = torch.nan
    torch.save(weights, saved / WEIGHTS_FILE)
    with pytest.raises(ArtefactError, match="non-finite weights"):
        load_artefact(saved)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format_version": 99}, "format 99"),
        ({"horizon_steps": 0}, "horizon_steps must be at least 1"),
        ({"hidden_size": "many"}, CONFIG_FILE),
        ({"hidden_size": 2.5}, CONFIG_FILE),
        ({"colour": "red"}, "colour"),
        ({"quantiles": [0.9, 0.5]}, "quantiles"),
    ],
)
def test_an_invalid_configuration_is_refused_with_the_reason(saved: Path, change: dict[str, object], told: str) -> None:
    content = json.loads((saved / CONFIG_FILE).read_text(encoding="utf-8"))
    (saved / CONFIG_FILE).write_text(json.dumps(content | change), encoding="utf-8")
    with pytest.raises(ArtefactError, match=told):
        load_artefact(saved)


def test_each_difference_between_model_and_settings_is_one_sentence() -> None:
    fitting = {
        "features": ["load", "größe"],
        "targets": ["load"],
        "cadence_us": 60_000_000,
        "horizon_steps": 4,
        "quantiles": [0.1, 0.5, 0.9],
        "max_gap_steps": 168,
        "outlook_covariates": [],
    }
    assert config_differences(CONFIG, **fitting) == []  # type: ignore[arg-type]
    differing = config_differences(CONFIG, **(fitting | {"horizon_steps": 5, "features": ["load", "heat"]}))  # type: ignore[arg-type]
    assert differing == [
        "the model was made for features load, größe, and the settings say load, heat",
        "the model was made for horizon_steps 4, and the settings say 5",
    ]


# --- absurd sizes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, preset="plain", num_layers=1, embedding_size=0),
        replace(CONFIG, num_layers=3, hidden_size=5, horizon_steps=7, quantiles=(0.2, 0.5), lag_steps=0),
        replace(CONFIG, profile_slots=0, sensors=(), targets=("load", "größe")),
    ],
)
def test_the_size_of_a_model_is_known_from_its_configuration(config: ModelConfig) -> None:
    weights = Forecaster(config).state_dict().values()
    assert weight_bytes(config) == sum(tensor.numel() * tensor.element_size() for tensor in weights)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("hidden_size", 16_384, "hidden_size 16,384"),
        ("hidden_size", 10**12, "its weights would take"),
        ("num_layers", 10**9, "num_layers is 1,000,000,000, and the limit is 64"),
        ("horizon_steps", 10**9, "1,000,000,000 steps"),
        ("quantiles", [0.5 + number / 10**7 for number in range(10**6)], "1,000,000 quantiles"),
        ("lag_steps", 10**7, "the state of a sensor would take"),
        ("embedding_size", 10**9, "its weights would take"),
        ("season_steps", 10**30, None),
        ("profile_slots", 10**30, None),
        ("max_gap_steps", 10**30, None),
    ],
)
def test_an_absurd_size_is_refused_before_memory_is_taken(saved: Path, field: str, value: object, said: str) -> None:
    path = saved / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {field: value}))
    began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if said is None:  # the field alone does not make the model large
        with suppress(ArtefactError):
            load_artefact(saved)
    else:
        with pytest.raises(ArtefactError, match="too large") as caught:
            load_artefact(saved)
        assert said in str(caught.value)
        assert str(path) in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began < 200_000  # KB


def test_a_state_that_no_topic_takes_is_refused() -> None:
    large = replace(CONFIG, season_steps=1_000_000)
    assert size_faults(large) == []
    (fault,) = size_faults(large, Adaptation("light", calibrated=True))
    assert "the state of a sensor would take" in fault
    assert "season_steps 1,000,000, adaptation 'light'" in fault


def test_weights_smaller_or_larger_than_the_configuration_says_are_refused(saved: Path) -> None:
    path = saved / CONFIG_FILE
    content = path.read_text(encoding="utf-8")
    path.write_text(json.dumps(json.loads(content) | {"hidden_size": 500}))
    with pytest.raises(ArtefactError, match=r"weights.pt is damaged: it has .* bytes, and the weights of this model"):
        load_artefact(saved)
    path.write_text(content)
    with zipfile.ZipFile(saved / WEIGHTS_FILE, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights/data/99", bytes(100_000_000))
    with pytest.raises(ArtefactError, match="it unpacks to 100,0"):
        load_artefact(saved)
