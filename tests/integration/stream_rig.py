"""Tools of the forecaster tests: models, readings, running forecasters and expected forecasts."""

import json
import multiprocessing
import os
import signal
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import kafka.errors as client_errors
import msgspec
import numpy as np
import torch
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from deploy.stack import Stack
from model.acceptance import ACCEPTED, DUPLICATE
from model.artefact import ArtefactError, load_artefact, save_artefact
from model.config import ModelConfig
from model.forecaster import Forecaster
from model.known_ahead import CalendarCovariate
from pipeline.errors import ModelUnusable, RegistryUnreachable
from pipeline.forecast_encoding import ForecastEncoder, ForecastInputs
from pipeline.forecaster.champion import Candidate, settings_differences
from pipeline.forecaster.loop import Options, StreamForecaster
from pipeline.forecaster.positions import POSITION_KEY
from pipeline.forecaster.readings import Readings, decode_records
from pipeline.forecaster.session import Session
from pipeline.forecaster.states.store import ServedModel
from pipeline.kafka.instance import Instance
from pipeline.messages import Forecast, ModelId, ReadingDecoder, Rejected, decode_forecast, encode_reading
from pipeline.outlook_messages import make_outlook_decoder
from pipeline.readings_format.decoder import make_decoder
from pipeline.settings import Settings
from tests.waiting import wait_until

HOUR_US = 3_600_000_000
START_US = 1_700_000_000_000_000 // HOUR_US * HOUR_US


# --- models -----------------------------------------------------------------------------------------------------------


def small_forecaster(
    settings: Settings, seed: int = 0, hidden_size: int = 8, calendar: tuple[CalendarCovariate, ...] = ()
) -> Forecaster:
    """A model with random weights that fits the settings."""
    torch.manual_seed(seed)
    config = ModelConfig(
        features=settings.features,
        targets=settings.targets,
        cadence_us=settings.cadence_us,
        horizon_steps=settings.horizon_steps,
        quantiles=settings.quantiles,
        max_gap_steps=settings.max_gap_steps,
        hidden_size=hidden_size,
        warmup_steps=10,
        calendar=calendar,
        outlook=settings.outlook_config,
    )
    forecaster = Forecaster(config)
    with torch.no_grad():
        for parameter in forecaster.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # otherwise the forecast would hardly depend on the state
    return forecaster.eval()


