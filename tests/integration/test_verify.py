"""``streamgru verify`` and ``explain`` on a real broker: they find planted faults in a good stream."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result
from kafka import KafkaProducer, TopicPartition
from kafka.structs import OffsetAndMetadata

from deploy.commands.verify import explain as explain_command
from deploy.commands.verify import verify as verify_command
from deploy.context import Context
from model.known_ahead import CalendarCovariate
from model.state import blank_states, state_dtype
from pipeline.audit.explain import explain
from pipeline.audit.verify import Span, verify
from pipeline.errors import StreamgruError
from pipeline.event_headers import forecast_headers
from pipeline.kafka.clients import make_consumer
from pipeline.kafka.topics import ensure_topics
from pipeline.messages import Forecast, ReadingDecoder, Rejected, decode_state, iso_timestamp
from pipeline.settings import Settings
from tests.conftest import SettingsFactory
from tests.integration.stream_rig import (
    HOUR_US,
    START_US,
    FolderChampion,
    Message,
    publish,
    read_forecasts,
    read_states,
    reading,
    rounds,
    running,
    small_forecaster,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

SENSORS = [f"sensor-{number}" for number in range(6)]


@pytest.fixture
def settings(broker: Settings, fresh_settings: SettingsFactory) -> Settings:
    made = fresh_settings(
        features=["a", "b"],
        targets=["a"],
        horizon_steps=2,
        max_gap_steps=4,
        forecaster={"poll_alias_s": 0.1, "max_batch_readings": 50, "rewarm_steps": 30},
    )
    ensure_topics(made)
    return made


@pytest.fixture
def forecast_stream(settings: Settings, champion: FolderChampion) -> Settings:
    """A stream with gaps, duplicates, late readings, invalid records, and a swap to a model with a calendar."""
    start_s = START_US // 1_000_000
    day = CalendarCovariate("day off", (start_s + 60 * 3_600, start_s + 95 * 3_600))
    messages = [*rounds(settings, SENSORS, range(40)), *rounds(settings, SENSORS, range(42, 50))]
    messages += [*messages[100:104], Message(b"sensor-0", b"rubbish", 0), Message(None, b"{}", 1)]
    later = [*rounds(settings, SENSORS, range(50, 70)), *rounds(settings, SENSORS, range(90, 100))]
    publish(settings, messages)
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.readings == len(messages), 30, "the first readings were processed")
        champion.promote(2, small_forecaster(settings, seed=2, calendar=(day,)))
        wait_until(lambda: forecaster.counters.model_version == 2, 30, "version 2 serves")
        publish(settings, later)
        wait_until(
            lambda: forecaster.counters.readings == len(messages) + len(later), 30, "all readings were processed"
        )
    return settings


def test_verify_finds_no_faults_in_a_good_stream(forecast_stream: Settings, champion: FolderChampion) -> None:
    verdict = verify(forecast_stream, champion.load)
    assert verdict.faults == {}
    counts = verdict.audit
    assert counts.accepted == counts.forecasts == verdict.recomputed == len(SENSORS) * 78
    assert (counts.late, counts.rejected) == (4, 2)
    assert verdict.states == len(SENSORS)
    assert verdict.largest_difference == 0.0
    assert set(verdict.versions) == {1, 2}
    assert (verdict.waiting, verdict.out_of_reach, verdict.rebuilt) == (0, 0, 0)


def test_verify_takes_dead_letters_of_an_earlier_release_as_its_verdict(
    settings: Settings, champion: FolderChampion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The earlier release refused text in a feature that no setting names; the forecaster here decodes as it did."""

    def reject(_: ReadingDecoder, __: bytes, error: Exception) -> None:
        raise Rejected("malformed", str(error))

    known, later = reading(settings, SENSORS[0], 0), reading(settings, SENSORS[0], 1)
    content = msgspec.json.decode(later.value or b"")
    content["values"]["st"] = "ok"
    publish(settings, [known, replace(later, value=msgspec.json.encode(content)), reading(settings, SENSORS[0], 2)])
    with monkeypatch.context() as earlier:
        earlier.setattr(ReadingDecoder, "_decode_leniently", reject)
        with running(settings, champion) as forecaster:
            wait_until(lambda: forecaster.counters.readings == 3, 30, "all records were processed")
    verdict = verify(settings, champion.load)
    assert verdict.faults == {}
    assert (verdict.audit.accepted, verdict.audit.rejected, verdict.rejected_then) == (2, 1, 1)


def test_verify_audits_only_the_given_span(forecast_stream: Settings, champion: FolderChampion) -> None:
    whole = verify(forecast_stream, champion.load)
    half = verify(forecast_stream, champion.load, Span({0: 50, 1: 50}, {0: 100, 1: 100}))
    assert half.faults == {}
    assert half.audit.readings == 100
    assert half.audit.forecasts < whole.audit.forecasts


