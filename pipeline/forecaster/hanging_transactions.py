"""Hanging transactions: those that brokers left undecided, and those that dead forecasters left open.

Decides what brokers left undecided of a forecaster's last transaction.

A broker that comes back while the markers of a transaction are being written can leave out partitions that have no
leader yet (Kafka 4.3), though the transaction counts as complete. What lies there, and all that follows, stays hidden
from readers until the same producer writes there once more; and then the outcome of *that* transaction decides. So it
is looked for when a forecaster's producer is opened, before anything is written, and decided as it should have been.

Ends the transactions that dead forecasters of the group left open.

A partition's committed offset cannot be read while a transaction that may still change it is open. A forecaster that
is started again under its name ends its own; where it is not, the broker would: past the transaction timeout, at its
next look, by default every 10 s. Its partitions would be silent for so long.

Whoever is not a member of the group cannot commit any more: its generation is fenced. So such a transaction can only
be aborted, and a successor does it at once, by taking the transactional id for a moment.
"""

import logging
import time
from collections.abc import Iterable
from typing import Final

import kafka.errors as client_errors
from kafka import KafkaProducer, TopicPartition
from kafka.admin import AbortTransactionSpec, KafkaAdminClient

from pipeline.errors import StreamgruError
from pipeline.forecaster.instance import CLIENT_PREFIX
from pipeline.kafka.clients import close_producer, make_admin, make_producer
from pipeline.kafka.patches import add_to_transaction, producer_id
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.hanging_transactions")

QUERY_TIMEOUT_S: Final = 3.0
QUERY_RETRY_S: Final = 0.1

_COMMITTED: Final = ("PrepareCommit", "CompleteCommit")


def was_committed(settings: Settings, transactional_id: str) -> bool:
    """Whether the last transaction of an id ended, or is bound to end, in a commit; asked before it is taken.

    False also where brokers do not say: they are older than 3.0, or this login may not ask.

    Raises:
        kafka.errors.KafkaError: they cannot say for seconds, such as one that has come back and is still loading. To be
            asked again: taken for an abort, what was committed would be aborted where they left it out.
        BrokerUnreachable: no broker answers.
    """
    until = time.monotonic() + QUERY_TIMEOUT_S
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
            time.sleep(QUERY_RETRY_S)


def _is_committed(settings: Settings, transactional_id: str) -> bool:
    # A client of its own: kafka-python remembers for ever which broker knew of an id first.
    with make_admin(settings, request_timeout_ms=round(QUERY_TIMEOUT_S * 1_000)) as admin:
        return admin.describe_transactions([transactional_id])[transactional_id].state in _COMMITTED


def resolve_hanging(
    producer: KafkaProducer, admin: KafkaAdminClient, topics: Iterable[str], *, committed: bool
) -> None:
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


# --- of dead forecasters ----------------------------------------------------------------------------------------------


_ONGOING: Final = "Ongoing"
# Taking an id takes 0.1 to 0.4 s. The loop waits meanwhile, so no longer than this; then it is tried again.
_TIMEOUT_MS: Final = 3_000


def abort_hanging_transactions(settings: Settings) -> list[str]:
    """Abort open transactions of forecasters that are not in the group; the names of these.

    Where the brokers do not let us look or take an id (access rights, or they are busy), nothing is done: then the
    transaction's timeout ends it.
    """
    try:
        # A client of its own: kafka-python remembers for ever which broker knew of the group first.
        with make_admin(settings, bootstrap_timeout_ms=_TIMEOUT_MS, request_timeout_ms=_TIMEOUT_MS) as admin:
            hanging = _find_hanging(settings, admin)
        for transactional_id in hanging:
            producer = make_producer(settings, transactional_id=transactional_id, max_block_ms=_TIMEOUT_MS)
            try:
                producer.init_transactions()
            finally:
                close_producer(producer)
    except (client_errors.KafkaError, StreamgruError) as error:
        logger.info("cannot end what others left open; their timeout will: %s: %s", type(error).__name__, error)
        return []
    names = [transactional_id.removeprefix(f"{settings.forecaster.group_id}-") for transactional_id in hanging]
    if names:
        logger.warning("ended what forecasters that are not in the group any more left open: %s", ", ".join(names))
    return names


def _find_hanging(settings: Settings, admin: KafkaAdminClient) -> list[str]:
    """Transactional ids of this group's forecasters that have a transaction open and are no members."""
    group = settings.forecaster.group_id
    described = admin.describe_groups([group])[group]
    members = described["members"]
    if described.get("error") or not members:  # whoever asks is a member, so then the brokers do not know of any
        logger.info("who is in group %s is not known just now: %s", group, described.get("error") or "no members")
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
    # Another group's name may begin with this one's: only who writes our states is ours.
    return [
        transactional_id
        for transactional_id, found in admin.describe_transactions(open_ids).items()
        if any(where.topic == settings.kafka.topics.state for where in found.topic_partitions)
    ]
