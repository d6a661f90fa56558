"""Patches for faults of kafka-python in the clients that ``clients`` makes, and calls that its public API lacks.

Every function lists the private parts that it touches, why, the fault without it, the versions that it is tested with
and when it can go. pyproject.toml pins the same versions. tests/integration/test_patches.py shows each fault without
its patch: once a patch's case "unpatched" fails under a newer kafka-python, the patch can go.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import kafka.errors as client_errors
import kafka.net.selector as client_loop
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.coordinator.base import Generation, MemberState

# Wait between two attempts to send a transactional request to an unreachable broker; the client does not wait.
UNREADY_WAIT_MS: Final = 50
# Wait before a transactional request is sent again. The first request of a busy forecaster's transaction is always sent
# twice or more, because the broker is still ending the previous transaction. A transaction of 24 records takes 9.6 ms
# with a wait of 5 ms, 7.8 ms with 2 ms and 7.6 ms with 1 ms.
TRANSACTION_RETRY_MS: Final = 2
TRACE_LEVEL: Final = 5  # the client's level of logging for each turn of its event loop


def make_or_clean_up(kind: Any, options: Mapping[str, Any]) -> Any:
    """A consumer or an admin client; if no broker answers, its thread and its files are closed.

    Private: ``_client``, ``_net``.
    Why: the constructor starts the client's thread before it asks the first broker, and leaves it running on an error.
    Without it: a process that waits for brokers leaks a thread and its files with every attempt.
    Tested with: kafka-python >=3.0.12,<3.1.
    Goes when: a failing constructor closes its thread and files.
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


def patch_consumer(consumer: KafkaConsumer) -> KafkaConsumer:
    """Apply all patches of a consumer.

    Private: ``_cluster``, ``_coordinator``, ``_fetcher``.
    Why: the patches below replace methods of these objects.
    Without it: see each patch.
    Tested with: kafka-python >=3.0.12,<3.1.
    Goes when: the last patch of a consumer goes.
    """
    _disable_topic_creation(consumer._cluster)
    _finish_started_rejoins(consumer._coordinator)
    _keep_finished_joins(consumer._coordinator)
    _claim_owned_partitions(consumer)
    _name_missing_leaders(consumer._fetcher)
    skip_trace_messages()
    return consumer


def patch_producer(producer: KafkaProducer) -> KafkaProducer:
    """Apply all patches of a producer.

    Private: ``_metadata``, ``_sender`` with its ``_client._manager``, ``_accumulator``, ``_transaction_manager``.
    Why: the patches below replace methods of these objects.
    Without it: see each patch.
    Tested with: kafka-python >=3.0.12,<3.1.
    Goes when: the last patch of a producer goes.
    """
    _disable_topic_creation(producer._metadata)
    _keep_unsent_requests(producer._sender)
    _retry_logins(producer._sender._client._manager)
    _look_up_leaders_of_queued_batches_only(producer._accumulator)
    if producer._transaction_manager is not None and producer._transaction_manager.is_transactional():
        _fail_on_sequence_errors(producer._transaction_manager)
        _retry_transactional_requests_soon(producer._sender)
    skip_trace_messages()
    return producer


def skip_trace_messages() -> None:
    """Log no messages about single turns of the clients' event loops, unless their level is on.

    Private: ``kafka.net.selector.log_trace``.
    Why: each turn of the loop calls the logger up to ten times.
    Without it: a producer's thread takes 7 % more CPU time for a small transaction.
    Tested with: kafka-python >=3.0.12,<3.1.
    Goes when: the event loop asks for the level once per turn, or not at all.
    """
    if not client_loop.log.isEnabledFor(TRACE_LEVEL):
        client_loop.log_trace = _log_nothing


def _log_nothing(*_: object) -> None:
    pass


