"""Batches that cannot be read, on a real broker: each is one dead letter, and every reader goes on after it."""

import struct
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy.commands.dlq import dlq
from deploy.context import Context
from deploy.live_forecasts import StreamTail
from pipeline.audit.verify import verify
from pipeline.dead_letters import DeadLetter, read_letters, republish_letters
from pipeline.errors import KafkaError
from pipeline.history.ingest import ingest
from pipeline.kafka.topics import ensure_topics
from pipeline.settings import Settings
from pipeline.unreadable_batch import DAMAGED, OVERSIZED
from tests.conftest import SettingsFactory
from tests.integration.stream_rig import (
    FolderChampion,
    ForecasterProcess,
    assert_same,
    expected_forecasts,
    reading,
    running,
    wait_for_forecasts,
)
from tests.raw_batches import GZIP, LZ4, NONE, ZSTD, RawBatch, batch_of, bomb, compress, record, send_batch
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

LIMIT_BYTES = 2_200_000
LARGEST_BYTES = 1_048_588  # a little more than a fetch has by default
BOMB_BYTES = 300_000_000


@pytest.fixture
def settings(broker: Settings, fresh_settings: SettingsFactory) -> Settings:
    made = fresh_settings(
        features=["a"],
        targets=["a"],
        horizon_steps=1,
        kafka={"partitions": 1, "max_batch_bytes": LIMIT_BYTES, "max_reading_bytes": LARGEST_BYTES},
        forecaster={"poll_alias_s": 0.1},
    )
    ensure_topics(made)
    return made


class Sender:
    """Sends readings of one sensor as batches of three."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.steps = 0
        self.end = 0  # of the topic
        self.bad: list[tuple[str, int, int]] = []  # reason, first and last offset of each bad batch

    def messages(self, count: int = 3) -> list[tuple[bytes | None, bytes | None]]:
        self.steps += count
        made = [reading(self._settings, "s", step) for step in range(self.steps - count, self.steps)]
        return [(message.key, message.value) for message in made]

    def good(self, codec: int = LZ4) -> None:
        self._send(batch_of(codec, self.messages()))

    def harmful(self, batch: RawBatch, reason: str) -> None:
        self.bad.append((reason, self.end, self.end + batch.count - 1))
        self._send(batch)

    def _send(self, batch: RawBatch) -> None:
        kafka = self._settings.kafka
        assert send_batch(kafka.bootstrap_servers, kafka.topics.readings, 0, batch) == (0, self.end)
        self.end += batch.count


def bad_batches(sender: Sender) -> list[tuple[RawBatch, str]]:
    """Batches that a broker accepts; each holds readings that would be accepted if they could be read."""
    key, value = sender.messages(1)[0]
    assert key is not None
    assert value is not None
    records = [record(number, key, value) for number in range(3)]
    wrong_length = bytes([records[1][0] ^ 0x3C]) + records[1][1:]
    return [
        (bomb(ZSTD, BOMB_BYTES, key, value), OVERSIZED),
        (RawBatch(compress(LZ4, [records[0], wrong_length, records[2]]), 3, LZ4), DAMAGED),
        (RawBatch(records[0] + record(9, key, value) + records[2], 3, NONE), DAMAGED),
    ]


def peak_mb(process: ForecasterProcess) -> int:
    """The largest memory of the process so far."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def letters_of(settings: Settings) -> list[DeadLetter]:
    return list(read_letters(settings))


def test_every_reader_sets_a_bad_batch_aside_and_goes_on_in_flat_memory(
    settings: Settings, champion: FolderChampion, tmp_path: Path
) -> None:
    sender = Sender(settings)
    sender.good()
    with ForecasterProcess(settings, tmp_path / "champion") as process:
        wait_for_forecasts(settings, 3)
        before = peak_mb(process)
        bad = bad_batches(sender)
        for batch, reason in bad:
            sender.harmful(batch, reason)
            sender.good()
        good = 3 + 3 * len(bad)
        forecasts = wait_for_forecasts(settings, good)
        assert peak_mb(process) - before < 60
    with running(settings, champion) as successor:  # it goes on behind the last batch
        sender.harmful(*bad[1])
        wait_until(lambda: successor.counters.readings == 1, 30, "the fourth bad batch was read")

    assert len(forecasts) == good
    letters = letters_of(settings)
    assert [(letter.reason, letter.offset, letter.last_offset) for letter in letters] == sender.bad
    assert [letter.records for letter in letters] == [300, 3, 3, 3]
    assert letters[0].value == replace(bad[0][0], base_offset=letters[0].offset).encode()
    verdict = verify(settings, champion.load)
    assert verdict.faults == {}
    assert (verdict.audit.accepted, verdict.audit.rejected, verdict.audit.readings) == (good, 309, good + 309)
    ingested = ingest(settings)
    assert (ingested.readings, dict(ingested.rejected)) == (good, {OVERSIZED: 300, DAMAGED: 9})
    with StreamTail(settings, look_back=None) as tail:
        wait_until(lambda: bool(tail.poll(0.1)) or tail.forecasts == good, 30, "the forecasts are shown")