def test_verify_finds_a_reading_without_a_forecast(forecast_stream: Settings, champion: FolderChampion) -> None:
    # The committed offset of the group is set to the offset after a reading that has no forecast.
    publish(forecast_stream, [reading(forecast_stream, SENSORS[0], 100)])
    commit_ends(forecast_stream)
    verdict = verify(forecast_stream, champion.load)
    assert verdict.faults == {"missing": 1, "states different": 1}
    assert "does not hold the reading" in verdict.examples["states different"][0]


def test_verify_finds_a_second_forecast_of_a_reading(forecast_stream: Settings, champion: FolderChampion) -> None:
    plant_forecast(forecast_stream, lambda forecast: forecast)
    assert verify(forecast_stream, champion.load).faults == {"twice": 1, "out of order": 1}


def test_verify_finds_a_changed_number(forecast_stream: Settings, champion: FolderChampion) -> None:
    plant_forecast(forecast_stream, shifted)
    verdict = verify(forecast_stream, champion.load)
    assert verdict.faults == {"twice": 1, "out of order": 1, "different": 1}
    assert verdict.largest_difference > 1e-5


def test_verify_finds_changed_weights(forecast_stream: Settings, champion: FolderChampion) -> None:
    plant_forecast(forecast_stream, other_weights)
    assert verify(forecast_stream, champion.load).faults == {"twice": 1, "out of order": 1, "different": 1}


def test_verify_finds_a_changed_state(forecast_stream: Settings, champion: FolderChampion) -> None:
    def touch(row: Any) -> None:
        row["hidden"][0, 0] += 1e-3

    plant_state(forecast_stream, champion, touch)
    verdict = verify(forecast_stream, champion.load)
    assert verdict.faults == {"states different": 1}
    assert "hidden" in verdict.examples["states different"][0]


def test_verify_finds_a_state_that_missed_a_reading(forecast_stream: Settings, champion: FolderChampion) -> None:
    def set_back(row: Any) -> None:
        row["offset"] -= 1

    plant_state(forecast_stream, champion, set_back)
    assert verify(forecast_stream, champion.load).faults == {"states different": 1}


def test_verify_finds_blank_states_even_if_their_forecasts_are_correct(
    settings: Settings, champion: FolderChampion
) -> None:
    publish(settings, rounds(settings, SENSORS, range(20)))
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.readings == 20 * len(SENSORS), 30, "the readings were processed")
    wipe_states(settings, champion)
    publish(settings, rounds(settings, SENSORS, range(20, 22)))
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.readings == 2 * len(SENSORS), 30, "more readings were processed")
    assert verify(settings, champion.load).faults == {"begun anew": len(SENSORS)}


def test_verify_audits_changed_settings_from_their_first_forecast_on(
    settings: Settings, champion: FolderChampion, tmp_path: Path
) -> None:
    publish(settings, rounds(settings, SENSORS, [*range(30), *range(36, 40)]))
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.readings == 34 * len(SENSORS), 30, "the first readings were processed")
    changed = settings.model_copy(update={"horizon_steps": 3, "targets": ("a", "b"), "max_gap_steps": 8})
    champion = FolderChampion(tmp_path / "changed", changed)
    champion.promote(2, small_forecaster(changed, seed=2))
    publish(changed, rounds(changed, SENSORS, range(40, 50)))
    with running(changed, champion) as forecaster:
        wait_until(lambda: forecaster.counters.readings == 10 * len(SENSORS), 30, "more readings were processed")
    verdict = verify(changed, champion.load)
    assert verdict.faults == {}
    assert verdict.foreign == {settings.fingerprint: 34 * len(SENSORS)}
    assert verdict.audit.accepted == verdict.recomputed == 10 * len(SENSORS)
    assert verdict.states == len(SENSORS)
    with pytest.raises(StreamgruError, match=f"made under settings {settings.fingerprint}, not under the present ones"):
        explain(changed, champion.load, SENSORS[0], START_US)


# --- the commands -----------------------------------------------------------------------------------------------------


