"""The client's faults that are mended here: each is gone with its mend, and there without."""

from collections.abc import Iterator

import pytest
from kafka import KafkaConsumer
from kafka.coordinator.base import MemberState

from pipeline.kafka.clients import make_consumer, make_producer
from pipeline.kafka.topics import ensure_topics
from pipeline.settings import Settings
from tests.conftest import SettingsFactory
from tests.integration.stream_rig import publish, rounds
from tests.waiting import wait_until

pytestmark = pytest.mark.integration


@pytest.fixture
def settings(broker: Settings, fresh_settings: SettingsFactory) -> Settings:
    made = fresh_settings(kafka={"partitions": 1})
    ensure_topics(made)
    publish(made, rounds(made, ["sensor"], range(3)))
    return made


@pytest.fixture
def leader(settings: Settings) -> Iterator[KafkaConsumer]:
    """The only member of its group, which is about to see that the topic has another partition than it assigned."""
    topic = settings.kafka.topics.readings
    consumer = make_consumer(settings, group_id=settings.forecaster.group_id)
    consumer.subscribe([topic])
    coordinator = consumer._coordinator

    def has_settled() -> bool:
        consumer.poll(timeout_ms=100)
        return coordinator._assignment_snapshot == coordinator._metadata_snapshot == {topic: {0}} and is_stable(
            consumer
        )

    wait_until(has_settled, 30, "it has assigned itself the partition")
    coordinator._assignment_snapshot = {topic: set()}
    yield consumer
    consumer.close()


def is_stable(consumer: KafkaConsumer) -> bool:
    return consumer.group_metadata().state is MemberState.STABLE


def rejoin_hastily(consumer: KafkaConsumer) -> None:
    """Begin to join anew in a poll that does not wait for the brokers' answers, let them answer, and poll on."""
    consumer.poll(timeout_ms=0)
    joining = consumer._coordinator._join_task
    assert joining is not None
    wait_until(lambda: joining.is_done, 10, "the brokers answered")
    for _ in range(10):
        consumer.poll(timeout_ms=100)


def test_a_rejoin_is_finished_though_its_first_poll_timed_out(leader: KafkaConsumer) -> None:
    rejoin_hastily(leader)
    assert is_stable(leader)
    assert leader._coordinator._heartbeat_enabled


def test_without_finishing_joins_it_is_no_member_any_more(leader: KafkaConsumer) -> None:
    del leader._coordinator.need_rejoin  # what is left is the client's own
    rejoin_hastily(leader)
    assert not is_stable(leader)
    assert not leader._coordinator._heartbeat_enabled


def test_looking_for_a_topic_does_not_create_it(settings: Settings) -> None:
    consumer, producer = make_consumer(settings), make_producer(settings)
    try:
        assert not consumer._cluster.metadata_request().allow_auto_topic_creation
        assert not producer._metadata.metadata_request().allow_auto_topic_creation
    finally:
        consumer.close()
        producer.close()


def test_the_clients_own_option_does_not_reach_its_requests(settings: Settings) -> None:
    """Once it does, ``create_no_topics`` can go."""
    options = {"bootstrap_servers": settings.kafka.bootstrap_servers, "allow_auto_create_topics": False}
    with KafkaConsumer(**options) as consumer:
        assert consumer._cluster.metadata_request().allow_auto_topic_creation
