"""Guards that a run removes from its forecasters, to show that the harness catches the faults they prevent.

Each function patches one guard away in the calling process. The product has no switch for any of them.
"""

from collections.abc import Callable, Generator, Mapping
from typing import Any, Final

from kafka import TopicPartition
from kafka.structs import ConsumerGroupMetadata

import pipeline.forecaster.restore
import pipeline.forecaster.session
import pipeline.forecaster.transaction
from pipeline.forecaster.positions import CommittedPosition, Position, position_from_group
from pipeline.forecaster.restore import Restorer, RestoreReport
from pipeline.forecaster.states.store import ServedModel
from pipeline.forecaster.transaction import KafkaTransport
from pipeline.kafka.clients import make_consumer
from pipeline.kafka.rebalances import GenerationTracker

_consumers: list[Any] = []  # consumers of the forecasters' group, newest last


def _keep_consumers() -> None:
    def make_and_keep(*arguments: Any, **options: Any) -> Any:
        consumer = make_consumer(*arguments, **options)
        if options.get("group_id") is not None:
            _consumers.append(consumer)
        return consumer

    pipeline.forecaster.session.make_consumer = make_and_keep  # type: ignore[attr-defined]


def without_membership() -> None:
    """Commit offsets without generation and member id, as before KIP-447: the broker accepts a zombie's offsets."""
    send_offsets = KafkaTransport.send_offsets

    def send_unfenced(self: KafkaTransport, offsets: Mapping[int, Position], group_metadata: Any) -> None:
        nobody = ConsumerGroupMetadata(group_metadata.group_id, -1, "", None)
        send_offsets(self, offsets, nobody)

    KafkaTransport.send_offsets = send_unfenced  # type: ignore[method-assign]
    pipeline.forecaster.transaction.is_member = lambda group_metadata: True  # type: ignore[attr-defined]


def without_generation_check() -> None:
    """Keep the states in memory even if the client missed a generation of the group."""
    GenerationTracker.is_continuous = lambda self, group_metadata: True  # type: ignore[method-assign]


def without_offsets_in_transaction() -> None:
    """Commit offsets with the consumer, one transaction late, as auto-commit may: a kill then repeats readings.

    The position recorded in the changelog would reveal the repeat, so it is ignored.
    """
    _keep_consumers()
    pipeline.forecaster.restore.resume_position = (  # type: ignore[assignment]
        lambda settings, log, recorded, *, accept_loss: position_from_group(settings, log, accept_loss=accept_loss)
    )
    commit = KafkaTransport.commit
    pending: list[dict[Any, Any]] = []
    late: list[dict[Any, Any]] = []

    def keep(self: KafkaTransport, offsets: Mapping[int, Position], group_metadata: Any) -> None:
        topic = self._readings_topic
        pending.append({TopicPartition(topic, p): position.to_commit() for p, position in offsets.items()})

    def commit_both(self: KafkaTransport) -> None:
        commit(self)
        if late:
            _consumers[-1].commit(late.pop())
        late.append(pending.pop())

    KafkaTransport.send_offsets = keep  # type: ignore[method-assign]
    KafkaTransport.commit = commit_both  # type: ignore[method-assign]


def without_restore() -> None:
    """Serve partitions from their committed offsets, with blank states."""

    def restore(
        self: Restorer,
        serving: ServedModel,
        wanted: set[int],
        committed: Callable[[int], CommittedPosition | None],
        **_: Any,
    ) -> Generator[None, None, RestoreReport]:
        restored = RestoreReport()
        for partition in sorted(wanted):
            log = yield from self._partition_log(partition, committed)
            restored.positions[partition] = log.start if log.committed is None else log.committed.position.next
            serving.table.add_partition(partition)
        return restored

    Restorer.restore = restore  # type: ignore[method-assign]


GUARDS: Final[Mapping[str, Callable[[], None]]] = {
    "membership": without_membership,
    "offsets-in-transaction": without_offsets_in_transaction,
    "restore": without_restore,
    "generations": without_generation_check,
}