@pytest.fixture
def loading(champion: FolderChampion, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands load models from the folder of the test instead of MLflow."""
    monkeypatch.setattr("deploy.commands.verify._loader", lambda settings: champion.load)


def run(settings: Settings, command: click.Command, *arguments: str) -> Result:
    result = CliRunner().invoke(command, arguments, obj=Context(lambda: settings))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.usefixtures("loading")
def test_the_commands_print_counts_and_exit_with_1_for_a_fault(forecast_stream: Settings) -> None:
    good = run(forecast_stream, verify_command)
    assert good.exit_code == 0
    assert "accepted                      468" in good.output
    assert "each equals the recomputed one" in good.output
    whole = json.loads(run(forecast_stream, verify_command, "--json").output)
    assert (whole["audit"]["accepted"], whole["faults"]) == (468, {})
    assert (
        json.loads(run(forecast_stream, verify_command, "--json", "--until", "2001-01-01T00:00:00Z").output)["audit"][
            "readings"
        ]
        == 0
    )

    issued = iso_timestamp(START_US + 99 * HOUR_US)
    explained = run(forecast_stream, explain_command, SENSORS[2], issued)
    assert explained.exit_code == 0
    assert "version 2" in explained.output
    assert "equal: the largest difference is 0.0e+00" in explained.output
    assert "weights    of a: persistence " in explained.output
    with pytest.raises(StreamgruError, match=r"has no forecast issued at .* it has 78 from"):
        run(forecast_stream, explain_command, SENSORS[2], iso_timestamp(START_US + 80 * HOUR_US))
    with pytest.raises(StreamgruError, match="no forecast of sensor 'nobody'"):
        run(forecast_stream, explain_command, "nobody", issued)
    assert "is neither a time with a zone" in run(forecast_stream, explain_command, SENSORS[2], "yesterday").output

    plant_forecast(forecast_stream, shifted)
    bad = run(forecast_stream, verify_command)
    assert bad.exit_code == 1
    assert "error: different: 1, such as partition" in bad.stderr
    *_, forecast, _ = [found for found in read_forecasts(forecast_stream) if found.sensor_id == SENSORS[0]][:-1]
    doubled = run(forecast_stream, explain_command, SENSORS[0], forecast.issued_at.isoformat())
    assert doubled.exit_code == 1
    assert "the reading has 2 forecasts" in doubled.stderr
    assert "DIFFERENT" in doubled.output
    assert "the weights differ" not in doubled.output

    plant_forecast(forecast_stream, other_weights)
    *_, forecast = [found for found in read_forecasts(forecast_stream) if found.sensor_id == SENSORS[0]]
    weighed = run(forecast_stream, explain_command, SENSORS[0], forecast.issued_at.isoformat())
    assert weighed.exit_code == 1
    assert "  recomputed, of a: persistence " in weighed.output
    assert "and the weights differ" in weighed.output


def commit_ends(settings: Settings) -> None:
    """Set the group's offsets to the ends of the readings topic."""
    consumer = make_consumer(settings, group_id=settings.forecaster.group_id)
    topic = settings.kafka.topics.readings
    ends = consumer.end_offsets([TopicPartition(topic, partition) for partition in range(settings.kafka.partitions)])
    consumer.commit({where: OffsetAndMetadata(end, "", -1) for where, end in ends.items()})
    consumer.close()


def wipe_states(settings: Settings, champion: FolderChampion) -> None:
    """Replace every state by a valid blank state with the last timestamp of its sensor."""
    producer = KafkaProducer(bootstrap_servers=settings.kafka.bootstrap_servers)
    blank = blank_states(champion.load(1).config, 1, settings.adaptation)
    for record in read_states(settings):
        tag, packed = decode_state(record.value)
        blank["last_us"] = np.frombuffer(packed, blank.dtype)["last_us"]
        producer.send(settings.kafka.topics.state, tag.encode(blank.tobytes()), record.key, partition=record.partition)
    producer.close()


def shifted(forecast: Forecast) -> Forecast:
    """The forecast with numbers that are 0.1 too large."""
    quantiles = {"a": {level: [value + 0.1 for value in row] for level, row in forecast.quantiles["a"].items()}}
    return msgspec.structs.replace(forecast, quantiles=quantiles)


def other_weights(forecast: Forecast) -> Forecast:
    """The forecast with its two largest weights swapped."""
    assert forecast.weights is not msgspec.UNSET
    shares = forecast.weights["a"]
    first, second = sorted(shares, key=shares.__getitem__, reverse=True)[:2]
    assert shares[first] > shares[second]
    swapped = {**shares, first: shares[second], second: shares[first]}
    return msgspec.structs.replace(forecast, weights={"a": swapped})


def plant_forecast(settings: Settings, change: Callable[[Forecast], Forecast]) -> None:
    """Send the second to last forecast of a sensor again, with a change."""
    *_, forecast, _ = [found for found in read_forecasts(settings) if found.sensor_id == SENSORS[0]]
    changed = change(forecast)
    producer = KafkaProducer(bootstrap_servers=settings.kafka.bootstrap_servers)
    producer.send(
        settings.kafka.topics.forecasts,
        msgspec.json.encode(changed),
        changed.sensor_id.encode(),
        forecast_headers(changed),
        partition=changed.input.partition,
    )
    producer.close()


def plant_state(settings: Settings, champion: FolderChampion, change: Callable[[Any], None]) -> None:
    """Write the last state of the changelog again, with a change."""
    record = read_states(settings)[-1]
    tag, packed = decode_state(record.value)
    row = np.frombuffer(packed, state_dtype(champion.load(tag.model_version).config, settings.adaptation)).copy()
    change(row[0])
    producer = KafkaProducer(bootstrap_servers=settings.kafka.bootstrap_servers)
    value = tag.encode(row.tobytes())
    producer.send(settings.kafka.topics.state, value, record.key, partition=record.partition)
    producer.close()