def _disable_topic_creation(cluster: Any) -> None:
    """Let no metadata request create a topic.

    Private: the ``config`` of ``KafkaConsumer._cluster`` and ``KafkaProducer._metadata``.
    Why: the client's option ``allow_auto_create_topics`` reaches no request.
    Without it: brokers that allow it, which is their default, create a deleted topic again as soon as a client looks it
        up, with the brokers' partition count and without compaction.
    Tested with: kafka-python >=3.0.12,<3.1.
    Goes when: the option has an effect.
    """
    cluster.config["allow_auto_create_topics"] = False


# --- consumers --------------------------------------------------------------------------------------------------------


def _finish_started_rejoins(coordinator: Any) -> None:
    """Once a rejoin has started, every poll waits for it, even if its reason no longer holds.

    Private: ``KafkaConsumer._coordinator``, its ``need_rejoin`` and ``request_rejoin``.
    Why: a group's leader rejoins when the topic's partitions differ from those it assigned: it may learn of a partition
        after its join, or a restarting broker may omit one for a moment. That reason ends with the leader's next
        assignment. If the ``poll`` that started the rejoin has timed out by then, no later poll reads the outcome.
    Without it: the member keeps its old assignment or none, sends no heartbeats, and stays out of its group for ever,
        without an error. Java's client had this fault until KAFKA-9815; since then it requests the rejoin explicitly,
        as this patch does.
    Tested with: kafka-python >=3.0.12,<3.1.
    Goes when: the client keeps its own request for a rejoin until a join has finished.
    """
    is_needed = coordinator.need_rejoin

    def need_rejoin() -> bool:
        if not is_needed():
            return False
        coordinator.request_rejoin()  # stays set until a join has finished
        return True

    coordinator.need_rejoin = need_rejoin


def _keep_finished_joins(coordinator: Any) -> None:
    """Use the result of a join that finished between two polls.

    Private: ``KafkaConsumer._coordinator._do_join_and_sync_async``, ``._generation``.
    Why: the client discards that result and joins again, and so makes the whole group rebalance again.
    Without it: a forecaster that is restoring polls for 10 ms every 100 ms and hardly ever leaves a rebalance. No
        member gets readings during a rebalance.
    Tested with: kafka-python >=3.0.12,<3.1.
    Goes when: the client itself keeps a finished join for the next poll.
    """
    join = coordinator._do_join_and_sync_async
    finished: tuple[Generation, bytes] | None = None

    async def join_unless_finished() -> bytes:
        nonlocal finished
        before, finished = finished, None
        # State REBALANCING: the assignment is unused. The same generation: the member has not left the group since.
        if before is not None and coordinator.state is MemberState.REBALANCING:
            generation, kept = before
            if generation is coordinator._generation:
                return kept
        assignment: bytes = await join()
        finished = coordinator._generation, assignment
        return assignment

    coordinator._do_join_and_sync_async = join_unless_finished


def _claim_owned_partitions(consumer: KafkaConsumer) -> None:
    """Let a member's JoinGroup claim the partitions that it owns at that moment.

    Private: ``KafkaConsumer._coordinator._assignors``, ``._generation``, ``_subscription``.
    Why: the cooperative assignor claims the partitions of its last assignment, even after the member left the group.
    Without it: the group's leader waits for the member to give up partitions that it does not own, and assigns them to
        no other member; or it assigns them to the claimant before their owner has given them up.
    Tested with: kafka-python >=3.0.12,<3.1.
    Goes when: the assignor forgets its assignment as soon as the member has left its group.
    """

    def claim_owned(assignor: Any) -> None:
        described = assignor.metadata

        def metadata(topics: Iterable[str]) -> Any:
            is_lost = consumer._coordinator._generation.is_lost()
            assignor.member_assignment = [] if is_lost else sorted(consumer._subscription.assigned_partitions())
            return described(topics)

        assignor.metadata = metadata

    for assignor in consumer._coordinator._assignors.values():
        if hasattr(assignor, "member_assignment"):
            claim_owned(assignor)


