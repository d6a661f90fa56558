"""CPU time of the forecaster by stage, as a program that also measures another tree of this project.

``PYTHONPATH=TREE python -P tests/benchmarks/stages.py SETTINGS READINGS`` forecasts a filled readings topic and prints
JSON: case -> stage -> microseconds of CPU per reading. A stage is timed by wrapping its functions. A name that the tree
does not have is skipped, and its time counts for the stage that called it.
"""

import importlib
import importlib.util
import inspect
import json
import os
import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

CASES: Final = ((1, "off"), (24, "light"))  # horizon in steps, level of adaptation
ROUNDS: Final = 3
QUANTILES: Final = (0.1, 0.5, 0.9)

CLIENT_THREADS: Final = "client threads, without compression"
REST: Final = "rest of the loop"
ALONE: Final = "one reading alone, horizon 24, light"
ALONE_SENSORS, ALONE_READINGS = 20, 2_000
ALONE_WARM_UP: Final = 500  # readings
# Stage -> its functions, as module:name. Called functions that are stages of their own are subtracted.
STAGES: Final[Mapping[str, Sequence[str]]] = {
    "poll and parse": ("pipeline.forecaster.session:Session.poll",),
    "decode": (
        "pipeline.forecaster.micro_batch:decode_records",
        "pipeline.forecaster.micro_batch:decode_columns",
    ),
    "classify": ("pipeline.forecaster.states.store:ServedModel.classify_all",),
    "gather states": ("pipeline.forecaster.states.store:ServedModel.step",),
    "step the network": ("model.stepper:Stepper.step",),
    "adapt": (
        "model.stepper:Stepper._adapt",
        "model.stepper:Stepper._follow",
        "model.engine:Engine._adapt",
        "model.engine:Engine._follow",
    ),
    "encode forecasts": ("pipeline.forecaster.micro_batch:MicroBatchBuilder._forecasts",),
    "encode states": ("pipeline.forecaster.micro_batch:MicroBatchBuilder._states",),
    "append to batches": ("pipeline.forecaster.transaction:KafkaTransport.append",),
    "flush and commit": (
        "pipeline.forecaster.transaction:KafkaTransport.flush",
        "pipeline.forecaster.transaction:KafkaTransport.send_offsets",
        "pipeline.forecaster.transaction:KafkaTransport.commit",
    ),
    "compress": (
        "kafka.record.default_records:DefaultRecordBatchBuilder._maybe_compress",
        "pipeline.kafka.compression:_FastLz4Builder._maybe_compress",
    ),
}


class Clock:
    """CPU seconds by stage. A call within another stage's call counts for its own stage only."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.aside: dict[str, float] = defaultdict(float)  # in other threads than the loop's
        self._loop = threading.get_ident()
        self._open = threading.local()

    def wrap(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*args: Any, **options: Any) -> Any:
            inner = self._open.__dict__.setdefault("inner", [])  # seconds of stages within each open call
            inner.append(0.0)
            began = time.thread_time()
            try:
                return function(*args, **options)
            finally:
                took = time.thread_time() - began
                own = took - inner.pop()
                self.seconds[stage] += own
                if threading.get_ident() != self._loop:
                    self.aside[stage] += own
                if inner:
                    inner[-1] += took

        return timed


def install(clock: Clock) -> None:
    """Wrap the functions of all stages."""
    for stage, places in STAGES.items():
        for place in places:
            found = find(place)
            if found is not None:
                owner, name = found
                setattr(owner, name, clock.wrap(stage, getattr(owner, name)))


def find(place: str) -> tuple[Any, str] | None:
    """The object that has the function at a place, and its name; None if this tree does not have it."""
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    if importlib.util.find_spec(module) is None:
        return None
    owner: Any = importlib.import_module(module)
    for each in owners:
        owner = getattr(owner, each, None)
    return (owner, name) if hasattr(owner, name) else None


def run(settings: Any, readings: int) -> dict[str, dict[str, float]]:
    """Case -> stage -> microseconds of CPU per reading, the median of the rounds."""
    from tests.benchmarks import sides

    found: dict[str, dict[str, list[float]]] = {}
    clock = Clock()
    install(clock)
    for _ in range(ROUNDS):
        for horizon_steps, level in CASES:
            fresh = sides.again(sides.adapting(settings, level), horizon_steps=horizon_steps, quantiles=QUANTILES)
            rounds = found.setdefault(f"horizon {horizon_steps}, {level}", {})
            for stage, seconds in forecast(fresh, readings, clock).items():
                rounds.setdefault(stage, []).append(seconds / readings * 1e6)
    medians = {case: {stage: statistics.median(each) for stage, each in by.items()} for case, by in found.items()}
    alone = sides.again(sides.adapting(settings, "light"), horizon_steps=24, quantiles=QUANTILES)
    return medians | {ALONE: by_stage(alone, clock)}


def by_stage(settings: Any, clock: Clock) -> dict[str, float]:
    """Stage -> mean microseconds of CPU of readings that come one by one; without the client's threads."""
    polled_ms, built_ms = one_by_one(settings, lambda: clock.seconds.clear())
    found = dict.fromkeys(STAGES, 0.0)
    found |= {stage: seconds / (ALONE_READINGS - ALONE_WARM_UP) * 1e6 for stage, seconds in clock.seconds.items()}
    found["poll and parse"] = statistics.mean(polled_ms) * 1e3
    found["all"] = (statistics.mean(polled_ms) + statistics.mean(built_ms)) * 1e3
    found[REST] = found["all"] - sum(found[stage] for stage in STAGES)
    return found


