"""Lets a consumer fetch what there is when it is asked, where it would otherwise have fetched ahead.

kafka-python asks for the next records as it hands out some. Where little is waiting, the answer comes at once, with the
one or two readings of the first milliseconds, and lies in the client until the batch before it has been committed;
whatever arrives meanwhile is asked for only then, and comes another batch later. So at 1,000 readings a second a
reading waits for up to two batches before its own. Here a poll that follows a small batch to the end of its logs asks
first, and brings all that has arrived. Behind any other the client fetches ahead as ever: then there is a backlog, and
what counts is that fetching and stepping go on side by side.

What it leans on inside kafka-python (pinned to one minor line; a test looks at the fetches):
``KafkaConsumer._fetcher``, whose ``fetch_records`` calls ``fetched_records`` and then ``send_fetches``, on the thread
that polls; and the positions and ends of its ``_subscription``.
"""

from typing import Any, Final

from kafka import KafkaConsumer, TopicPartition

# Readings of a batch from which on the next is fetched ahead. A fetch takes some 2 ms, stepping as many takes 20.
FEW_RECORDS: Final = 500


def fetch_late(consumer: KafkaConsumer) -> KafkaConsumer:
    """Let ``poll`` fetch ahead only where there is a backlog. For a consumer that one thread polls."""
    fetcher = consumer._fetcher
    hand_out, send = fetcher.fetched_records, fetcher.send_fetches
    is_caught_up = False

    def is_at_end(where: TopicPartition) -> bool:
        # Of a partition that the client's own thread has just given up there is nothing to fetch.
        state = consumer._subscription.assignment.get(where)
        return state is None or state.position is None or state.position.offset >= (state.highwater or 0)

    def fetched_records(*args: Any, **options: Any) -> tuple[Any, bool]:
        nonlocal is_caught_up
        records, is_partial = hand_out(*args, **options)
        few = 0 < sum(map(len, records.values())) < FEW_RECORDS
        is_caught_up = few and all(map(is_at_end, records))
        return records, is_partial

    def send_fetches() -> Any:
        return [] if is_caught_up else send()

    fetcher.fetched_records, fetcher.send_fetches = fetched_records, send_fetches
    return consumer
