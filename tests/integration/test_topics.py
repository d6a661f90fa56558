"""Topics are created as the settings say, and existing topics that differ are an error."""

from collections.abc import Callable

import pytest
from click.testing import CliRunner
from kafka import KafkaAdminClient

from deploy.cli import streamgru
from deploy.context import Context
from pipeline.errors import BrokerUnreachable, KafkaError, TopicError
from pipeline.kafka.clients import make_admin, make_consumer, make_producer, partition_count
from pipeline.kafka.topics import check_topics, ensure_topics, topic_statuses
from pipeline.settings import Settings
from tests.ports import free_port

pytestmark = pytest.mark.integration

SettingsFactory = Callable[..., Settings]


@pytest.fixture
def made(broker: Settings, fresh_settings: SettingsFactory) -> Settings:
    """Settings whose four topics exist, with two partitions."""
    settings = fresh_settings()
    ensure_topics(settings)
    return settings


def with_kafka(settings: Settings, **changes: object) -> Settings:
    return settings.model_copy(update={"kafka": settings.kafka.model_copy(update=changes)})


def test_creating_topics_twice_changes_nothing(broker: Settings, fresh_settings: SettingsFactory) -> None:
    settings = fresh_settings(kafka={"partitions": 3, "retention_s": 3_600})
    with pytest.raises(TopicError, match=r"topics do not exist: readings-\w+, forecasts-\w+.*topics create"):
        check_topics(settings)
    assert ensure_topics(settings)[0] == f"{settings.kafka.topics.readings}: created, 3 partitions"
    assert ensure_topics(settings)[0] == f"{settings.kafka.topics.readings}: exists, 3 partitions"
    check_topics(settings)
    with make_admin(settings) as admin:
        assert {
            partition_count(admin, name) for name in settings.kafka.topics.model_dump(exclude_none=True).values()
        } == {3}


def test_every_difference_from_the_settings_is_named(made: Settings) -> None:
    other = with_kafka(made, partitions=3, max_reading_bytes=500_000, retention_s=3_600, replication_factor=2)
    with pytest.raises(TopicError) as raised:
        ensure_topics(other)
    complaint = str(raised.value)
    topics = made.kafka.topics
    for name in topics.model_dump(exclude_none=True).values():
        assert f"{name}: has 2 partitions, and the settings say 3; set kafka.partitions = 2" in complaint
        assert f"{name}: has 1 replicas, and the settings say 2" in complaint
    assert f"{topics.readings}: retention.ms is -1, and should be 3600000" in complaint
    assert f"{topics.readings}: max.message.bytes is 1000000, and should be at most 500000" in complaint
    assert "topics create --alter" in complaint


def test_the_stream_refuses_only_differences_that_would_break_it(made: Settings) -> None:
    check_topics(with_kafka(made, retention_s=3_600, replication_factor=2, max_reading_bytes=1_000_000))
    with pytest.raises(TopicError, match=r"max.message.bytes is 1000000, and should be at most 999999"):
        check_topics(with_kafka(made, max_reading_bytes=999_999))
    with pytest.raises(TopicError, match=r"dlq: max.message.bytes is 1016384, and should be at least 1016385"):
        check_topics(with_kafka(made, max_reading_bytes=1_000_001))
    with pytest.raises(TopicError, match="has 2 partitions"):
        check_topics(with_kafka(made, partitions=4))


def test_alter_changes_only_configurations_that_differ(made: Settings) -> None:
    other = with_kafka(made, retention_s=3_600)
    report = ensure_topics(other, alter=True)
    assert f"{made.kafka.topics.readings}: set retention.ms=3600000" in report
    assert len(report) == 2 + 4  # two topics have a retention
    assert len(ensure_topics(other)) == 4
    with pytest.raises(TopicError, match="has 2 partitions"):
        ensure_topics(with_kafka(other, partitions=4), alter=True)


