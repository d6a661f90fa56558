"""The CPU time of one reading alone: a poll that returns one record, and its step and encoding."""

import statistics
import time
from dataclasses import dataclass
from typing import Final

from kafka import TopicPartition

from pipeline.forecaster.micro_batch import MicroBatchBuilder
from pipeline.forecaster.states.store import ServedModel
from pipeline.kafka.batch_consumer import read_fast
from pipeline.kafka.clients import make_consumer
from pipeline.settings import Settings
from tests.benchmarks import sides
from tests.integration.stream_rig import small_forecaster

SENSORS, STEPS = 20, 100
WARM_UP: Final = 500  # readings


@dataclass(frozen=True)
class Alone:
    """Median milliseconds of CPU per reading."""

    poll_ms: float  # with the fetched record batch in memory
    build_ms: float  # decode, classify, step, encode the forecast and the state


def one_reading(settings: Settings) -> Alone:
    """Poll and step readings one by one."""
    source = sides.fill(settings, SENSORS, STEPS)
    serving = ServedModel(1, small_forecaster(settings, hidden_size=sides.HIDDEN_SIZE), settings)
    where = [TopicPartition(settings.kafka.topics.readings, number) for number in range(settings.kafka.partitions)]
    for each in where:
        serving.table.add_partition(each.partition)
    builder = MicroBatchBuilder(settings, serving, "alone")
    consumer = read_fast(make_consumer(settings), settings.kafka, in_columns=True)
    polls: list[float] = []
    builds: list[float] = []
    try:
        consumer.assign(where)
        consumer.seek_to_beginning(*where)
        while len(builds) < source.readings:
            began = time.thread_time()
            polled = consumer.poll(timeout_ms=1_000, max_records=1)
            if not polled:
                continue
            after = time.thread_time()
            batch = builder.build(polled)
            ended = time.thread_time()
            assert batch.stepped is not None
            serving.table.scatter(batch.stepped.rows, batch.stepped.states)
            polls.append(after - began)
            builds.append(ended - after)
    finally:
        consumer.close()
    return Alone(*(statistics.median(times[WARM_UP:]) * 1_000 for times in (polls, builds)))