class FolderChampion:
    """A champion source in a folder, which replaces the MLflow registry in tests of the forecaster."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder = folder
        self._settings = settings
        folder.mkdir(parents=True, exist_ok=True)

    def promote(self, version: int, forecaster: Forecaster | None = None) -> None:
        if forecaster is not None:
            save_artefact(forecaster, self._folder / str(version))
        partial = self._folder / "champion.partial"
        partial.write_text(str(version))
        partial.replace(self._folder / "champion")

    def demote(self) -> None:
        (self._folder / "champion").unlink()

    def corrupt(self, version: int) -> None:
        folder = self._folder / str(version)
        folder.mkdir(exist_ok=True)
        (folder / "weights.pt").write_bytes(b"rubbish")

    def inflate(self, version: int, forecaster: Forecaster, **fields: int) -> None:
        """Save a model whose configuration claims other sizes than its weights have."""
        save_artefact(forecaster, self._folder / str(version))
        config = self._folder / str(version) / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | fields))

    def become_unreachable(self) -> None:
        (self._folder / "unreachable").touch()

    def become_reachable(self) -> None:
        (self._folder / "unreachable").unlink()

    def resolve(self) -> int | None:
        if (self._folder / "unreachable").exists():
            raise RegistryUnreachable("the folder is unreachable")
        champion = self._folder / "champion"
        return int(champion.read_text()) if champion.exists() else None

    def load(self, version: int) -> Forecaster:
        try:
            forecaster = load_artefact(self._folder / str(version))
        except ArtefactError as error:
            raise ModelUnusable(str(error)) from error
        differences = settings_differences(forecaster.config, self._settings)
        if differences:
            raise ModelUnusable("; ".join(differences))
        return forecaster

    def last_served(self) -> Candidate | None:
        note = self._folder / "remembered"
        return Candidate(int(note.read_text()), self.load(int(note.read_text()))) if note.exists() else None

    def save_last_served(self, version: int) -> None:
        partial = self._folder / f"remembered.{threading.get_ident()}"  # other threads may write too
        partial.write_text(str(version))
        partial.replace(self._folder / "remembered")

    def clear_last_served(self) -> None:
        (self._folder / "remembered").unlink(missing_ok=True)


# --- readings ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Message:
    """A record for the readings topic."""

    key: bytes | None
    value: bytes | None
    partition: int
    headers: tuple[tuple[str, bytes], ...] = ()


def reading(settings: Settings, sensor: str, step: int, **values: float | None) -> Message:
    """Reading ``step`` of a sensor; its values depend on sensor and step unless they are given."""
    given = values or {
        feature: round(float(np.sin(step / 5 + zlib.crc32(f"{sensor}{feature}".encode()) % 7) * 10 + step % 11), 3)
        for feature in settings.features
    }
    key, value = encode_reading(sensor, START_US + step * settings.cadence_us, given)
    return Message(key, value, partition_of(settings, sensor))


def partition_of(settings: Settings, sensor: str) -> int:
    return zlib.crc32(sensor.encode()) % settings.kafka.partitions


def rounds(settings: Settings, sensors: Sequence[str], steps: Iterable[int]) -> Iterator[Message]:
    """One reading of every sensor per step."""
    for step in steps:
        for sensor in sensors:
            yield reading(settings, sensor, step)


def publish(settings: Settings, messages: Iterable[Message]) -> int:
    """Send the messages and return their number."""
    producer = KafkaProducer(bootstrap_servers=settings.kafka.bootstrap_servers, acks="all", linger_ms=5)
    topic = settings.kafka.topics.readings
    sent = [
        producer.send(topic, message.value, message.key, list(message.headers), partition=message.partition)
        for message in messages
    ]
    producer.flush()
    producer.close()
    return len(sent)


# --- reading back -----------------------------------------------------------------------------------------------------


class TopicReader:
    """A plain consumer that reads each committed record of a topic once; the context closes it."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self._topic = topic
        self._consumer = KafkaConsumer(
            bootstrap_servers=settings.kafka.bootstrap_servers,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        self._where = [
            TopicPartition(topic, partition) for partition in sorted(self._consumer.partitions_for_topic(topic))
        ]
        self._found: dict[TopicPartition, list[Any]] = {where: [] for where in self._where}
        self._consumer.assign(self._where)
        self._consumer.seek_to_beginning(*self._where)

    def __enter__(self) -> "TopicReader":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._consumer.close()

    def poll(self, timeout_ms: int = 200) -> int:
        """Wait for more records and return the number of records read so far."""
        for where, records in self._consumer.poll(timeout_ms=timeout_ms).items():
            self._found[where] += records
        return sum(map(len, self._found.values()))

    def read_to_end(self) -> list[Any]:
        """All records that are committed now, partition by partition."""
        ends = self._consumer.end_offsets(self._where)

        def is_at_end() -> bool:
            self.poll(50)
            return all(self._consumer.position(where) >= ends[where] for where in self._where)

        wait_until(is_at_end, 30, f"{self._topic} was read to its end")
        return [record for where in self._where for record in self._found[where]]


def read_all(settings: Settings, topic: str) -> list[Any]:
    """Every committed record of a topic, partition by partition."""
    with TopicReader(settings, topic) as reader:
        return reader.read_to_end()


def end_offset(consumer: KafkaConsumer, where: TopicPartition) -> int:
    """The end of a partition of a broker that was just started: its partitions have no leader for some seconds."""

    def look_up() -> list[int]:
        try:
            return [consumer.end_offsets([where], timeout_ms=30_000)[where]]
        except client_errors.LeaderNotAvailableError:
            return []

    (end,) = wait_until(look_up, 60, f"partition {where.partition} of {where.topic} has a leader")
    return end


def read_states(settings: Settings) -> list[Any]:
    """All state records of the changelog, including records that a later one replaced."""
    return [record for record in read_all(settings, settings.kafka.topics.state) if record.key != POSITION_KEY]


def read_forecasts(settings: Settings) -> list[Forecast]:
    """Every committed forecast, in the order of the topic within each partition."""
    return _forecasts(read_all(settings, settings.kafka.topics.forecasts))


def wait_for_forecasts(settings: Settings, count: int, timeout_s: float = 60) -> list[Forecast]:
    """All forecasts, once there are at least ``count``."""
    with TopicReader(settings, settings.kafka.topics.forecasts) as reader:
        wait_until(lambda: reader.poll() >= count, timeout_s, f"{count} forecasts arrived")
        return _forecasts(reader.read_to_end())


def _forecasts(records: Sequence[Any]) -> list[Forecast]:
    found = [decode_forecast(record.value) for record in records]
    for record, forecast in zip(records, found, strict=True):
        assert record.key == forecast.sensor_id.encode()
        assert record.partition == forecast.input.partition
    return found


# --- expected forecasts ----------------------------------------------------------------------------------------------


def expected_forecasts(settings: Settings, forecaster: Forecaster, version: int = 1) -> list[Forecast]:
    """The forecasts of an offline pass over the readings topic, one reading at a time."""
    serving = ServedModel(version, forecaster, settings)
    encoder = ForecastEncoder(settings, ModelId(settings.model_name, version), forecaster.config)
    decoder, outlook_decoder = make_decoder(settings), make_outlook_decoder(settings)
    for partition in range(settings.kafka.partitions):
        serving.table.add_partition(partition)
    expected = []
    buffered: dict[int, Readings | None] = {}
    for record in read_all(settings, settings.kafka.topics.readings):
        one = decode_records(decoder, len(settings.features), record.partition, [record], (), outlook_decoder)
        classified = serving.classify(one.readings, buffered.get(record.partition))
        buffered[record.partition] = classified.buffered
        if classified.accepted.outlooks:
            serving.replay([classified.accepted])
        for place in range(len(classified.accepted)):
            accepted = replace(classified.accepted, may_anchor=None).pick(np.array([place]))
            stepped = serving.step([accepted])
            serving.table.scatter(stepped.rows, stepped.states)
            inputs = ForecastInputs(
                settings.kafka.topics.readings,
                np.array([record.partition]),
                accepted.sensors,
                np.zeros(1, np.intp),
                accepted.timestamp_us,
                accepted.offsets,
            )
            (value,), _ = encoder.encode(inputs, stepped.forecasts)
            expected.append(decode_forecast(value))
    return expected


def assert_same(found: Sequence[Forecast], expected: Sequence[Forecast]) -> None:
    """Assert the same forecasts in the same order; their numbers may differ by 1e-5."""
    assert [_without_numbers(forecast) for forecast in found] == [_without_numbers(forecast) for forecast in expected]
    for one, other in zip(found, expected, strict=True):
        for target, levels in other.quantiles.items():
            for level, values in levels.items():
                np.testing.assert_allclose(one.quantiles[target][level], values, rtol=1e-5, atol=1e-5, err_msg=str(one))


def _without_numbers(forecast: Forecast) -> Forecast:
    return msgspec.structs.replace(forecast, quantiles={})


def rejected_reason(settings: Settings, message: Message) -> str:
    try:
        ReadingDecoder(settings.features).decode(message.key, message.value)
    except Rejected as rejected:
        return rejected.reason
    raise AssertionError("the message is a reading")


VERDICTS = {ACCEPTED: "accepted", DUPLICATE: "duplicate"}


# --- running ----------------------------------------------------------------------------------------------------------


@contextmanager
def running(
    settings: Settings, source: FolderChampion, name: str = "forecaster", **options: Any
) -> Iterator[StreamForecaster]:
    """Run a forecaster in a thread; at the end stop it and raise its error, if any."""
    forecaster = StreamForecaster(settings, source, Instance(name, exclusive=False), Options(**options))
    failures: list[BaseException] = []

    def run() -> None:
        try:
            forecaster.run()
        except BaseException as error:  # noqa: BLE001 - raised at the end
            failures.append(error)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield forecaster
    finally:
        forecaster.stop()
        thread.join(30)
        assert not thread.is_alive(), "the forecaster did not stop"
    if failures:
        raise failures[0]


def session_of(forecaster: StreamForecaster) -> Session:
    """The session of a connected forecaster."""
    assert forecaster._loop is not None, "the forecaster is not connected yet"
    return forecaster._loop.session


def run_until_it_fails(settings: Settings, source: FolderChampion, **options: Any) -> None:
    """Run a forecaster in this thread for at most 30 s and let its error propagate."""
    forecaster = StreamForecaster(settings, source, Instance("failing", exclusive=False), Options(**options))
    timer = threading.Timer(30, forecaster.stop)
    timer.start()
    try:
        forecaster.run()
    finally:
        timer.cancel()


def broker_pid(settings: Settings) -> int:
    """The process id of a local stack's broker."""
    pid = Stack(settings).status()[0].pid
    assert pid is not None
    return pid


@contextmanager
def stopped(settings: Settings) -> Iterator[None]:
    """Freeze the broker within the context."""
    pid = broker_pid(settings)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


# Forks of a process that has imported all modules and has no threads: a new interpreter takes seconds to start.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.compiled_core", "tests.integration.forecaster_process"])


class ForecasterProcess:
    """A forecaster in a process of its own; leaving the context kills it."""

    def __init__(
        self, settings: Settings, folder: Path, name: str = "forecaster", *, die_at: str | None = None, times: int = 1
    ) -> None:
        """The process dies by SIGKILL if its loop passes the point ``die_at`` for the ``times``-th time."""
        self._log = folder / f"{name}-{time.time_ns()}.log"
        self._log.touch()
        self._process = _PROCESSES.Process(
            target=_run_process, args=(settings.model_dump_json(), folder, name, die_at, times, self._log), daemon=True
        )
        self._process.start()

    def __enter__(self) -> "ForecasterProcess":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.join()

    @property
    def pid(self) -> int:
        """The process id of the forecaster."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def said(self) -> str:
        """The log of the forecaster so far."""
        return self._log.read_text()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def exit_code(self, timeout_s: float) -> int:
        """The exit code, negative for a signal; the test fails with the log if the process does not end."""
        self._process.join(timeout_s)
        code = self._process.exitcode
        assert code is not None, f"the forecaster did not end within {timeout_s:g} s:\n{self.said}"
        return code


def _run_process(settings: str, folder: Path, name: str, die_at: str | None, times: int, log: Path) -> None:
    from tests.integration.forecaster_process import run

    run(Settings(**json.loads(settings)), folder, name, die_at, times, log)
