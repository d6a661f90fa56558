"""Hanging transactions: a broker left one open although it ended, or a dead forecaster left one open.

Consumers of committed records cannot read past a hanging transaction. If it contains offsets, fetches of the group's
committed offsets wait for it too. There are two kinds:

1. A transaction ended, but one partition has no marker. A broker that restarts while markers are written can leave out
   a partition without a leader (Kafka 4.3). Only the producer of the transaction can end it there. A forecaster does so
   after it has opened its producer: ``was_committed`` before, then ``resolve_hanging``. The partition can also be the
   one of ``__consumer_offsets`` with the group's offsets.
2. The forecaster of an open transaction died, and no forecaster has started with its name. The brokers abort it after
   the transaction timeout, at a check that they make every 10 s by default. A forecaster that restores does so at once
   with ``abort_hanging_transactions``, which opens a producer with the same id. This is safe, because a forecaster that
   is not a member of the group cannot commit.
"""

import logging
import time
from collections.abc import Iterable
from typing import Final

import kafka.errors as client_errors
from kafka import KafkaProducer, TopicPartition
from kafka.admin import AbortTransactionSpec, KafkaAdminClient, ProducerState

from pipeline.errors import StreamgruError
from pipeline.kafka.clients import close_producer, make_admin, make_producer
from pipeline.kafka.instance import CLIENT_PREFIX
from pipeline.kafka.patches import add_to_transaction, producer_id
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.hanging_transactions")

# Milliseconds of one request, for which the loop waits. Opening a producer with the id of another forecaster takes 100
# to 400 ms.
REQUEST_TIMEOUT_MS: Final = 3_000
QUERY_RETRY_S: Final = 0.1  # seconds between two queries for the outcome of a transaction

OFFSETS_TOPIC: Final = "__consumer_offsets"  # Kafka's own topic with the offsets of all groups

_COMMITTED: Final = ("PrepareCommit", "CompleteCommit")
_ONGOING: Final = "Ongoing"


# --- of this forecaster -----------------------------------------------------------------------------------------------


def was_committed(settings: Settings, transactional_id: str) -> bool:
    """Whether the last transaction of an id was committed, or will be; call it before a producer opens with the id.

    It is also False if the brokers do not tell: they are older than 3.0, or this login may not ask.

    Raises:
        kafka.errors.KafkaError: the brokers gave no answer for seconds, for example after a restart. Retry: assuming
            "aborted" would abort committed records.
        BrokerUnreachable: no broker answers.
    """
    until = time.monotonic() + REQUEST_TIMEOUT_MS / 1_000
    while True:
        try:
            # A new client, because kafka-python caches forever which broker coordinates an id.
            with make_admin(settings, request_timeout_ms=REQUEST_TIMEOUT_MS) as admin:
                return admin.describe_transactions([transactional_id])[transactional_id].state in _COMMITTED
        except client_errors.TransactionalIdNotFoundError:
            return False
        except (client_errors.UnsupportedVersionError, client_errors.AuthorizationError) as error:
            logger.debug("the outcome of the last transaction of %s is unknown: %s", transactional_id, error)
            return False
        except client_errors.RetriableError:  # brokers also raise it before their first transaction
            if time.monotonic() > until:
                raise
            time.sleep(QUERY_RETRY_S)