def one_by_one(settings: Any, warm: Callable[[], None] = lambda: None) -> tuple[list[float], list[float]]:
    """Milliseconds of CPU of each poll that returns one reading, and of each micro-batch of one reading.

    A poll finds the record batch in memory. A micro-batch is decoded, classified and stepped, and its forecast and its
    state are encoded.

    Args:
        settings: with a readings topic that holds at least ``ALONE_READINGS`` readings.
        warm: called after the readings that are not counted.
    """
    from kafka import TopicPartition

    from pipeline.forecaster.micro_batch import MicroBatchBuilder
    from pipeline.forecaster.states.store import ServedModel
    from pipeline.kafka.batch_consumer import read_fast
    from pipeline.kafka.clients import make_consumer
    from tests.benchmarks.sides import HIDDEN_SIZE
    from tests.integration.stream_rig import small_forecaster

    serving = ServedModel(1, small_forecaster(settings, hidden_size=HIDDEN_SIZE), settings)
    where = [TopicPartition(settings.kafka.topics.readings, number) for number in range(settings.kafka.partitions)]
    for each in where:
        serving.table.add_partition(each.partition)
    builder = MicroBatchBuilder(settings, serving, "alone")
    # An earlier commit has no columns.
    options = {"in_columns": True} if "in_columns" in inspect.signature(read_fast).parameters else {}
    consumer: Any = read_fast(make_consumer(settings), settings.kafka, **options)
    polls: list[float] = []
    builds: list[float] = []
    try:
        consumer.assign(where)
        consumer.seek_to_beginning(*where)
        while len(builds) < ALONE_READINGS:
            began = time.thread_time()
            polled = consumer.poll(timeout_ms=1_000, max_records=1)
            after = time.thread_time()
            if not polled:
                continue
            batch = builder.build(polled)
            ended = time.thread_time()
            assert batch.stepped is not None
            serving.table.scatter(batch.stepped.rows, batch.stepped.states)
            polls.append((after - began) * 1e3)
            builds.append((ended - after) * 1e3)
            if len(builds) == ALONE_WARM_UP:
                warm()
    finally:
        consumer.close()
    return polls[ALONE_WARM_UP:], builds[ALONE_WARM_UP:]


def forecast(settings: Any, readings: int, clock: Clock) -> dict[str, float]:
    """Stage -> CPU seconds, from the first readings to the last commit."""
    from pipeline.forecaster.loop import Options, StreamForecaster
    from pipeline.kafka.instance import Instance
    from tests.benchmarks.sides import champion_for

    began: list[float] = []
    found: dict[str, float] = {}

    def reached(point: str) -> None:
        if point == "polled" and not forecaster.counters.readings:
            clock.seconds.clear()
            clock.aside.clear()
            began[:] = [time.process_time(), time.thread_time()]  # set by each poll, until one returns readings
        elif point == "committed":
            process, loop = time.process_time() - began[0], time.thread_time() - began[1]
            found.update(dict.fromkeys(STAGES, 0.0))
            found.update(clock.seconds)
            aside = sum(clock.aside.values())
            found[CLIENT_THREADS] = process - loop - aside
            found[REST] = loop - (sum(clock.seconds.values()) - aside)
            found["all"] = process
        elif forecaster.counters.forecasts >= readings:
            forecaster.stop()

    forecaster = StreamForecaster(
        settings, champion_for(settings), Instance("bench", exclusive=False), Options(reached=reached)
    )
    forecaster.run()
    assert forecaster.counters.forecasts == readings
    return found


def main() -> None:
    from pipeline.settings import Settings

    given, readings = Path(sys.argv[1]), int(sys.argv[2])
    settings = Settings(**json.loads(given.read_text(encoding="utf-8")))
    # The loop's own messages go to standard error; only the result is printed.
    print(json.dumps(run(settings, readings)))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
