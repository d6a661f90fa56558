"""A publication ends when every record is acknowledged, and says how to continue if it is interrupted before."""

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from kafka import TopicPartition
from kafka.errors import MessageSizeTooLargeError
from kafka.producer.future import FutureProduceResult, FutureRecordMetadata

from deploy.commands.publish import _resume_hint
from pipeline.errors import KafkaError
from pipeline.files.outlook_table import OutlookRecord, no_readings
from pipeline.files.publishing import Publication
from pipeline.outlook_messages import Outlook
from tests.outlook_streams import SETTINGS


def outlook(hour: int) -> OutlookRecord:
    """The record of an outlook; the third one is a group's."""
    found = Outlook("s0", hour == 2, ("s0",), hour, np.array([hour + 1]), np.zeros((1, 2), np.float32))
    return OutlookRecord(found, b"s0", b"x" * 100)


OUTLOOKS = tuple(outlook(hour) for hour in range(3))


class Broker:
    """Stands for the producer's appender: acknowledges each append after ``late_s``, or refuses it."""

    def __init__(self, late_s: float, error: Exception | None = None) -> None:
        self.late_s, self.error = late_s, error
        self.lock = threading.Lock()
        self.in_flight = self.most_in_flight = self.done = 0

    def append(self, topic: str, partition: int, keys: Sequence[bytes], *_: Any) -> list[FutureRecordMetadata]:
        result = FutureProduceResult(TopicPartition(topic, partition))
        future = FutureRecordMetadata(result, 0, 0, None, -1, -1, -1)
        with self.lock:
            self.in_flight += len(keys)
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        threading.Timer(self.late_s, self._answer, (result, len(keys))).start()
        return [future]

    def _answer(self, result: FutureProduceResult, count: int) -> None:
        with self.lock:
            self.in_flight -= count
            self.done += count
        if self.error is None:
            result.success((0, None, None))
        else:
            result.failure(self.error)


def publication(broker: Broker) -> Publication:
    """The publication of outlooks alone on two partitions."""
    unused = SimpleNamespace(_accumulator=None, _sender=SimpleNamespace(), _transaction_manager=None)
    unused.partitions_for = lambda topic: {0, 1}
    made = Publication(SETTINGS, unused, no_readings(SETTINGS), outlooks=OUTLOOKS)  # type: ignore[arg-type]
    made._appender = broker  # type: ignore[assignment]
    return made


def test_outlooks_alone_are_published_when_all_are_acknowledged() -> None:
    broker = Broker(0.2)
    publication(broker).run()
    assert broker.done == 4  # the group's outlook on both partitions


def test_a_refused_outlook_is_an_error() -> None:
    with pytest.raises(KafkaError):
        publication(Broker(0.1, MessageSizeTooLargeError())).run()


def test_outlooks_wait_while_too_many_bytes_are_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.files.publishing.MOST_BYTES_IN_FLIGHT", 102)
    broker = Broker(0.05)
    publication(broker).run()
    assert broker.done == 4
    assert broker.most_in_flight <= 3  # one outlook may be in flight when the next one is sent, here on two partitions


def test_interrupted_outlooks_alone_are_continued_by_the_same_command() -> None:
    hint = _resume_hint(publication(Broker(0.0)), 0, 0, None)
    assert "repeat the command" in hint
    assert "late" in hint
    assert "--from" not in hint
