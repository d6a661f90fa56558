"""Dead letters are split into transactions of limited size; the help of `dlq republish` promises no forecast."""

from collections.abc import Iterator
from itertools import islice
from types import SimpleNamespace

from click.testing import CliRunner

from deploy.commands.dlq import dlq
from pipeline.dead_letter_form import dead_letter
from pipeline.dead_letters import DeadLetter, transactions_of
from pipeline.messages import InputPosition, Rejected


def letter(offset: int, value_bytes: int, header_bytes: int = 0) -> DeadLetter:
    headers = (("padding", bytes(header_bytes)),) if header_bytes else ()
    return DeadLetter(0, offset, b"sensor", bytes(value_bytes), headers, "no-feature", "", "readings", 0, offset, 0)


def test_a_transaction_holds_at_most_a_thousand_letters() -> None:
    letters = [letter(offset, 10) for offset in range(2_001)]
    runs = list(transactions_of(letters))
    assert [len(run) for run in runs] == [1_000, 1_000, 1]
    assert [each for run in runs for each in run] == letters


def test_a_transaction_is_limited_in_bytes_and_a_larger_letter_is_sent_alone() -> None:
    letters = [letter(0, 900_000), letter(1, 10, header_bytes=900_000), letter(2, 900_000), letter(3, 9_000_000)]
    letters += [letter(4, 10), letter(5, 10)]
    assert [[each.offset for each in run] for run in transactions_of(letters)] == [[0, 1], [2], [3], [4, 5]]
    assert list(transactions_of([])) == []


def test_letters_are_read_only_as_transactions_need_them() -> None:
    read = []

    def reading() -> Iterator[DeadLetter]:
        for offset in range(100):
            read.append(offset)
            yield letter(offset, 1_000_000)

    assert [len(run) for run in islice(transactions_of(reading()), 2)] == [2, 2]
    assert len(read) == 5  # one letter of the next transaction is read


def test_a_detail_that_is_cut_inside_a_character_is_read() -> None:
    made = dead_letter(b"k", b"v", [], Rejected("malformed", "a" + "é" * 400), InputPosition("readings", 0, 7), 1_000)
    detail = dict(made.headers)["streamgru-detail"]
    assert detail == ("a" + "é" * 249).encode()
    of_earlier_version = [(name, b"a\xc3" if value == detail else value) for name, value in made.headers]
    for headers, end in ((made.headers, "é"), (of_earlier_version, "\ufffd")):
        record = SimpleNamespace(partition=0, offset=1, timestamp=2, key=b"k", value=b"v", headers=headers)
        found = DeadLetter.of(record)
        assert found is not None
        assert (found.reason, found.offset, found.detail[-1]) == ("malformed", 7, end)


def test_the_help_of_republish_does_not_promise_a_forecast() -> None:
    shown = " ".join(CliRunner().invoke(dlq, ["republish", "--help"]).output.split())
    assert "not newer than its sensor's state counts as late or as a duplicate, and gets no forecast" in shown
