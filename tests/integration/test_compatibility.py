"""The present forecaster continues the stream of an earlier commit, with the same forecasts."""

import json
from pathlib import Path
from typing import Any

import kafka.errors as client_errors
import numpy as np
import pytest
from kafka import KafkaProducer
from kafka.structs import OffsetAndMetadata, TopicPartition

from model.artefact import load_artefact
from model.state import state_dtype
from pipeline.kafka.clients import make_admin
from pipeline.kafka.topics import ensure_topics, find_topic_id
from pipeline.messages import StateTag, decode_state
from pipeline.settings import Settings
from tests.compatibility.golden import (
    CASES,
    MODEL_VERSION,
    NEW_EXPERTS,
    NEW_STATE_FIELDS,
    Golden,
    Record,
    without_new,
)
from tests.compatibility.write import has_caught_up, publish
from tests.integration.stream_rig import FolderChampion, Message, read_all, running
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

POSITION = b"\xffposition"


@pytest.fixture(params=CASES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden.read(request.param)


@pytest.fixture
def settings(golden: Golden, broker: Settings, tmp_path: Path) -> Settings:
    made = golden.settings(home=tmp_path, stack=broker.stack.model_dump())
    ensure_topics(made)
    return made


def test_a_forecaster_continues_the_stream_of_an_earlier_commit_and_rebuilds_states_of_another_rule_once(
    golden: Golden, settings: Settings, tmp_path: Path
) -> None:
    champion = FolderChampion(tmp_path / "models", settings)
    (tmp_path / "models" / str(MODEL_VERSION)).symlink_to(golden.artefact)
    champion.promote(MODEL_VERSION)
    leave(golden, settings)
    with running(settings, champion) as forecaster:
        publish(settings, [message(record) for record in golden.records("after", "readings")])
        wait_until(lambda: has_caught_up(settings), 60, "all readings were processed")
    counters = forecaster.counters
    restored, rebuilt = (3, 0) if golden.keeps_states else (0, 3)
    assert (counters.restored_sensors, counters.rebuilt_sensors, counters.cold_sensors) == (restored, rebuilt, 0)
    assert counters.held_lost == 0
    compare_forecasts(golden, settings)
    compare_letters(settings, golden.records("after", "dead_letters"))
    compare_states(golden, settings)


def leave(golden: Golden, settings: Settings) -> None:
    """Write the records of the earlier commit to the topics; readings get the same offsets."""
    topics = settings.kafka.topics
    publish(settings, [message(record) for record in golden.records("before", "readings")])
    producer = KafkaProducer(bootstrap_servers=settings.kafka.bootstrap_servers)
    for record in golden.records("before", "state"):
        value = record.value
        if record.key == POSITION:  # the position contains the id of the topic, which differs here
            content = json.loads(value or b"")
            content["owner"] = f"{settings.forecaster.group_id} in {find_topic_id(settings, topics.readings)}"
            value = json.dumps(content).encode()
        producer.send(topics.state, value, record.key, partition=record.partition).get(30)
    producer.close()
    admin = make_admin(settings)
    offsets = {
        TopicPartition(topics.readings, partition): OffsetAndMetadata(offset, metadata, -1)
        for partition, (offset, metadata) in golden.committed("before").items()
    }
    group = settings.forecaster.group_id

    def commit() -> bool:
        try:
            admin.alter_group_offsets(group, offsets)
        except client_errors.RetriableError:
            return False  # a broker that has just started does not serve groups yet
        return True

    wait_until(commit, 30, "the group has its offsets")
    admin.close()


def message(record: Record) -> Message:
    return Message(record.key, record.value, record.partition, record.headers)  # type: ignore[arg-type]


def compare_forecasts(golden: Golden, settings: Settings) -> None:
    """Compare all forecasts; adapted numbers are other ones under another rule."""
    expected = golden.records("after", "forecasts")
    found = read_all(settings, settings.kafka.topics.forecasts)
    assert [(each.partition, each.key) for each in found] == [(each.partition, each.key) for each in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert without_new(ours.headers) == list(theirs.headers)
        # The fingerprint differs by the rule of adaptation alone: `test_compatibility.py` of the unit tests.
        expected_now = {**json.loads(theirs.value or b""), "settings": settings.fingerprint}
        forecast = json.loads(ours.value)
        if not golden.keeps_states:
            forecast, expected_now = without_numbers(forecast), without_numbers(expected_now)
        assert_alike(forecast, expected_now)


def without_numbers(forecast: dict[str, Any]) -> dict[str, Any]:
    """The forecast with the names of its targets, levels, steps and earlier experts, but without numbers."""
    shape = {
        target: {level: len(steps) for level, steps in levels.items()}
        for target, levels in forecast["quantiles"].items()
    }
    weights = {
        target: {name: "a share" for name in shares if name not in NEW_EXPERTS}
        for target, shares in forecast["weights"].items()
    }
    return {**forecast, "quantiles": shape, "weights": weights}


def assert_alike(ours: Any, theirs: Any) -> None:
    """Assert the same keys in the same order and the same values; numbers may differ by 1e-5."""
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for name in theirs:
            assert_alike(ours[name], theirs[name])
    elif isinstance(theirs, float | list):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    else:
        assert ours == theirs


def compare_letters(settings: Settings, expected: list[Record]) -> None:
    found = read_all(settings, settings.kafka.topics.dead_letters)
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.partition, ours.key, ours.value) == (theirs.partition, theirs.key, theirs.value)
        assert [name for name, _ in ours.headers] == [name for name, _ in theirs.headers]
        texts = {"streamgru-detail"}  # text for people, which may change
        assert {name: value for name, value in ours.headers if name not in texts} == {
            name: value for name, value in theirs.headers if name not in texts
        }


def compare_states(golden: Golden, settings: Settings) -> None:
    """Compare the last state of each sensor and the positions with those of the earlier commit."""
    dtype = state_dtype(load_artefact(golden.artefact).config, settings.adaptation)
    left_out = NEW_STATE_FIELDS if golden.keeps_states else (*NEW_STATE_FIELDS, "adaptation")
    known = [name for name in dtype.names or () if name not in left_out]
    dtype_then = np.dtype([(name, dtype[name]) for name in known])
    records = read_all(settings, settings.kafka.topics.state)
    found = {(record.partition, record.key): record.value for record in records}
    for theirs in golden.records("after", "state"):
        ours = found[theirs.partition, theirs.key]
        assert theirs.value is not None
        if theirs.key == POSITION:
            assert json.loads(ours)["position"] == json.loads(theirs.value)["position"]
            # A release that does not know the rules of times ignores them.
            assert [name for name in json.loads(ours) if name != "time_rules"] == list(json.loads(theirs.value))
            continue
        (tag, row), (their_tag, their_row) = decode_state(ours), decode_state(theirs.value)
        assert their_tag == StateTag(MODEL_VERSION, golden.content["fingerprint"])
        assert tag == StateTag(MODEL_VERSION, settings.fingerprint)
        state, their_state = np.frombuffer(row, dtype)[0], np.frombuffer(their_row, dtype_then, 1)[0]
        for name in known:
            for mine, other in zip(numbers(state[name]), numbers(their_state[name]), strict=True):
                np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-4)
    with_metadata = committed(settings)
    assert with_metadata == golden.committed("after")


def committed(settings: Settings) -> dict[int, tuple[int, str]]:
    admin = make_admin(settings)
    group = settings.forecaster.group_id
    found = admin.list_group_offsets([group])[group]
    admin.close()
    return {where.partition: (at.offset, at.metadata) for where, at in found.items()}


def numbers(field: Any) -> list[Any]:
    """The numbers of a field of a state, in order; a field that is a record has several."""
    if not isinstance(field, np.void):
        return [field]
    return [number for name in field.dtype.names for number in numbers(field[name])]