def _name_missing_leaders(fetcher: Any) -> None:
    """Raise ``LeaderNotAvailableError`` with the partition when an offset lookup finds no leader.

    Private: ``KafkaConsumer._fetcher.beginning_or_end_offset``.
    Why: the lookup of several partitions raises a bare ``KeyError`` instead.
    Without it: the forecaster ends with a traceback instead of waiting for the leader.
    Tested with: kafka-python >=3.0.12,<3.1.
    Goes when: the client raises one of its own errors.
    """
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


def next_offset(consumer: KafkaConsumer, where: TopicPartition) -> int | None:
    """The next offset to fetch; ``None`` if it is unknown, or if the consumer does not own the partition.

    Private: ``_subscription``.
    Why: ``KafkaConsumer.position`` consumes a pending ``LogTruncationError``.
    Without it: ``poll`` no longer raises that error, and readings that the brokers lost go unnoticed.
    Tested with: kafka-python >=3.0.12,<3.1.
    Goes when: ``position`` leaves the error to ``poll``.
    """
    state = consumer._subscription.assignment.get(where)
    return None if state is None or state.position is None else int(state.position.offset)


def leaderless(consumer: KafkaConsumer, partitions: Iterable[TopicPartition]) -> list[TopicPartition]:
    """The partitions without a leader in the cached metadata; if there are any, a refresh is requested.

    Private: ``_cluster``.
    Why: ``KafkaConsumer`` does not report whether a partition has a leader.
    Without it: one partition without a leader makes the offset lookup of all partitions fail.
    Tested with: kafka-python >=3.0.12,<3.1.
    Goes when: ``KafkaConsumer`` reports a partition's leader, or looks up the offsets of the other partitions.
    """
    found = [where for where in partitions if consumer._cluster.leader_for_partition(where) == -1]
    if found:
        consumer._cluster.request_update()
    return found


def request_rejoin(consumer: KafkaConsumer) -> None:
    """Let the next poll join the consumer's group again.

    Private: ``_coordinator``.
    Why: ``KafkaConsumer`` has no ``enforceRebalance``, as Java's client has.
    Without it: a member that the group has lost without an error aborts every transaction for ever.
    Tested with: kafka-python >=3.0.12,<3.1.
    Goes when: ``KafkaConsumer`` has such a method.
    """
    consumer._coordinator.request_rejoin()


# --- producers --------------------------------------------------------------------------------------------------------


