"""Mends two faults of kafka-python 3.0.12 in the clients that ``clients`` makes; each can go when the client is mended.

What they lean on (pinned to one minor line; tests/integration/test_workarounds.py shows each fault without its mend):
``KafkaConsumer._coordinator`` with ``need_rejoin`` and ``request_rejoin``, and ``ClusterMetadata.config``.
"""

from kafka import KafkaConsumer, KafkaProducer


def finish_joins(consumer: KafkaConsumer) -> KafkaConsumer:
    """Let a rejoin that was begun be waited for until it is done, whatever it was begun for.

    A group's leader joins anew where the topic's partitions are others than those it assigned: first known after it had
    joined, say, or missing for a moment in what a restarting broker says. That reason is gone as soon as it assigns
    anew; if the ``poll`` that began it ended by its timeout meanwhile, none asks for the outcome any more. The client
    then keeps its old assignment or none, sends no heartbeats, and is out of its group for ever without a word.
    Java's client did likewise until KAFKA-9815, and asks for a rejoin in its own name since, as is done here.
    """
    coordinator = consumer._coordinator
    is_needed = coordinator.need_rejoin

    def need_rejoin() -> bool:
        if not is_needed():
            return False
        coordinator.request_rejoin()  # stands until a join is done
        return True

    coordinator.need_rejoin = need_rejoin
    return consumer


def create_no_topics(client: KafkaConsumer | KafkaProducer) -> None:
    """Let looking for a topic never create it: the option ``allow_auto_create_topics`` reaches no request of theirs.

    Where brokers allow it, which is their default, a topic that was deleted would come back with the brokers' partition
    count and without compaction, by the client that still looks for it.
    """
    cluster = client._cluster if isinstance(client, KafkaConsumer) else client._metadata
    cluster.config["allow_auto_create_topics"] = False