def test_dlq_shows_a_batch_with_its_offsets_and_leaves_it_when_it_republishes(
    settings: Settings, champion: FolderChampion
) -> None:
    sender = Sender(settings)
    sender.good()
    sender.harmful(*bad_batches(sender)[1])
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.readings == 4, 30, "all records were processed")
    context = Context(lambda: settings)
    listed = CliRunner().invoke(dlq, ["list", "--reason", DAMAGED], obj=context).output
    assert listed.startswith("1 dead letters: damaged-batch 1\n")
    assert " 3-5 " in listed
    shown = CliRunner().invoke(dlq, ["show", "0:0"], obj=context).output
    assert "offsets 3 to 5, a batch of 3 records\n" in shown
    assert "does not have its stated length" in shown
    outcome = republish_letters(settings, lambda: letters_of(settings))
    assert (outcome.published, dict(outcome.still_rejected)) == (0, {DAMAGED: 1})


def test_states_are_rebuilt_if_a_batch_of_the_changelog_is_damaged(
    broker: Settings, settings: Settings, champion: FolderChampion
) -> None:
    sender = Sender(settings)
    sender.good()
    with running(settings, champion):
        wait_for_forecasts(settings, 3)
    (segment,) = broker.home.glob(f"kafka/data/{settings.kafka.topics.state}-0/*.log")
    with segment.open("r+b") as log:
        log.seek(100)  # within the first batch
        byte = log.read(1)[0]
        log.seek(100)
        log.write(bytes([byte ^ 0xFF]))
    sender.good()
    with running(settings, champion) as successor:
        found = wait_for_forecasts(settings, 6)
    assert successor.counters.rebuilt_sensors == 1
    assert_same(found, expected_forecasts(settings, champion.load(1)))
    with pytest.raises(KafkaError, match=r"offsets 0 to .* cannot be read: the batch is damaged: its checksum"):
        verify(settings, champion.load)


def test_a_batch_that_is_damaged_on_the_brokers_disk_is_set_aside(
    broker: Settings, settings: Settings, champion: FolderChampion
) -> None:
    sender = Sender(settings)
    for codec in (GZIP, NONE, GZIP):
        sender.good(codec)
    (segment,) = broker.home.glob(f"kafka/data/{settings.kafka.topics.readings}-0/*.log")
    with segment.open("r+b") as log:
        log.seek(log.read().index(b'{"sensor_id"'))  # in the batch that is not compressed
        log.write(b"?")
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.readings == 7, 30, "all records were processed")
    (letter,) = letters_of(settings)
    assert (letter.reason, letter.offset, letter.last_offset, letter.records) == (DAMAGED, 3, 5, 3)
    assert "checksum" in letter.detail
    verdict = verify(settings, champion.load)
    assert verdict.faults == {}
    assert (verdict.audit.accepted, verdict.audit.rejected) == (6, 3)


@pytest.mark.parametrize("stated", [0, 7])
def test_a_damaged_batch_that_fills_a_fetch_hides_no_reading_and_is_set_aside_once(
    broker: Settings, settings: Settings, champion: FolderChampion, stated: int
) -> None:
    """Its header states a wrong last offset, and the next batch is not in the same fetch."""
    sender = Sender(settings)
    sender.good()
    (key, value), *_ = sender.messages(1)
    size = LARGEST_BYTES
    padded = (value or b"") + b" " * 340_000
    missing = size - len(batch_of(NONE, [(key, padded)] * 3).encode())
    sender.harmful(batch_of(NONE, [(key, padded), (key, padded), (key, padded + b" " * missing)]), DAMAGED)
    for _ in range(3):
        sender.good()
    (segment,) = broker.home.glob(f"kafka/data/{settings.kafka.topics.readings}-0/*.log")
    with segment.open("r+b") as log:
        log.seek(log.read().index(struct.pack(">qi", 3, size - 12)) + 23)  # the last offset, counted from the first
        log.write(struct.pack(">i", stated))
    with running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.readings == 13, 30, "all records were processed")
    assert [(letter.reason, letter.offset, letter.last_offset) for letter in letters_of(settings)] == sender.bad
    verdict = verify(settings, champion.load)
    assert verdict.faults == {}
    assert (verdict.audit.accepted, verdict.audit.rejected) == (12, 3)
    assert ingest(settings).readings == 12


@pytest.mark.parametrize("length", [7, -1])
def test_a_damaged_length_in_the_log_ends_forecaster_and_audit_with_its_place_and_a_remedy(
    broker: Settings, settings: Settings, champion: FolderChampion, length: int
) -> None:
    sender = Sender(settings)
    for _ in range(3):
        sender.good()
    (segment,) = broker.home.glob(f"kafka/data/{settings.kafka.topics.readings}-0/*.log")
    with segment.open("r+b") as log:
        (size,) = struct.unpack(">i", log.read(12)[8:])
        log.seek(12 + size + 8)  # in the second batch
        log.write(struct.pack(">i", length))
    message = "the log of .*, partition 0, is damaged at or after offset 3: .*kafka-consumer-groups.sh --reset-offsets"
    for _ in range(2):  # a successor ends in the same way
        with pytest.raises(KafkaError, match=message), running(settings, champion, "damaged-log"):
            wait_until(lambda: "damaged-log" not in {one.name for one in threading.enumerate()}, 30, "it ended")
    assert len(wait_for_forecasts(settings, 3)) == 3
    with pytest.raises(KafkaError, match=message):
        ingest(settings)
