"""A hanging transaction is not aborted if its forecaster may live; an unknown outcome is an error."""

from collections.abc import Iterator

import kafka.errors as client_errors
import pytest
from kafka import KafkaAdminClient, KafkaProducer

from pipeline.forecaster.hanging_transactions import abort_hanging_transactions, was_committed
from pipeline.kafka.clients import make_producer
from pipeline.kafka.instance import CLIENT_PREFIX
from pipeline.kafka.topics import ensure_topics
from pipeline.settings import Settings
from tests.conftest import SettingsFactory

pytestmark = pytest.mark.integration


@pytest.fixture
def settings(broker: Settings, fresh_settings: SettingsFactory) -> Settings:
    made = fresh_settings(kafka={"partitions": 1})
    ensure_topics(made)
    return made


@pytest.fixture
def busy(settings: Settings) -> Iterator[KafkaProducer]:
    """The producer of a forecaster named "busy", in the middle of a transaction."""
    producer = make_producer(settings, transactional_id=f"{settings.forecaster.group_id}-busy")
    producer.init_transactions()
    producer.begin_transaction()
    producer.send(settings.kafka.topics.state, key=b"sensor", value=b"state", partition=0).get(30)
    yield producer
    producer._sender.force_close()


def test_no_transaction_is_aborted_while_the_members_of_the_group_are_unknown(
    settings: Settings, busy: KafkaProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def describe(members: list[dict[str, str]], error: str | None) -> None:
        answer = {settings.forecaster.group_id: {"members": members, "error": error}}
        monkeypatch.setattr(KafkaAdminClient, "describe_groups", lambda self, groups: answer)

    describe([], "[Error 16] NotCoordinatorError")  # kafka-python returns this error and does not raise it
    assert abort_hanging_transactions(settings) == []
    describe([], None)
    assert abort_hanging_transactions(settings) == []
    busy.commit_transaction()
    busy.begin_transaction()
    busy.send(settings.kafka.topics.state, key=b"sensor", value=b"state", partition=0).get(30)
    describe([{"client_id": f"{CLIENT_PREFIX}another"}], None)
    assert abort_hanging_transactions(settings) == ["busy"]
    with pytest.raises(client_errors.KafkaError):
        busy.commit_transaction()


def test_was_committed_raises_if_the_outcome_of_a_transaction_is_unknown(
    settings: Settings, busy: KafkaProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{settings.forecaster.group_id}-busy"
    assert not was_committed(settings, f"{name}-that-never-was")
    assert not was_committed(settings, name)
    busy.commit_transaction()
    assert was_committed(settings, name)

    def is_loading(admin: KafkaAdminClient, names: list[str]) -> None:
        raise client_errors.CoordinatorLoadInProgressError

    monkeypatch.setattr(KafkaAdminClient, "describe_transactions", is_loading)
    with pytest.raises(client_errors.CoordinatorLoadInProgressError):
        was_committed(settings, name)
