"""The steps of a transaction, with a transport that fails at a chosen step."""

import itertools
import re
import threading
from collections.abc import Mapping
from typing import Any

import kafka.errors as client_errors
import pytest
from kafka.structs import ConsumerGroupMetadata

from pipeline.errors import Fenced, KafkaError
from pipeline.forecaster.positions import Position
from pipeline.forecaster.stuck_detection import Watchdog
from pipeline.forecaster.transaction import FLUSH_BYTES, Committer, Records, TransactionAborted, TransactionContent
from pipeline.kafka.byte_strings import ByteStrings

MEMBER = ConsumerGroupMetadata(group_id="g", generation_id=3, member_id="m", group_instance_id=None, state=None)
NOT_A_MEMBER = ConsumerGroupMetadata(group_id="g", generation_id=-1, member_id="", group_instance_id=None, state=None)
STEPS = ("begin", "append", "flush", "check", "send_offsets", "commit")


class FakeTransport:
    """A transport that records calls; ``fail`` maps a step to the error that the step raises."""

    def __init__(self, fail: Mapping[str, Exception] | None = None) -> None:
        self.calls: list[str] = []
        self.fail = dict(fail or {})
        self.hang: threading.Event | None = None

    def _do(self, step: str) -> None:
        self.calls.append(step)
        if step in self.fail:
            raise self.fail[step]

    def begin(self) -> None:
        self._do("begin")

    def append(self, records: Records) -> None:
        self._do("append")

    def flush(self) -> None:
        self._do("flush")

    def check(self) -> None:
        self._do("check")

    def send_offsets(self, offsets: Mapping[int, Position], group_metadata: Any) -> None:
        self._do("send_offsets")

    def commit(self) -> None:
        if self.hang is not None:
            self.hang.wait()
        self._do("commit")

    def abort(self) -> None:
        self._do("abort")

    def close(self) -> None:
        self._do("close")


WORK = TransactionContent([Records("forecasts", 0, [b"a"], [b"1"])], {0: Position(1)}, MEMBER)


def committer(transport: FakeTransport, **options: Any) -> Committer:
    made = Committer(lambda: transport, Watchdog(60), **options)
    made.open()
    return made


