"""``streamgru dlq`` on a real broker: it lists and shows dead letters and republishes valid ones."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from deploy.commands.dlq import dlq
from deploy.context import Context
from pipeline.dead_letters import DeadLetter, republish_letters
from pipeline.errors import KafkaError, TopicError
from pipeline.kafka.topics import ensure_topics
from pipeline.settings import Settings
from tests.conftest import SettingsFactory
from tests.integration.stream_rig import (
    FolderChampion,
    Message,
    publish,
    read_all,
    reading,
    running,
    small_forecaster,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def letters(broker: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A stream with four dead letters: three in partition 0, one without a known feature in partition 1."""
    name = tmp_path_factory.mktemp("dlq")
    settings = Settings(
        home=name,
        stack=broker.stack.model_dump(),
        features=("a",),
        targets=("a",),
        horizon_steps=1,
        kafka={
            "partitions": 2,
            "topics": {
                "readings": f"readings-{name.name}",
                "forecasts": f"forecasts-{name.name}",
                "state": f"state-{name.name}",
                "dead_letters": f"dlq-{name.name}",
            },
        },
        forecaster={"group_id": f"group-{name.name}", "poll_alias_s": 0.2},
    )
    ensure_topics(settings)
    champion = FolderChampion(name / "models", settings)
    champion.promote(1, small_forecaster(settings))
    pressure = reading(settings, "sensor", 1, pressure=4.0)
    messages = [
        Message(b"sensor", b"rubbish\x1b[31m", 0, (("origin", b"test"),)),
        Message(b"sensor", None, 0),
        Message(b"\xff", pressure.value, 0),
        Message(pressure.key, pressure.value, 1, (("traceparent", b"00-1-2-03"),)),
        reading(settings, "sensor", 2),
    ]
    publish(settings, messages)
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.readings == len(messages), 30, "all records were processed")
    return settings


def run(settings: Settings, *arguments: str) -> Result:
    result = CliRunner().invoke(dlq, arguments, obj=Context(lambda: settings))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def position(settings: Settings, reason: str) -> str:
    found = [
        record
        for record in read_all(settings, settings.kafka.topics.dead_letters)
        if dict(record.headers)["streamgru-reason"] == reason.encode()
    ]
    return f"{found[0].partition}:{found[0].offset}"


def with_pressure(settings: Settings) -> Settings:
    content: dict[str, Any] = settings.model_dump() | {"features": ("a", "pressure")}
    return Settings(**content)


def test_list_counts_dead_letters_by_reason_and_shows_each(letters: Settings) -> None:
    output = run(letters, "list").output
    assert output.startswith("4 dead letters: ")
    for reason in ("malformed", "no-value", "bad-key", "no-feature"):
        assert f"{reason} 1" in output
        assert position(letters, reason) in output
    assert "\x1b" not in output


def test_list_shows_only_the_chosen_reason(letters: Settings) -> None:
    assert run(letters, "list", "--reason", "malformed").output.startswith("1 dead letters: malformed 1\n")
    assert "no dead letter has the reason 'bad-value'" in run(letters, "list", "--reason", "bad-value").output


def test_show_prints_the_reason_origin_and_content_of_a_dead_letter(letters: Settings) -> None:
    output = run(letters, "show", position(letters, "malformed")).output
    assert "malformed: " in output
    assert f"{letters.kafka.topics.readings}, partition 0, offset 0" in output
    assert "origin: test" in output
    assert "rubbish\\x1b[31m" in output
    raw = CliRunner().invoke(dlq, ["show", "--raw", position(letters, "malformed")], obj=Context(lambda: letters))
    assert raw.stdout_bytes == b"rubbish\x1b[31m"
    assert "(none)" in run(letters, "show", position(letters, "no-value")).output


def test_show_refuses_a_position_without_a_dead_letter(letters: Settings) -> None:
    with pytest.raises(KafkaError, match="no dead letter at offset 9000"):
        run(letters, "show", "0:9000")
    assert "PARTITION:OFFSET" in run(letters, "show", "nonsense").output


