"""A Quix Streams application beside the forecaster, run by the Python of its own virtual environment.

It does not import this project. The argument is JSON with the fields of ``Job``. It prints one line of JSON: the
seconds from the first message to the last commit, and the CPU seconds of the process and of the broker meanwhile.

The options are Quix's defaults but for exactly-once processing. Both kinds decode the readings. "pass" writes a
constant value per reading. "gru" steps a GRU with the hidden state in Quix's state store, and writes its forecast as
JSON.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from quixstreams import Application, State
from quixstreams.models import TopicConfig


@dataclass(frozen=True)
class Job:
    """The kind of application, its topics and its sizes."""

    kind: str  # "pass" or "gru"
    servers: str
    group: str
    readings_topic: str
    forecasts_topic: str
    readings: int
    partitions: int
    features: list[str]
    payload: str  # the value that "pass" writes
    hidden_size: int
    horizon_steps: int
    quantiles: list[float]
    folder: str  # of the state store
    broker: int  # process id


Moment = tuple[float, float, float]  # wall seconds, CPU seconds of this process and of the broker


def now(job: Job) -> Moment:
    """The present moment. The last clock is that of ``meter.process_cpu_s``: all CPU time of a process."""
    return time.perf_counter(), time.process_time(), time.clock_gettime((~job.broker << 3) | 2)


def run(job: Job) -> dict[str, float]:
    """Process all readings, and return the seconds."""
    app = Application(
        broker_address=job.servers,
        consumer_group=job.group,
        processing_guarantee="exactly-once",
        auto_offset_reset="earliest",
        state_dir=job.folder,
        loglevel="ERROR",
    )
    readings = app.topic(job.readings_topic, value_deserializer="json")
    config = TopicConfig(num_partitions=job.partitions, replication_factor=1)
    out = app.topic(job.forecasts_topic, value_serializer="bytes" if job.kind == "pass" else "json", config=config)
    began: list[Moment] = []
    ended: list[Moment] = []

    def first(step: Callable[..., Any]) -> Callable[..., Any]:
        def timed(value: Any, *state: State) -> Any:
            if not began:
                began.append(now(job))
            return step(value, *state)

        return timed

    frame = app.dataframe(readings)
    if job.kind == "pass":
        payload = job.payload.encode()
        begin = first(lambda value: payload)
        frame = frame.apply(lambda value: begin(value))
    else:
        step = first(make_gru(job))
        frame = frame.apply(lambda value, state: step(value, state), stateful=True)
    frame.to_topic(out)
    # The run returns after the clients have closed; the last commit is earlier.
    context = app._processing_context
    commit = context.commit_checkpoint

    def commit_checkpoint(*args: Any, **options: Any) -> None:
        commit(*args, **options)
        if options.get("force"):
            ended[:] = [now(job)]

    context.commit_checkpoint = commit_checkpoint
    app.run(count=job.readings, collect=False)
    names = ("seconds", "cpu_seconds", "broker_seconds")
    return {name: after - before for name, before, after in zip(names, began[0], ended[0], strict=True)}


def make_gru(job: Job) -> Callable[[Any, State], Any]:
    """One step of a two-layer GRU, as a user would write it with torch. Cells are faster than ``nn.GRU`` here."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    hidden_size = job.hidden_size
    lower = torch.nn.GRUCell(len(job.features), hidden_size).eval()
    upper = torch.nn.GRUCell(hidden_size, hidden_size).eval()
    head = torch.nn.Linear(hidden_size, len(job.quantiles) * job.horizon_steps).eval()
    blank = np.zeros((2, 1, hidden_size), np.float32).tobytes()

    @torch.inference_mode()
    def predict(values: dict[str, float | None], carried: bytes) -> tuple[list[list[float]], bytes]:
        x = torch.tensor([[values.get(name) or 0.0 for name in job.features]])
        before = torch.from_numpy(np.frombuffer(carried, np.float32).reshape(2, 1, hidden_size).copy())
        first = lower(x, before[0])
        second = upper(first, before[1])
        rows = head(second).view(len(job.quantiles), job.horizon_steps).tolist()
        return rows, first.numpy().tobytes() + second.numpy().tobytes()

    def step(value: Any, state: State) -> Any:
        rows, after = predict(value["values"], state.get_bytes("hidden", blank))
        state.set_bytes("hidden", after)
        return {
            "sensor_id": value["sensor_id"],
            "issued_at": value["timestamp"],
            "quantiles": {job.features[0]: dict(zip(map(str, job.quantiles), rows, strict=True))},
        }

    predict({}, blank)  # the first call takes long
    return step


if __name__ == "__main__":
    print(json.dumps(run(Job(**json.loads(sys.argv[1])))))
