"""Mends faults of kafka-python 3.0.12 in the clients that ``clients`` makes; each goes when the client's own is mended.

What they lean on (pinned to one minor line; tests/integration/test_workarounds.py shows each fault without its mend):
of a consumer ``_coordinator``, ``_subscription`` and ``_fetcher``; of a producer ``_sender``, ``_transaction_manager``
and ``_accumulator``; of both the cluster's metadata.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import kafka.errors as client_errors
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.coordinator.base import Generation, MemberState

# Between two tries of a transactional request whose broker cannot be reached: the client itself does not wait.
UNREADY_WAIT_MS: Final = 50


def make_or_let_go(kind: Any, options: Mapping[str, Any]) -> Any:
    """A consumer or an admin client; where no broker answers, nothing is left of it.

    Its thread runs before it asks the first broker, and keeps the client, its files and itself for ever.
    """
    client = kind.__new__(kind)
    try:
        kind.__init__(client, **options)
    except BaseException:
        if hasattr(client, "_net"):
            client._client.close()
            client._net.stop()
        raise
    return client


def mend_consumer(consumer: KafkaConsumer) -> KafkaConsumer:
    """All mends of a consumer."""
    _create_no_topics(consumer._cluster)
    _wait_for_joins(consumer._coordinator)
    _keep_finished_joins(consumer._coordinator)
    _claim_what_is_held(consumer)
    _name_missing_leaders(consumer._fetcher)
    return consumer


def mend_producer(producer: KafkaProducer) -> KafkaProducer:
    """All mends of a producer."""
    _create_no_topics(producer._metadata)
    _keep_unsent_requests(producer._sender)
    _try_logins_again(producer._sender._client._manager)
    _look_for_leaders_in_need_only(producer._accumulator)
    if producer._transaction_manager is not None and producer._transaction_manager.is_transactional():
        _end_at_broken_sequences(producer._transaction_manager)
    return producer


def next_offset(consumer: KafkaConsumer, where: TopicPartition) -> int | None:
    """Where a consumer reads on, as far as it knows; none where it does not, or the partition is not its own.

    ``KafkaConsumer.position`` would take away the error that tells ``poll`` that the brokers lost readings.
    """
    state = consumer._subscription.assignment.get(where)
    return None if state is None or state.position is None else int(state.position.offset)


def leaderless(consumer: KafkaConsumer, partitions: Iterable[TopicPartition]) -> list[TopicPartition]:
    """The partitions that are known to have no leader at present; whether they have one by now is asked meanwhile."""
    found = [where for where in partitions if consumer._cluster.leader_for_partition(where) == -1]
    if found:
        consumer._cluster.request_update()
    return found


def _create_no_topics(cluster: Any) -> None:
    """Let looking for a topic never create it: the option ``allow_auto_create_topics`` reaches no request.

    Where brokers allow it, which is their default, a topic that was deleted would come back with the brokers' partition
    count and without compaction, by the client that still looks for it.
    """
    cluster.config["allow_auto_create_topics"] = False


# --- consumers --------------------------------------------------------------------------------------------------------


def _wait_for_joins(coordinator: Any) -> None:
    """Let a rejoin that was begun be waited for until it is done, whatever it was begun for.

    A group's leader joins anew where the topic's partitions are others than those it assigned: first known after it had
    joined, say, or missing for a moment in what a restarting broker says. That reason is gone as soon as it assigns
    anew; if the ``poll`` that began it ended by its timeout meanwhile, none asks for the outcome any more. The client
    then keeps its old assignment or none, sends no heartbeats, and is out of its group for ever without a word.
    Java's client did likewise until KAFKA-9815, and asks for a rejoin in its own name since, as is done here.
    """
    is_needed = coordinator.need_rejoin

    def need_rejoin() -> bool:
        if not is_needed():
            return False
        coordinator.request_rejoin()  # stands until a join is done
        return True

    coordinator.need_rejoin = need_rejoin


def _keep_finished_joins(coordinator: Any) -> None:
    """Take what a join has brought between two polls, where the client would join once more, and its whole group.

    A forecaster that restores polls for 10 ms and is away for 100: it would hardly ever come out of a rebalance, and
    nobody is handed readings during one.
    """
    join = coordinator._do_join_and_sync_async
    brought: tuple[Generation, bytes] | None = None

    async def join_unless_done() -> bytes:
        nonlocal brought
        before, brought = brought, None
        # Once an assignment is taken the state is stable; out of the group again, there is another generation.
        if before is not None and coordinator.state is MemberState.REBALANCING:
            generation, kept = before
            if generation is coordinator._generation:
                return kept
        assignment: bytes = await join()
        brought = coordinator._generation, assignment
        return assignment

    coordinator._do_join_and_sync_async = join_unless_done


def _claim_what_is_held(consumer: KafkaConsumer) -> None:
    """Let a member claim the partitions that it holds, where it would claim those it was last given.

    Who was out of the group holds none. Its claim would keep the leader from giving them to anyone else until it had
    let them go, which it never does; or it would be given them while their owner is only being asked for them.
    """

    def claim_as_held(assignor: Any) -> None:
        described = assignor.metadata

        def metadata(topics: Iterable[str]) -> Any:
            is_lost = consumer._coordinator._generation.is_lost()
            assignor.member_assignment = [] if is_lost else sorted(consumer._subscription.assigned_partitions())
            return described(topics)

        assignor.metadata = metadata

    for assignor in consumer._coordinator._assignors.values():
        if hasattr(assignor, "member_assignment"):
            claim_as_held(assignor)


def _name_missing_leaders(fetcher: Any) -> None:
    """Say which partition has no leader, where looking up offsets of several would fail by a bare ``KeyError``."""
    look_up = fetcher.beginning_or_end_offset

    def beginning_or_end_offset(*args: Any, **options: Any) -> Any:
        try:
            return look_up(*args, **options)
        except KeyError as error:
            where: TopicPartition = error.args[0]
            raise client_errors.LeaderNotAvailableError(
                f"partition {where.partition} of {where.topic} has no leader"
            ) from error

    fetcher.beginning_or_end_offset = beginning_or_end_offset


# --- producers --------------------------------------------------------------------------------------------------------


def _keep_unsent_requests(sender: Any) -> None:
    """Keep a transactional request whose broker cannot be connected to, to be sent when it can.

    The sender keeps it where ``await_ready`` returns False, and drops it where that raises, as it does; whoever waits
    for the outcome, of a commit say, then waits for ever, though the broker is back after a second.
    """
    client = sender._client
    wait = client.await_ready

    def await_ready(node_id: Any, timeout_ms: float = 30_000) -> bool:
        try:
            return bool(wait(node_id, timeout_ms))
        except client_errors.KafkaError:
            client.poll(timeout_ms=UNREADY_WAIT_MS)
            return False

    client.await_ready = await_ready


def _try_logins_again(manager: Any) -> None:
    """Try to log in again where a broker refused it, which the client remembers for ever, and then spins.

    A broker that restarts may refuse for a moment. A wrong password is still told: making a client logs in, before it
    is mended.
    """
    manager.maybe_raise_auth_failure = lambda node_id: None


def _look_for_leaders_in_need_only(accumulator: Any) -> None:
    """Ask who leads a partition only while something waits to be sent there; else the sender asks without a pause."""
    look = accumulator.ready

    def ready(cluster: Any, now: float | None = None) -> tuple[Any, Any, bool]:
        nodes, delay, is_unknown = look(cluster, now=now)
        if is_unknown:
            waiting = [where for where, batches in list(accumulator._batches.items()) if batches]
            is_unknown = any(cluster.leader_for_partition(where) in (None, -1) for where in waiting)
        return nodes, delay, is_unknown

    accumulator.ready = ready


def _end_at_broken_sequences(manager: Any) -> None:
    """Let a transactional producer fail where its epoch or its sequence numbers are refused.

    The client would take a new epoch instead (KIP-360), inside the transaction. One whose successor is at work would
    end that one's transaction by asking. Here a producer that failed is not used again, so it gains nothing.
    """
    manager._supports_epoch_bump = lambda: False