def test_a_changelog_without_compaction_is_refused(broker: Settings, fresh_settings: SettingsFactory) -> None:
    settings = fresh_settings()
    with make_admin(settings) as admin:
        admin.create_topics({settings.kafka.topics.state: {"num_partitions": 2, "replication_factor": 1}})
    with pytest.raises(TopicError, match=r"state-\w+: cleanup.policy is delete, and should be compact"):
        ensure_topics(settings)
    with pytest.raises(TopicError, match=r"cleanup.policy is delete"):
        check_topics(settings)


def test_more_replicas_than_brokers_are_an_error_that_names_the_setting(
    broker: Settings, fresh_settings: SettingsFactory
) -> None:
    with pytest.raises(TopicError, match=r"could not be created: .*kafka.replication_factor in the settings"):
        ensure_topics(fresh_settings(kafka={"replication_factor": 3}))


def test_the_status_of_a_topic_counts_its_records(made: Settings) -> None:
    producer = make_producer(made)
    for partition in (0, 0, 1):
        producer.send(made.kafka.topics.forecasts, b"{}", b"key", partition=partition)
    producer.close()
    by_purpose = {status.plan.purpose: status for status in topic_statuses(made)}
    assert by_purpose["forecasts"].records == 3
    assert by_purpose["readings"].records == 0
    assert not any(status.differences for status in by_purpose.values())


def test_the_commands_create_and_show_topics(broker: Settings, fresh_settings: SettingsFactory) -> None:
    settings = fresh_settings()
    context = Context(lambda: settings)

    def run(*arguments: str) -> tuple[int, str]:
        command = streamgru.get_command(None, "topics")  # type: ignore[arg-type]
        assert command is not None
        result = CliRunner().invoke(command, arguments, obj=context)
        return result.exit_code, result.output

    code, output = run("show")
    assert code == 1
    assert output.count("missing") == 5  # one per topic, and what to do
    assert run("create") == (
        0,
        "".join(
            f"{name}: created, 2 partitions\n" for name in settings.kafka.topics.model_dump(exclude_none=True).values()
        ),
    )
    code, output = run("show")
    assert code == 0, output
    assert output.count(" ok") == 4


def test_an_unreachable_broker_is_an_error_that_says_what_to_do(
    fresh_settings: SettingsFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.kafka.clients.BOOTSTRAP_TIMEOUT_MS", 300)
    port = free_port()
    settings = fresh_settings(kafka={"bootstrap_servers": f"127.0.0.1:{port}"})
    for make in (make_admin, make_consumer, make_producer):
        with pytest.raises(BrokerUnreachable, match=rf"no Kafka broker answers at 127.0.0.1:{port}.*streamgru up"):
            make(settings)
    with pytest.raises(KafkaError, match="'nonsense' is not host:port"):
        make_admin(fresh_settings(kafka={"bootstrap_servers": "nonsense"}))


def test_a_look_up_of_a_missing_topic_names_it_and_does_not_create_it(
    broker: Settings, fresh_settings: SettingsFactory
) -> None:
    settings = fresh_settings()
    consumer = make_consumer(settings)
    with make_admin(settings) as admin:
        for client in (consumer, admin):
            with pytest.raises(TopicError, match=f"topic {settings.kafka.topics.readings} does not exist"):
                partition_count(client, settings.kafka.topics.readings)
        assert settings.kafka.topics.readings not in admin.list_topics()
    consumer.close()


def test_brokers_that_hide_topic_configurations_do_not_cause_a_topic_error(
    made: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = {"topic": {name: {} for name in made.kafka.topics.model_dump(exclude_none=True).values()}}
    monkeypatch.setattr(KafkaAdminClient, "describe_configs", lambda self, resources, config_filter: refused)
    with pytest.raises(KafkaError, match="grant it DescribeConfigs") as raised:
        check_topics(made)
    assert not isinstance(raised.value, TopicError), "forecasters end with a TopicError"


def test_a_change_that_the_brokers_refuse_is_an_error_with_their_reason(
    made: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = {"topic": {made.kafka.topics.readings: "[Error 44] PolicyViolationError: no"}}
    monkeypatch.setattr(KafkaAdminClient, "alter_configs", lambda self, resources: refused)
    with pytest.raises(TopicError, match=r"could not be changed: .*PolicyViolation"):
        ensure_topics(with_kafka(made, retention_s=3_600), alter=True)
