"""Attributes in the settings: their form, the remarks about them, and a model with other attributes."""

from dataclasses import replace
from pathlib import Path

import pytest

from model.attributes import Attribute
from pipeline.errors import SettingsError
from pipeline.evaluation.evaluate import model_config
from pipeline.remarks.attributes import attribute_remarks, attributes_difference
from pipeline.settings import Settings, load_settings

SITES = Settings(attributes={"site": {"a": "urban", "b-*": "rural"}})


def read(path: Path, text: str) -> Settings:
    (path / "my.toml").write_text(text, encoding="utf-8")
    return load_settings(path / "my.toml")


def test_a_file_gives_attributes_by_sensor_and_by_pattern(tmp_path: Path) -> None:
    found = read(tmp_path, '[attributes.site]\ndongsi = "urban"\n"roof-*" = "roof"\n[attributes.type]\n"a.b" = "new"\n')
    site = Attribute("site", (("dongsi", "urban"), ("roof-*", "roof")))
    assert found.sensor_attributes == (site, Attribute("type", (("a.b", "new"),)))
    assert model_config(found).attributes == found.sensor_attributes


def test_a_variable_gives_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMGRU_ATTRIBUTES", '{"site": {"dongsi": "urban"}}')
    assert load_settings().sensor_attributes == (Attribute("site", (("dongsi", "urban"),)),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[attributes.site]\n", "the attribute site names no sensor"),
        ('[attributes.site]\na.b = "urban"\n', r"a sensor id with a dot needs quotes"),
        ("[attributes.site]\na = 3\n", "attributes"),
        ('[attributes.""]\na = "urban"\n', "the name of an attribute has 1 to 100 printable characters: ''"),
        ('[attributes."s\\n"]\na = "urban"\n', "1 to 100 printable characters"),
        ('[attributes]\nsite = "urban"\n', "attributes"),
    ],
)
def test_attributes_of_another_form_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read(tmp_path, text)


def test_attributes_belong_to_the_model_and_leave_the_fingerprint_alone() -> None:
    assert SITES.fingerprint == Settings().fingerprint
    assert "attributes" not in model_config(Settings()).to_json()


def test_sensors_without_a_value_are_named() -> None:
    assert attribute_remarks(["a", "b-1"], SITES) == []
    assert attribute_remarks(["a", "b-1", "c", "d", "e", "f"], SITES) == ["site has no value for 4 sensors: c, d, e, …"]
    assert attribute_remarks(["a", "b-1", "c"], SITES) == ["site has no value for 1 sensor: c"]
    assert attribute_remarks([], SITES) == []


def test_an_attribute_that_tells_no_sensors_apart_is_named() -> None:
    assert attribute_remarks(["b-1", "b-2"], SITES) == [
        "site has the value rural for all sensors here, so its effect cannot be learned"
    ]
    assert attribute_remarks(["c", "d"], SITES) == [
        "site has no value for any sensor here, so its effect cannot be learned"
    ]


def test_a_model_with_other_attributes_than_the_settings_is_noticed() -> None:
    config = model_config(SITES)
    advice = "; `streamgru retrain` trains a version with the attributes of the settings"
    assert attributes_difference(config, SITES) is None
    assert attributes_difference(config, Settings()) == (
        f"was trained with site, and the settings have no attributes{advice}"
    )
    other = replace(config, attributes=(Attribute("site", (("a", "rural"),)),))
    assert attributes_difference(other, SITES) == f"was trained with other values of site than the settings{advice}"
