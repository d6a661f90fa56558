"""Golden records and models of an earlier commit: this code reads them, writes the same, and serves the models."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from model.artefact import load_artefact, save_artefact
from model.state import state_dtype
from model.stepper import Stepper
from pipeline.dead_letters import DeadLetter
from pipeline.event_headers import forecast_headers
from pipeline.forecaster.positions import POSITION_KEY, CommittedPosition, PositionRecord
from pipeline.messages import (
    ReadingDecoder,
    Rejected,
    StateTag,
    decode_forecast,
    decode_state,
)
from tests.compatibility.golden import (
    CASES,
    FOLDER,
    MODEL_VERSION,
    NAMES_FILE,
    NEW_EXPERTS,
    NEW_HEADERS,
    NEW_STATE_FIELDS,
    RULE,
    Golden,
    Record,
    layout,
    without_new,
)
from tests.compatibility.names import find_command, names, options_of

PARTS = ("before", "after")
# The first fields of a state, which keep their meaning under every rule.
PREFIX = ("last_us", "origin", "offset", "steps", "accepted", "anchors")


@pytest.fixture(params=CASES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden.read(request.param)


def states_of(golden: Golden, part: str) -> list[Record]:
    return [record for record in golden.records(part, "state") if record.key != POSITION_KEY]


def dtype_of(golden: Golden) -> np.dtype[Any]:
    """The record of a state in this code."""
    return state_dtype(load_artefact(golden.artefact).config, golden.settings().adaptation)


def decoded(golden: Golden, record: Record) -> Any:
    """The reading in a record; None if it is rejected."""
    try:
        return ReadingDecoder(golden.settings().features).decode(record.key, record.value)
    except Rejected:
        return None


# --- records ----------------------------------------------------------------------------------------------------------


def test_the_fingerprint_of_the_settings_differs_by_the_rule_of_adaptation_alone(
    golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (golden.settings().fingerprint == golden.content["fingerprint"]) == golden.keeps_states
    monkeypatch.setattr("pipeline.settings.ADAPTATION_RULE", RULE)
    assert golden.settings().fingerprint == golden.content["fingerprint"]


@pytest.mark.parametrize("part", PARTS)
def test_decoded_states_are_encoded_to_the_same_bytes(golden: Golden, part: str) -> None:
    size = dtype_of(golden).itemsize
    records = states_of(golden, part)
    assert len(records) == 3  # one per sensor
    tag_then = StateTag(MODEL_VERSION, golden.content["fingerprint"])
    for record in records:
        assert record.value is not None
        tag, row = decode_state(record.value)
        assert tag == tag_then
        assert tag.encode(row) == record.value
        if golden.keeps_states:
            assert len(row) == size
    values = [record.value for record in records]
    places, _ = tag_then.unpack_rows(values, len(row))
    assert places == list(range(len(records)))
    ours = StateTag(MODEL_VERSION, golden.settings().fingerprint)
    assert ours.unpack_rows(values, size)[0] == (places if golden.keeps_states else [])  # no state is misread


def test_the_layout_of_a_state_is_unchanged_under_the_same_rule(golden: Golden) -> None:
    ours, theirs = list(layout(dtype_of(golden))), golden.content["layout"]
    assert ours[: len(PREFIX)] == theirs[: len(PREFIX)]
    if golden.keeps_states:
        assert ours == theirs


@pytest.mark.parametrize("part", PARTS)
def test_a_state_holds_the_offset_and_time_of_its_last_reading(golden: Golden, part: str) -> None:
    """The first fields of a state keep their meaning, because models of other versions continue from them."""
    whole = dtype_of(golden)
    dtype = np.dtype([(name, whole[name]) for name in PREFIX])
    readings = {
        (record.partition, record.offset): record for each in PARTS for record in golden.records(each, "readings")
    }
    for record in states_of(golden, part):
        assert record.key is not None
        assert record.value is not None
        state = np.frombuffer(decode_state(record.value)[1], dtype, 1)[0]
        last = decoded(golden, readings[record.partition, int(state["offset"])])
        assert last.sensor_id == record.key.decode()
        assert last.timestamp_us == state["last_us"]


@pytest.mark.parametrize("part", PARTS)
def test_decoded_positions_are_encoded_to_the_same_bytes(golden: Golden, part: str) -> None:
    positions = [record for record in golden.records(part, "state") if record.key == b"\xffposition"]
    assert len(positions) == 2  # one per partition
    for record in positions:
        assert record.value is not None
        recorded = PositionRecord.decode(record.value)
        assert recorded.encode() == record.value
        content = json.loads(record.value)
        assert content["owner"] == recorded.owner
        assert content["position"] == {"next": recorded.position.next, "held_from": recorded.position.held_from}
        offset, metadata = golden.committed(part)[record.partition]
        committed = recorded.position.to_commit()
        assert (committed.offset, committed.metadata) == (offset, metadata)
        assert CommittedPosition.of(committed) == CommittedPosition(recorded.position)


def test_a_golden_stream_was_stopped_while_readings_were_buffered() -> None:
    golden = Golden.read("light")
    positions = [
        json.loads(record.value or b"") for record in golden.records("before", "state") if record.key == POSITION_KEY
    ]
    buffered_from = [content["position"]["held_from"] for content in positions]
    assert None in buffered_from
    assert any(offset is not None for offset in buffered_from)


def test_decoded_forecasts_are_encoded_to_the_same_bytes_but_for_two_headers(golden: Golden) -> None:
    found = golden.records("after", "forecasts")
    assert found
    for record in found:
        forecast = decode_forecast(record.value or b"")
        assert msgspec.json.encode(forecast) == record.value
        traceparent = dict(record.headers).get("traceparent")
        headers = forecast_headers(forecast, traceparent)
        assert without_new(headers) == list(record.headers)
        assert [name for name, _ in headers if name in NEW_HEADERS] == list(NEW_HEADERS)
    assert any("traceparent" in dict(record.headers) for record in found)


def test_each_record_is_decoded_or_rejected_as_before(golden: Golden) -> None:
    reasons = {}
    for part in PARTS:
        for record in golden.records(part, "dead_letters"):
            letter = DeadLetter.of(record)
            assert letter is not None
            reasons[letter.partition, letter.offset] = letter.reason
    decoder = ReadingDecoder(golden.settings().features)
    found = {}
    for part in PARTS:
        for record in golden.records(part, "readings"):
            try:
                decoder.decode(record.key, record.value)
            except Rejected as rejected:
                found[record.partition, record.offset] = rejected.reason
    assert found == reasons


# --- the model --------------------------------------------------------------------------------------------------------


def test_a_saved_model_equals_the_loaded_one(golden: Golden, tmp_path: Path) -> None:
    """A forecaster of the earlier commit can serve a model that this code registers."""
    save_artefact(load_artefact(golden.artefact), tmp_path / "artefact")
    assert (tmp_path / "artefact" / "config.json").read_bytes() == (golden.artefact / "config.json").read_bytes()
    ours, theirs = (
        torch.load(folder / "weights.pt", weights_only=True) for folder in (tmp_path / "artefact", golden.artefact)
    )
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("golden", [case for case in CASES if Golden.read(case).keeps_states], indirect=True)
def test_the_model_continues_from_golden_states_with_equal_forecasts(golden: Golden) -> None:
    """States that adapt under another rule are rebuilt instead; the test on servers shows that."""
    settings = golden.settings()
    stepper = Stepper(load_artefact(golden.artefact), settings.adaptation)
    records = states_of(golden, "before")
    rows = b"".join(decode_state(record.value or b"")[1] for record in records)
    states = np.zeros(len(records), stepper.dtype)
    known = [name for name in stepper.dtype.names or () if name not in NEW_STATE_FIELDS]
    then = np.frombuffer(rows, np.dtype([(name, stepper.dtype[name]) for name in known]))
    for name in known:
        states[name] = then[name]
    sensors = [(record.key or b"").decode() for record in records]
    readings = {
        (record.partition, record.offset): record for each in PARTS for record in golden.records(each, "readings")
    }
    made = [decode_forecast(record.value or b"") for record in golden.records("after", "forecasts")]
    stepped = [decoded(golden, readings[forecast.input.partition, forecast.input.offset]) for forecast in made]
    found = stepper.step(
        states,
        sensors,
        np.array([sensors.index(reading.sensor_id) for reading in stepped]),
        np.array([reading.timestamp_us for reading in stepped]),
        np.array([reading.values for reading in stepped]),
        np.array([forecast.input.offset for forecast in made]),
    )
    for place, forecast in enumerate(made):
        assert forecast.state.origin == found.origin[place]
        assert forecast.state.steps == found.steps[place]
        assert forecast.state.warm == found.warm[place]
        numbers = np.array([list(levels.values()) for levels in forecast.quantiles.values()])
        np.testing.assert_allclose(found.quantiles[place], numbers, rtol=1e-5, atol=1e-5)
        if forecast.weights is not msgspec.UNSET:
            shares = np.array([list(experts.values()) for experts in forecast.weights.values()])
            np.testing.assert_allclose(found.weights[place], shares, atol=6e-4)


# --- names ------------------------------------------------------------------------------------------------------------

GOLDEN_NAMES = {name: content for name, content in json.loads(NAMES_FILE.read_text()).items() if name != "commit"}


def test_every_setting_keeps_its_name_and_default() -> None:
    ours = names()["settings"]
    assert {name: ours.get(name, "gone") for name in GOLDEN_NAMES["settings"]} == GOLDEN_NAMES["settings"]


@pytest.mark.parametrize(("path", "options"), GOLDEN_NAMES["commands"].items())
def test_every_command_keeps_its_name_and_options(path: str, options: list[str]) -> None:
    command = find_command(path)
    assert command is not None
    assert set(options) <= set(options_of(command))
    assert options.count("ARGUMENT") == options_of(command).count("ARGUMENT")


@pytest.mark.parametrize(
    "kind", sorted(GOLDEN_NAMES.keys() - {"settings", "commands", "flows", "experts in a forecast"})
)
def test_every_name_still_exists(kind: str) -> None:
    ours = names()[kind]
    assert [name for name in GOLDEN_NAMES[kind] if name not in ours] == []


@pytest.mark.parametrize("kind", ["flows", "experts in a forecast"])
def test_flows_and_experts_keep_their_names_and_order(kind: str) -> None:
    """New parameters of a flow come behind the known ones."""
    ours = names()[kind]
    known = GOLDEN_NAMES[kind]
    assert {name: ours.get(name, [])[: len(own)] for name, own in known.items()} == known
    if kind == "experts in a forecast":
        new = {name: set(ours[name]) - set(own) for name, own in known.items()}
        assert new == {"off": set(), "light": set(NEW_EXPERTS), "full": set(NEW_EXPERTS)}


def test_the_golden_files_are_of_one_commit() -> None:
    commits = {json.loads(path.read_text())["commit"] for path in FOLDER.glob("*.json")}
    assert len(commits) == 1
