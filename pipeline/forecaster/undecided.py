"""Decides what brokers left undecided of a forecaster's last transaction.

A broker that comes back while the markers of a transaction are being written can leave out partitions that have no
leader yet (Kafka 4.3), though the transaction counts as complete. What lies there, and all that follows, stays hidden
from readers until the same producer writes there once more; and then the outcome of *that* transaction decides. So it
is looked for when a forecaster's producer is opened, before anything is written, and decided as it should have been.
"""

import logging
import time
from collections.abc import Iterable
from typing import Final

import kafka.errors as client_errors
from kafka import KafkaProducer, TopicPartition
from kafka.admin import AbortTransactionSpec, KafkaAdminClient

from pipeline.kafka.clients import make_admin
from pipeline.kafka.patches import add_to_transaction, producer_id
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.undecided")

ASK_S: Final = 3.0
ASK_AGAIN_S: Final = 0.1

_COMMITTED: Final = ("PrepareCommit", "CompleteCommit")


def was_committed(settings: Settings, transactional_id: str) -> bool:
    """Whether the last transaction of an id ended, or is bound to end, in a commit; asked before it is taken.

    False also where brokers do not say: they are older than 3.0, or this login may not ask.

    Raises:
        kafka.errors.KafkaError: they cannot say for seconds, such as one that has come back and is still loading. To be
            asked again: taken for an abort, what was committed would be aborted where they left it out.
        BrokerUnreachable: no broker answers.
    """
    until = time.monotonic() + ASK_S
    while True:
        try:
            return _is_committed(settings, transactional_id)
        except client_errors.TransactionalIdNotFoundError:
            return False
        except (client_errors.UnsupportedVersionError, client_errors.AuthorizationError) as error:
            logger.debug("how the last transaction of %s ended cannot be asked: %s", transactional_id, error)
            return False
        except client_errors.RetriableError:  # as ever where nobody has had a transaction on these brokers before
            if time.monotonic() > until:
                raise
            time.sleep(ASK_AGAIN_S)


def _is_committed(settings: Settings, transactional_id: str) -> bool:
    # A client of its own: kafka-python remembers for ever which broker knew of an id first.
    with make_admin(settings, request_timeout_ms=round(ASK_S * 1_000)) as admin:
        return admin.describe_transactions([transactional_id])[transactional_id].state in _COMMITTED


def decide(producer: KafkaProducer, admin: KafkaAdminClient, topics: Iterable[str], *, committed: bool) -> None:
    """End what a producer, initialised and without a transaction, still has open in these topics.

    Where brokers do not let us look (access rights, partitions without a leader), nothing is done.

    Raises:
        kafka.errors.KafkaError: what is open could not be ended.
    """
    try:
        partitions = [
            TopicPartition(topic, partition) for topic in topics for partition in sorted(producer.partitions_for(topic))
        ]
        found = admin.describe_producers(partitions)
    except client_errors.KafkaError as error:
        logger.debug("what transactions are open cannot be asked: %s", error)
        return
    own_id = producer_id(producer)
    left = {
        partition: active
        for partition, state in found.items()
        for active in state.active_producers
        if active.producer_id == own_id and active.current_transaction_start_offset >= 0
    }
    if not left:
        return
    logger.warning(
        "brokers left the last transaction undecided in %s; it was %s, and is so there from now on",
        *(", ".join(f"{at.topic}-{at.partition}" for at in left), "committed" if committed else "aborted"),
    )
    if committed:
        _commit(producer, left)
    else:
        for partition, active in left.items():
            admin.abort_transaction(AbortTransactionSpec(partition, own_id, active.producer_epoch))


def _commit(producer: KafkaProducer, partitions: Iterable[TopicPartition]) -> None:
    """A transaction without a record: its markers decide."""
    producer.begin_transaction()
    for partition in partitions:
        add_to_transaction(producer, partition)
    producer.commit_transaction()
