"""Memory of a forecaster under hostile input: compressed bombs, damaged batches, and a flood of new sensor ids.

Each case has topics and a forecaster process of its own. Its peak memory stands next to that of a usual stream. A
second forecaster then restores the states, and the audit must find no fault.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.audit.verify import verify
from pipeline.kafka.batch_producer import BatchAppender, check_delivered
from pipeline.kafka.clients import make_producer
from pipeline.kafka.topics import ensure_topics
from pipeline.messages import encode_reading
from pipeline.settings import Settings
from tests.benchmarks.command import named
from tests.benchmarks.page import Figure, Section
from tests.benchmarks.sides import HIDDEN_SIZE
from tests.integration.stream_rig import START_US, FolderChampion, ForecasterProcess, TopicReader, small_forecaster
from tests.raw_batches import GZIP, LZ4, ZSTD, RawBatch, batch_of, bomb, compress, record, send_batch
from tests.waiting import wait_until

SENSORS: Final = 10_000
ROUNDS: Final = 3  # readings of each sensor before, and after, the hostile input
FLOOD: Final = 1_000_000
BOMBS: Final = 5
BOMB_BYTES: Final = 2_000_000_000
DAMAGED: Final = 500
# The forecaster may take the limit of a batch once decompressed, its records, and the batch itself.
BOMB_ROOM_MB: Final = 400
FLAT_ROOM_MB: Final = 100


@dataclass(frozen=True)
class Outcome:
    """The result of one case; memory in MB."""

    name: str
    input: str
    peak_mb: int
    successor_mb: int
    accepted: int
    set_aside: int
    faults: int


def measure(base: Settings) -> Section:
    """The section of the page."""
    cases: dict[str, tuple[str, Callable[[Settings], None]]] = {
        "usual": ("no hostile input", lambda settings: None),
        "bombs": (f"{BOMBS} zstd batches of {BOMB_BYTES / 1e9:g} GB each, and one gzip batch of 0.3 GB", _send_bombs),
        "damaged": (f"{DAMAGED} batches with a wrong record length", _send_damaged),
        "flood": (f"{FLOOD:,} new sensor ids, limit {SENSORS:,}", _send_flood),
    }
    outcomes = [_run(base, name, sent, send) for name, (sent, send) in cases.items()]
    usual = outcomes[0]
    rows = [
        f"| {each.name} | {each.input} | {each.peak_mb} MB | {each.successor_mb} MB | {each.accepted:,} | "
        f"{each.set_aside:,} | {each.faults} |"
        for each in outcomes
    ]
    header = "| case | input | peak memory | successor | accepted | set aside | faults |\n|---|---|---|---|---|---|---|"
    figures = [
        _figure(f"more memory than usual: {each.name}", each.peak_mb - usual.peak_mb, room)
        for each, room in zip(outcomes[1:], (BOMB_ROOM_MB, FLAT_ROOM_MB, FLAT_ROOM_MB), strict=True)
    ]
    faults = sum(each.faults for each in outcomes)
    figures.append(Figure("faults that the audit found", str(faults), "0", faults == 0))
    return Section(
        "hostile",
        "Memory under hostile input",
        figures,
        f"One partition, {SENSORS:,} sensors with {ROUNDS} readings each before the hostile input and {ROUNDS} after "
        f"it, hidden size {HIDDEN_SIZE}. Peak memory is the high-water mark of the forecaster's resident set.",
        "\n".join([header, *rows]),
    )


def _figure(name: str, found_mb: int, room_mb: int) -> Figure:
    return Figure(name, f"{found_mb} MB", f"≤ {room_mb} MB", found_mb <= room_mb)


def _run(base: Settings, name: str, sent: str, send: Callable[[Settings], None]) -> Outcome:
    settings = named(
        base,
        f"hostile-{name}",
        horizon_steps=1,
        kafka={"partitions": 1},
        forecaster={"max_sensors_per_partition": SENSORS, "poll_alias_s": 0.5},
    )
    ensure_topics(settings)
    champion = FolderChampion(settings.home / "champion", settings)
    champion.promote(1, small_forecaster(settings, hidden_size=HIDDEN_SIZE))
    _publish(settings, [f"sensor-{number}" for number in range(SENSORS)], range(ROUNDS))
    with ForecasterProcess(settings, settings.home / "champion", "first") as first:
        _wait(settings, SENSORS * ROUNDS)
        send(settings)
        _publish(settings, [f"sensor-{number}" for number in range(SENSORS)], range(ROUNDS, 2 * ROUNDS))
        _wait(settings, 2 * SENSORS * ROUNDS)
        peak_mb = _peak_mb(first)
    _publish(settings, [f"sensor-{number}" for number in range(SENSORS)], range(2 * ROUNDS, 2 * ROUNDS + 1))
    with ForecasterProcess(settings, settings.home / "champion", "second") as second:
        _wait(settings, SENSORS * (2 * ROUNDS + 1))
        successor_mb = _peak_mb(second)
    # At once, because the audit takes minutes.
    print(f"{name}: peak memory {peak_mb} MB, its successor's {successor_mb} MB", flush=True)
    verdict = verify(settings, champion.load)
    return Outcome(
        name, sent, peak_mb, successor_mb, verdict.audit.accepted, verdict.audit.rejected, sum(verdict.faults.values())
    )


def _wait(settings: Settings, forecasts: int) -> None:
    with TopicReader(settings, settings.kafka.topics.forecasts) as reader:
        wait_until(lambda: reader.poll() >= forecasts, 600, f"{forecasts:,} forecasts arrived")


def _peak_mb(process: ForecasterProcess) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def _publish(settings: Settings, sensors: list[str], steps: range) -> None:
    features = settings.features
    with closing(make_producer(settings)) as producer:
        appender = BatchAppender(producer)
        for step in steps:
            for start in range(0, len(sensors), 10_000):
                pairs = [
                    encode_reading(sensor, START_US + step * settings.cadence_us, dict.fromkeys(features, float(step)))
                    for sensor in sensors[start : start + 10_000]
                ]
                keys, values = zip(*pairs, strict=True)
                futures = appender.append(settings.kafka.topics.readings, 0, list(keys), list(values))
                producer.flush()
                check_delivered(futures)


def _send(settings: Settings, batch: RawBatch) -> None:
    kafka = settings.kafka
    error, _ = send_batch(kafka.bootstrap_servers, kafka.topics.readings, 0, batch)
    if error:
        raise RuntimeError(f"the broker refused a batch with error code {error}")


def _send_bombs(settings: Settings) -> None:
    key, value = encode_reading("sensor-0", START_US, dict.fromkeys(settings.features, 1.0))
    largest = bomb(ZSTD, BOMB_BYTES, key, value)
    for _ in range(BOMBS):
        _send(settings, largest)
    _send(settings, bomb(GZIP, 300_000_000, key, value))


def _send_damaged(settings: Settings) -> None:
    key, value = encode_reading("sensor-0", START_US, dict.fromkeys(settings.features, 1.0))
    records = [record(number, key, value) for number in range(3)]
    wrong = bytes([records[1][0] ^ 0x3C]) + records[1][1:]
    damaged = RawBatch(compress(LZ4, [records[0], wrong, records[2]]), 3, LZ4)
    for _ in range(DAMAGED):
        _send(settings, damaged)
    _send(settings, batch_of(LZ4, [(key, value)]))  # a duplicate, which can be read


def _send_flood(settings: Settings) -> None:
    _publish(settings, [f"flood-{number}" for number in range(FLOOD)], range(1))
