"""Asks the brokers for the ends of the topics and the forecasters' offsets, every second.

The answers give the lag, and show that a broker answers: a consumer at the end of its partitions cannot tell.
"""

import logging
import threading
import time
from contextlib import closing
from typing import Any, Final

import kafka.errors as client_errors
from kafka import KafkaConsumer, TopicPartition

from pipeline.errors import StreamgruError
from pipeline.kafka.clients import make_admin, make_consumer, partition_count, translate_errors
from pipeline.kafka.group_positions import committed_offsets
from pipeline.kafka.patches import leaderless
from pipeline.live.view import LAG_WATCH, LiveView
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.live")

_INTERVAL_S: Final = 1.0
_TIMEOUT_MS: Final = 2_000
# Seconds after which new clients ask. A client keeps the number of partitions that it saw first for minutes.
_CLIENTS_S: Final = 20.0


class LagWatch:
    """Keeps the log of a view up to date until ``stop``."""

    def __init__(self, settings: Settings, view: LiveView) -> None:
        self._settings = settings
        self._view = view
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End ``run`` after the request in progress."""
        self._stopped.set()

    def run(self) -> None:
        """Ask until ``stop``, with new clients after an error and every ``_CLIENTS_S``."""
        while not self._stopped.is_set():
            try:
                with (
                    closing(make_admin(self._settings, request_timeout_ms=_TIMEOUT_MS)) as admin,
                    closing(make_consumer(self._settings, client_id="streamgru-serve-lag")) as consumer,
                ):
                    until_s = time.monotonic() + _CLIENTS_S
                    while not self._stopped.is_set() and time.monotonic() < until_s:
                        self._check(admin, consumer)
                        self._stopped.wait(_INTERVAL_S)
            except (StreamgruError, client_errors.KafkaError) as error:
                self._view.broker_failed(LAG_WATCH, str(error))
                logger.debug("cannot look up the ends of the topics", exc_info=error)
                self._stopped.wait(_INTERVAL_S)

    def _check(self, admin: Any, consumer: KafkaConsumer) -> None:
        topics = self._settings.kafka.topics
        readings, forecasts = self._ends(consumer, topics.readings), self._ends(consumer, topics.forecasts)
        self._view.set_ends(readings, forecasts, committed_offsets(self._settings, admin))
        self._view.broker_answered(LAG_WATCH)

    def _ends(self, consumer: KafkaConsumer, topic: str) -> dict[int, int]:
        with translate_errors(f"looking up the ends of topic {topic}", self._settings):
            partitions = [TopicPartition(topic, number) for number in range(partition_count(consumer, topic))]
            without_leader = leaderless(consumer, partitions)
            asked = [tp for tp in partitions if tp not in without_leader]
            ends = consumer.end_offsets(asked, timeout_ms=_TIMEOUT_MS) if asked else {}
        return {tp.partition: end for tp, end in ends.items()}