def test_republish_publishes_only_dead_letters_that_decode_now(letters: Settings) -> None:
    before = read_all(letters, letters.kafka.topics.readings)
    assert run(letters, "republish").output.startswith("0 were published")
    learned = with_pressure(letters)
    assert run(learned, "republish", "--dry-run").output.startswith("1 would be published")
    assert len(read_all(letters, letters.kafka.topics.readings)) == len(before)
    output = run(learned, "republish").output
    assert output.startswith("1 were published")
    for reason in ("malformed", "no-value", "bad-key"):
        assert f"1 would be rejected again ({reason})" in output
    original = next(record for record in before if record.partition == 1 and record.headers)
    *_, again = [record for record in read_all(letters, letters.kafka.topics.readings) if record.partition == 1]
    assert (again.key, again.value, again.headers) == (original.key, original.value, original.headers)


def test_republish_publishes_only_the_chosen_positions(letters: Settings) -> None:
    learned = with_pressure(letters)
    chosen = position(letters, "no-feature")
    assert run(learned, "republish", "--dry-run", chosen).output == (
        f"1 would be published to {letters.kafka.topics.readings} once more\n"
    )


def letter_of(message: Message, settings: Settings, **changes: Any) -> DeadLetter:
    """A dead letter whose content is the message, a valid reading."""
    letter = DeadLetter(
        at_partition=0,
        at_offset=0,
        key=message.key,
        value=message.value,
        headers=message.headers,
        reason="no-feature",
        detail="",
        topic=settings.kafka.topics.readings,
        partition=message.partition,
        offset=0,
        set_aside_ms=0,
    )
    return replace(letter, **changes)


def test_republish_keeps_headers_without_a_value(broker: Settings, fresh_settings: SettingsFactory) -> None:
    settings = fresh_settings()
    ensure_topics(settings)
    headers = (("origin", None), ("trace", b""), ("origin", b"test"))
    letters = [letter_of(reading(settings, "sensor", step), settings, headers=headers) for step in range(2)]
    assert republish_letters(settings, lambda: letters).published == 2
    again = read_all(settings, settings.kafka.topics.readings)
    assert [(record.key, record.value) for record in again] == [(letter.key, letter.value) for letter in letters]
    assert all(tuple(record.headers) == headers for record in again)


@pytest.mark.parametrize("publish", [True, False])
def test_republish_names_dead_letters_of_missing_partitions_before_it_publishes(
    broker: Settings, fresh_settings: SettingsFactory, publish: bool
) -> None:
    settings = fresh_settings()
    ensure_topics(settings)
    message = reading(settings, "sensor", 1)
    fit = letter_of(message, settings)
    gone = [letter_of(message, settings, partition=7, at_partition=1, at_offset=offset) for offset in range(12)]
    foreign = letter_of(message, settings, partition=9, topic="elsewhere")
    with pytest.raises(TopicError, match=r"it has 2\): 1:0 \(from partition 7\), 1:1 .* 1:9 .* and 2 more\. "):
        republish_letters(settings, lambda: [fit, foreign, *gone], publish=publish)
    assert read_all(settings, settings.kafka.topics.readings) == []
    assert republish_letters(settings, lambda: [fit, foreign]).published == 1


def test_a_republish_that_fails_has_published_whole_transactions_and_can_run_again(
    broker: Settings, fresh_settings: SettingsFactory
) -> None:
    settings = fresh_settings()
    ensure_topics(settings)
    large = (("padding", bytes(900_000)),)  # two fit into a transaction
    due = [letter_of(reading(settings, "sensor", step), settings, headers=large) for step in range(7)]
    starts = itertools.count(1)

    def dying() -> Iterator[DeadLetter]:
        is_second = next(starts) == 2
        for number, letter in enumerate(due):
            if is_second and number == 5:
                raise KafkaError("the records stop coming")
            yield letter

    with pytest.raises(KafkaError, match="stop coming"):
        republish_letters(settings, dying)
    values = [letter.value for letter in due]
    assert [record.value for record in read_all(settings, settings.kafka.topics.readings)] == values[:4]
    assert republish_letters(settings, dying).published == 7
    assert [record.value for record in read_all(settings, settings.kafka.topics.readings)] == values[:4] + values


def test_list_says_so_if_there_are_no_dead_letters(
    broker: Settings, fresh_settings: SettingsFactory, tmp_path: Path
) -> None:
    settings = fresh_settings()
    ensure_topics(settings)
    assert "every record so far was a reading" in run(settings, "list").output