def resolve_hanging(
    producer: KafkaProducer, admin: KafkaAdminClient, topics: Iterable[str], group_id: str, *, committed: bool
) -> None:
    """End the hanging transaction of a producer in these topics and in the group's offsets, as it ended elsewhere.

    It does nothing if the brokers do not list open transactions: a partition has no leader, or this login may not ask.

    Args:
        producer: initialised, without a transaction.
        committed: the result of ``was_committed``.

    Raises:
        kafka.errors.KafkaError: a hanging transaction could not be ended.
    """
    own_id = producer_id(producer)
    hanging = _open_transactions(admin, topics, own_id)
    offsets_hang = bool(_open_transactions(admin, [OFFSETS_TOPIC], own_id))
    if not (hanging or offsets_hang):
        return
    logger.warning(
        "the last transaction is hanging in %s; ending it as in the other partitions: %s",
        ", ".join([f"{at.topic}-{at.partition}" for at in hanging] + [f"the offsets of {group_id}"] * offsets_hang),
        "committed" if committed else "aborted",
    )
    if not committed:
        for partition, active in hanging.items():
            # With the epoch of the partition's last marker: its broker refuses a marker of an earlier epoch.
            marker = AbortTransactionSpec(partition, own_id, active.producer_epoch, active.coordinator_epoch)
            admin.abort_transaction(marker)
        hanging = {}
    # The next marker of the producer decides, so end a transaction without records in these partitions. It also names
    # the group if a login may not ask about the offsets: a marker without an open transaction changes nothing.
    producer.begin_transaction()
    for partition in hanging:
        add_to_transaction(producer, partition)
    producer.send_offsets_to_transaction({}, group_id)
    if committed:
        producer.commit_transaction()
    else:
        producer.abort_transaction()


def _open_transactions(
    admin: KafkaAdminClient, topics: Iterable[str], own_id: int
) -> dict[TopicPartition, ProducerState]:
    """The partitions of the topics in which the producer has an open transaction; empty if the brokers do not tell."""
    try:
        partitions = [
            TopicPartition(found["name"], partition["partition_index"])
            for found in admin.describe_topics(list(topics))
            for partition in found["partitions"]
        ]
        described = admin.describe_producers(partitions)
    except client_errors.KafkaError as error:
        logger.debug("the brokers do not list open transactions: %s", error)
        return {}
    return {
        partition: active
        for partition, state in described.items()
        for active in state.active_producers
        if active.producer_id == own_id and active.current_transaction_start_offset >= 0
    }


# --- of dead forecasters ----------------------------------------------------------------------------------------------


def abort_hanging_transactions(settings: Settings) -> list[str]:
    """Abort the open transactions of forecasters that are not members of the group; return these forecasters' names.

    If the brokers are busy or refuse, nothing is aborted here: they do it after the transaction timeout.
    """
    try:
        # A new client, because kafka-python caches forever which broker coordinates the group.
        timeout_ms = REQUEST_TIMEOUT_MS
        with make_admin(settings, bootstrap_timeout_ms=timeout_ms, request_timeout_ms=timeout_ms) as admin:
            hanging = _find_hanging(settings, admin)
        for transactional_id in hanging:
            producer = make_producer(settings, transactional_id=transactional_id, max_block_ms=timeout_ms)
            try:
                producer.init_transactions()
            finally:
                close_producer(producer)
    except (client_errors.KafkaError, StreamgruError) as error:
        logger.info(
            "cannot abort hanging transactions; the brokers abort them after their timeout: %s: %s",
            type(error).__name__,
            error,
        )
        return []
    names = [transactional_id.removeprefix(f"{settings.forecaster.group_id}-") for transactional_id in hanging]
    if names:
        logger.warning("aborted the open transactions of forecasters that left the group: %s", ", ".join(names))
    return names


def _find_hanging(settings: Settings, admin: KafkaAdminClient) -> list[str]:
    """Transactional ids of this group's forecasters that have an open transaction and are not members."""
    group = settings.forecaster.group_id
    described = admin.describe_groups([group])[group]
    members = described["members"]
    if described.get("error") or not members:  # this forecaster is a member, so an empty list is out of date
        logger.info("the members of group %s are unknown now: %s", group, described.get("error") or "an empty list")
        return []
    alive = {f"{group}-{member['client_id'].removeprefix(CLIENT_PREFIX)}" for member in members}
    open_ids = [
        listing.transactional_id
        for listings in admin.list_transactions(state_filters=[_ONGOING]).values()
        for listing in listings
        if listing.transactional_id.startswith(f"{group}-") and listing.transactional_id not in alive
    ]
    if not open_ids:
        return []
    # A group's name may be the prefix of another's: keep only transactions that write to our state topic.
    return [
        transactional_id
        for transactional_id, found in admin.describe_transactions(open_ids).items()
        if any(where.topic == settings.kafka.topics.state for where in found.topic_partitions)
    ]