def test_a_commit_takes_the_steps_in_order() -> None:
    transport = FakeTransport()
    committer(transport).commit(WORK)
    assert transport.calls == list(STEPS)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "error",
    [
        client_errors.KafkaTimeoutError("expired"),
        client_errors.CommitFailedError("another generation"),
        client_errors.OutOfOrderSequenceNumberError("sequence"),
        KafkaError("a record is too large"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_failure_at_any_step_aborts_and_closes_the_producer(step: str, error: Exception) -> None:
    transport = FakeTransport({step: error})
    made = committer(transport)
    with pytest.raises(TransactionAborted, match=re.escape(str(error))):
        made.commit(WORK)
    assert transport.calls == [*STEPS[: STEPS.index(step) + 1], "abort", "close"]
    assert not made.is_open


@pytest.mark.parametrize("step", STEPS)
def test_a_commit_fenced_by_a_successor_raises_fenced_at_any_step(step: str) -> None:
    transport = FakeTransport({step: client_errors.ProducerFencedError("fenced")})
    with pytest.raises(Fenced, match="--instance"):
        committer(transport).commit(WORK)
    assert transport.calls[-2:] == ["abort", "close"]


def test_a_fencing_error_is_recognised_inside_the_error_that_wraps_it() -> None:
    fenced = client_errors.ProducerFencedError("fenced")
    transport = FakeTransport({"append": client_errors.KafkaError("Cannot perform send", fenced)})
    with pytest.raises(Fenced):
        committer(transport).commit(WORK)


def test_a_fenced_commit_of_an_exclusive_instance_counts_as_timed_out() -> None:
    transport = FakeTransport({"flush": client_errors.ProducerFencedError("timed out")})
    with pytest.raises(TransactionAborted):
        committer(transport, exclusive=True).commit(WORK)


def test_a_commit_without_group_membership_is_refused_before_the_first_step() -> None:
    transport = FakeTransport()
    with pytest.raises(TransactionAborted, match="no longer a member"):
        committer(transport).commit(TransactionContent(WORK.records, WORK.offsets, NOT_A_MEMBER))
    assert transport.calls == ["close"]


def test_a_failed_abort_does_not_hide_the_first_error() -> None:
    transport = FakeTransport(
        {"flush": client_errors.KafkaTimeoutError("expired"), "abort": client_errors.KafkaError()}
    )
    with pytest.raises(TransactionAborted, match="expired"):
        committer(transport).commit(WORK)


def test_a_bug_aborts_the_transaction_and_is_raised() -> None:
    transport = FakeTransport({"append": AssertionError("bug")})
    with pytest.raises(AssertionError, match="bug"):
        committer(transport).commit(WORK)
    assert transport.calls[-2:] == ["abort", "close"]


def test_fault_points_are_reached_between_the_steps() -> None:
    transport = FakeTransport()
    committer(transport, reached=transport.calls.append).commit(WORK)
    assert transport.calls == [
        "begin",
        "append",
        "before-flush",
        "flush",
        "check",
        "flushed",
        "send_offsets",
        "offsets-sent",
        "commit",
        "committed",
    ]


def test_a_transaction_of_many_megabytes_is_flushed_and_checked_in_pieces() -> None:
    """Without flushes in between, the last records would wait for longer than the delivery timeout."""
    transport = FakeTransport()
    third = Records("state", 0, [b"a"] * 2, [b"1" * (FLUSH_BYTES // 3), None])
    committer(transport).commit(TransactionContent([third] * 4, WORK.offsets, MEMBER))
    pieces = ["append", "append", "append", "flush", "check", "append"]
    assert transport.calls == ["begin", *pieces, "flush", "check", "send_offsets", "commit"]


def test_pieces_hold_every_record_once_in_order_and_are_split_at_the_size_limit() -> None:
    values = [b"1" * 40, None, b"2" * 70, b"3" * 200, b"4" * 10, b"5" * 90, b"6" * 100, None]
    headers = [bytes([number]) for number in range(len(values))]
    records = Records("state", 3, [b"k%d" % number for number in range(len(values))], values, headers)
    pieces = list(records.pieces(100))
    assert [size for _, size in pieces] == [40, 70, 200, 100, 100]
    assert [value for piece, _ in pieces for value in piece.values] == values
    assert [key for piece, _ in pieces for key in piece.keys] == records.keys
    assert [header for piece, _ in pieces for header in piece.headers] == headers
    assert list(records.pieces(1_000)) == [(records, 510)]


def test_pieces_of_columns_are_those_of_lists() -> None:
    values = [b"1" * 40, b"", b"2" * 70, b"3" * 200, b"4" * 10, b"5" * 90, b"6" * 100, b""]
    keys = [b"k%d" % number for number in range(len(values))]
    headers = [bytes([number]) for number in range(len(values))]
    lists = Records("state", 3, keys, values, headers)
    columns = Records("state", 3, *map(ByteStrings.of, (keys, values, headers)))
    assert columns.size == lists.size == 526
    for most_bytes in (1, 100, 270, 509, 510):
        assert list(columns.pieces(most_bytes)) == list(lists.pieces(most_bytes))


def test_the_watchdog_ends_the_process_with_a_message_if_a_commit_hangs() -> None:
    messages: list[str] = []
    ended = threading.Event()

    def end(message: str) -> None:
        messages.append(message)
        ended.set()

    transport = FakeTransport()
    transport.hang = threading.Event()
    made = Committer(lambda: transport, Watchdog(0.05, end, check_interval_s=0.02))
    made.open()
    thread = threading.Thread(target=made.commit, args=(WORK,), daemon=True)
    thread.start()
    assert ended.wait(5)
    transport.hang.set()
    thread.join(5)
    assert "a commit has not returned" in messages[0]


def test_the_watchdog_waits_for_a_hanging_commit_while_no_broker_answers() -> None:
    ended = threading.Event()
    excused = threading.Event()
    excused.set()
    watchdog = Watchdog(0.1, lambda message: ended.set(), check_interval_s=0.02, is_excused=excused.is_set)
    with watchdog.watching("a commit"):
        assert not ended.wait(0.5)
        excused.clear()
        assert ended.wait(5)
    watchdog.close()


def test_the_watchdog_ends_the_process_after_a_hanging_commit_despite_short_outages() -> None:
    ended = threading.Event()
    checks = itertools.count()
    watchdog = Watchdog(
        0.2, lambda message: ended.set(), check_interval_s=0.02, is_excused=lambda: next(checks) % 5 == 0
    )
    with watchdog.watching("a commit") as call:
        assert ended.wait(5)
    watchdog.close()
    assert call.excused_s > 0.0


def test_a_commit_fenced_after_an_outage_aborts_and_does_not_end_the_forecaster() -> None:
    """Brokers abort a transaction that has timed out, and fence its producer as a successor would."""
    transport = FakeTransport({"commit": client_errors.ProducerFencedError("timed out")})
    transport.hang = threading.Event()
    outage = threading.Event()
    outage.set()
    made = Committer(lambda: transport, Watchdog(60, check_interval_s=0.02, is_excused=outage.is_set))
    made.open()
    threading.Timer(0.2, transport.hang.set).start()
    with pytest.raises(TransactionAborted, match="timed out"):
        made.commit(WORK)


def test_the_watchdog_leaves_the_process_alone_after_a_commit_in_time() -> None:
    ended = threading.Event()
    watchdog = Watchdog(0.2, lambda message: ended.set(), check_interval_s=0.02)
    for _ in range(5):
        with watchdog.watching("a commit"):
            assert not ended.wait(0.06)
    assert not ended.wait(0.3)
    watchdog.close()
