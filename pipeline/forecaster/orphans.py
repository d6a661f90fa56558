"""Ends the transactions that dead forecasters of the group left open.

A partition's committed offset cannot be read while a transaction that may still change it is open. A forecaster that
is started again under its name ends its own; where it is not, the broker would: past the transaction timeout, at its
next look, by default every 10 s. Its partitions would be silent for so long.

Whoever is not a member of the group cannot commit any more: its generation is fenced. So such a transaction can only
be aborted, and a successor does it at once, by taking the transactional id for a moment.
"""

import logging
from typing import Final

import kafka.errors as client_errors
from kafka.admin import KafkaAdminClient

from pipeline.errors import StreamgruError
from pipeline.forecaster.instance import CLIENT_PREFIX
from pipeline.kafka.clients import close_producer, make_admin, make_producer
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.orphans")

_ONGOING: Final = "Ongoing"
# Taking an id takes 0.1 to 0.4 s. The loop waits meanwhile, so no longer than this; then it is tried again.
_TIMEOUT_MS: Final = 3_000


def end_orphans(settings: Settings) -> list[str]:
    """Abort open transactions of forecasters that are not in the group; the names of these.

    Where the brokers do not let us look or take an id (access rights, or they are busy), nothing is done: then the
    transaction's timeout ends it.
    """
    try:
        # A client of its own: kafka-python remembers for ever which broker knew of the group first.
        with make_admin(settings, bootstrap_timeout_ms=_TIMEOUT_MS, request_timeout_ms=_TIMEOUT_MS) as admin:
            orphans = _find(settings, admin)
        for transactional_id in orphans:
            producer = make_producer(settings, transactional_id=transactional_id, max_block_ms=_TIMEOUT_MS)
            try:
                producer.init_transactions()
            finally:
                close_producer(producer)
    except (client_errors.KafkaError, StreamgruError) as error:
        logger.info("cannot end what others left open; their timeout will: %s: %s", type(error).__name__, error)
        return []
    names = [transactional_id.removeprefix(f"{settings.forecaster.group_id}-") for transactional_id in orphans]
    if names:
        logger.warning("ended what forecasters that are not in the group any more left open: %s", ", ".join(names))
    return names


def _find(settings: Settings, admin: KafkaAdminClient) -> list[str]:
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
