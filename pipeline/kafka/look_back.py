"""Where a consumer without a group begins that shows the latest records first."""

from typing import Any, NamedTuple

from kafka import KafkaConsumer, TopicPartition

from pipeline.kafka.clients import partition_count


class LookBack(NamedTuple):
    """The offsets at which to begin, and the present ends, by partition."""

    starts: dict[Any, int]
    ends: dict[Any, int]


def look_back(consumer: KafkaConsumer, topic: str, records: int | None) -> LookBack:
    """The place ``records`` offsets before the end of each partition; None: the first offset.

    Raises:
        TopicError: the topic does not exist.
    """
    partitions = [TopicPartition(topic, number) for number in range(partition_count(consumer, topic))]
    begins, ends = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
    if records is None:
        return LookBack(begins, ends)
    return LookBack({tp: max(begins[tp], ends[tp] - records) for tp in partitions}, ends)