def _keep_unsent_requests(sender: Any) -> None:
    """Keep a transactional request whose broker cannot be reached, and send it once the broker is back.

    Private: ``KafkaProducer._sender._client.await_ready``.
    Why: the sender keeps the request if ``await_ready`` returns ``False``, and drops it if ``await_ready`` raises.
    Without it: a commit whose broker was away for a second never returns.
    Tested with: kafka-python >=3.0.12,<3.1.
    Goes when: the sender keeps the request in both cases.
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


def _retry_logins(manager: Any) -> None:
    """Log in again after a broker has refused the login.

    A wrong password is still reported: making a client logs in once before this patch.

    Private: ``KafkaProducer._sender._client._manager.maybe_raise_auth_failure``.
    Why: a broker that restarts may refuse logins for a moment; the client remembers the refusal for ever.
    Without it: the sender's thread retries the refused request without a pause and never connects again.
    Tested with: kafka-python >=3.0.12,<3.1.
    Goes when: the client retries a refused login after a while.
    """
    manager.maybe_raise_auth_failure = lambda node_id: None


def _look_up_leaders_of_queued_batches_only(accumulator: Any) -> None:
    """Request metadata for a partition without a leader only if a batch is queued for it.

    Private: ``KafkaProducer._accumulator.ready``, ``._batches``.
    Why: the client also requests it for partitions whose queues are empty.
    Without it: the sender requests metadata without a pause while any partition that it ever wrote to has no leader.
    Tested with: kafka-python >=3.0.12,<3.1.
    Goes when: ``ready`` skips empty queues.
    """
    look = accumulator.ready

    def ready(cluster: Any, now: float | None = None) -> tuple[Any, Any, bool]:
        nodes, delay, is_unknown = look(cluster, now=now)
        if is_unknown:
            queued = [where for where, batches in list(accumulator._batches.items()) if batches]
            is_unknown = any(cluster.leader_for_partition(where) in (None, -1) for where in queued)
        return nodes, delay, is_unknown

    accumulator.ready = ready


def _fail_on_sequence_errors(manager: Any) -> None:
    """Let a transactional producer fail when a broker refuses its epoch or its sequence numbers.

    A producer that failed is not used again, so it needs no new epoch.

    Private: ``KafkaProducer._transaction_manager._supports_epoch_bump``.
    Why: the client requests a new epoch (KIP-360) inside the transaction instead.
    Without it: a producer that was fenced aborts its successor's transaction by that request.
    Tested with: kafka-python >=3.0.12,<3.1.
    Goes when: the client requests no new epoch after ``InvalidProducerEpochError``.
    """
    manager._supports_epoch_bump = lambda: False


def _retry_transactional_requests_soon(sender: Any) -> None:
    """Send a transactional request again after ``TRANSACTION_RETRY_MS``.

    The sender's ``retry_backoff_ms`` is also the timeout of its poll while a transactional request is in flight, so the
    sender then wakes every ``TRANSACTION_RETRY_MS``.

    Private: the ``config`` of ``KafkaProducer._sender``.
    Why: the option ``retry_backoff_ms`` also sets how often the client asks for metadata and sends a batch again, which
        is too often for brokers that have just come back.
    Without it: each transaction takes 2 ms longer.
    Tested with: kafka-python >=3.0.12,<3.1.
    Goes when: the client waits for the end of the previous transaction, or the broker delays its answer until then.
    """
    sender.config["retry_backoff_ms"] = TRANSACTION_RETRY_MS


def abort_transaction(producer: KafkaProducer, timeout_s: float) -> None:
    """Abort the open transaction, and wait at most ``timeout_s`` for the broker's answer.

    Private: ``_transaction_manager``, ``_sender``.
    Why: ``KafkaProducer.abort_transaction`` takes no timeout.
    Without it: an abort while the brokers are away never returns.
    Tested with: kafka-python >=3.0.12,<3.1.
    Goes when: ``KafkaProducer.abort_transaction`` takes a timeout.

    Raises:
        kafka.errors.KafkaError: there is no open transaction, or the broker has not answered in time.
    """
    result = producer._transaction_manager.begin_abort()
    producer._sender.wakeup()
    if not result.wait(timeout_s * 1_000):
        raise client_errors.KafkaTimeoutError(f"the brokers did not answer an abort within {timeout_s:g} s")


def producer_id(producer: KafkaProducer) -> int:
    """The id that the broker gave to an initialised producer.

    Private: ``_transaction_manager``.
    Why: ``KafkaProducer`` does not expose its id.
    Without it: a forecaster cannot tell its own hanging transactions from those of other producers.
    Tested with: kafka-python >=3.0.12,<3.1.
    Goes when: ``KafkaProducer`` exposes its id.
    """
    return int(producer._transaction_manager.producer_id_and_epoch.producer_id)


def add_to_transaction(producer: KafkaProducer, where: TopicPartition) -> None:
    """Add a partition to the open transaction without a record.

    Private: ``_transaction_manager``.
    Why: ``KafkaProducer`` adds a partition only together with a record.
    Without it: ending a hanging transaction would need an extra record on the partition.
    Tested with: kafka-python >=3.0.12,<3.1.
    Goes when: ``KafkaProducer`` adds a partition without a record.
    """
    producer._transaction_manager.maybe_add_partition_to_transaction(where)


def stop_sender(producer: KafkaProducer) -> None:
    """Stop a producer's thread at once; its queued batches fail.

    Private: ``_sender``.
    Why: ``KafkaProducer.close`` raises if it cannot flush in time, before it stops the thread.
    Without it: every producer that is closed while the brokers are away leaves a thread and its connections.
    Tested with: kafka-python >=3.0.12,<3.1.
    Goes when: ``close`` stops the thread even when it times out.
    """
    producer._sender.force_close()
