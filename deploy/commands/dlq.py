"""``streamgru dlq``: list, show and republish dead letters."""

import heapq
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import NamedTuple

import click
from rich.table import Table

from deploy.context import Context
from deploy.literal_console import make_console
from deploy.renamed import RenamingGroup
from deploy.terminal_text import say
from pipeline.dead_letter_form import REASONS
from pipeline.dead_letters import DeadLetter, read_letter, read_letters, republish_letters
from pipeline.text.visible_text import visible, visible_bytes

_VALUE_WIDTH = 60
_FILE_WIDTH = 300
_NO_LETTERS = "the topic of dead letters is empty: every record so far was a reading or an outlook"


def position_of(text: str) -> tuple[int, int]:
    """Partition and offset of a dead letter, written PARTITION:OFFSET as ``dlq list`` does."""
    partition, _, offset = text.partition(":")
    if not (partition.isdigit() and offset.isdigit()):
        raise click.BadParameter(f"{text!r} is not PARTITION:OFFSET, such as 3:17 (`streamgru dlq list` shows them)")
    return int(partition), int(offset)


_reason = click.option(
    "--reason",
    type=click.Choice(REASONS),
    help="Only letters with this reason.",
)


@click.group(cls=RenamingGroup, renamed={"replay": "republish"})
def dlq() -> None:
    """List, show and republish dead letters: records that are not valid readings, with their original bytes."""


@dlq.command("list")
@_reason
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    metavar="N",
    help="Show only the latest N.",
)
@click.pass_obj
def list_letters(context: Context, reason: str | None, limit: int) -> None:
    """Count the dead letters by reason, and show the latest of all partitions, the newest last.

    The order is the time at which the letters were set aside, then the partition and offset on the dead letter topic.
    """
    counts: Counter[str] = Counter()
    latest: list[_Row] = []  # a heap with the earliest row first
    for letter in _only(read_letters(context.settings), reason):
        counts[letter.reason] += 1
        key = (letter.set_aside_ms, letter.at_partition, letter.at_offset)
        if len(latest) < limit:
            heapq.heappush(latest, _Row(key, _cells(letter)))
        elif key > latest[0].key:
            heapq.heapreplace(latest, _Row(key, _cells(letter)))
    if not counts:
        say(_NO_LETTERS if reason is None else f"no dead letter has the reason {reason!r}")
        return
    say(f"{counts.total():,} dead letters: " + ", ".join(f"{name} {n:,}" for name, n in counts.most_common()))
    # Cut nothing off unless the output is a terminal.
    console = make_console(width=None if sys.stdout.isatty() else _FILE_WIDTH)
    console.print(_table(row.cells for row in sorted(latest)))


@dlq.command()
@click.argument("position", type=position_of)
@click.option("--raw", is_flag=True, help="Write the original value's bytes to standard output, and nothing else.")
@click.pass_obj
def show(context: Context, position: tuple[int, int], raw: bool) -> None:
    """Show the reason, origin and content of one dead letter."""
    letter = read_letter(context.settings, *position)
    if raw:
        sys.stdout.buffer.write(letter.value or b"")
        return
    say(f"reason   {letter.reason}: {letter.detail}")
    say(f"from     {letter.topic}, partition {letter.partition}, {_origin(letter)}")
    say(f"rejected {_moment(letter.set_aside_ms)}")
    if letter.whole_bytes is not None:
        say(f"cut      the record had {letter.whole_bytes:,} bytes; only its beginning is kept")
    say(f"key      {visible_bytes(letter.key)}")
    for name, value in letter.headers:
        say(f"header   {visible(name)}: {visible_bytes(value)}")
    say(f"value    {visible_bytes(letter.value)}")


@dlq.command()
@click.argument("positions", type=position_of, nargs=-1, metavar="[POSITION]...")
@_reason
@click.option("--dry-run", is_flag=True, help="Count the records and publish nothing.")
@click.pass_obj
def republish(context: Context, positions: tuple[tuple[int, int], ...], reason: str | None, dry_run: bool) -> None:
    """Publish dead letters again as readings, if they are valid readings under the present settings.

    Republish all dead letters, or those at the positions that `dlq list` shows, for example after a feature was added
    to the settings. Records that would be rejected again are not published.

    A republished reading does not always get a forecast. The history takes it, but a reading that is not newer than its
    sensor's state counts as late or as a duplicate, and gets no forecast. That also holds for a state that was rebuilt
    because the settings changed.
    """
    settings = context.settings

    def letters() -> Iterator[DeadLetter]:
        chosen = (read_letter(settings, *position) for position in positions)
        return _only(chosen if positions else read_letters(settings), reason)

    outcome = republish_letters(settings, letters, publish=not dry_run)
    topic = settings.kafka.topics.readings
    say(f"{outcome.published:,} {'would be' if dry_run else 'were'} published to {topic} once more")
    for why, count in outcome.still_rejected.most_common():
        say(f"{count:,} would be rejected again ({why}); not published")
    if outcome.foreign:
        say(f"{outcome.foreign:,} came from a topic other than {topic}; not published")


def _only(letters: Iterable[DeadLetter], reason: str | None) -> Iterator[DeadLetter]:
    return (letter for letter in letters if reason is None or letter.reason == reason)


class _Row(NamedTuple):
    """A line of ``dlq list``. The line has no whole value, because a letter may have megabytes."""

    key: tuple[int, int, int]  # ms since the epoch at which it was set aside, partition and offset of the letter
    cells: tuple[str, ...]


def _cells(letter: DeadLetter) -> tuple[str, ...]:
    return (
        f"{letter.at_partition}:{letter.at_offset}",
        _moment(letter.set_aside_ms),
        visible(letter.reason),
        str(letter.partition),
        str(letter.offset) if letter.last_offset is None else f"{letter.offset}-{letter.last_offset}",
        visible_bytes(letter.key, _VALUE_WIDTH),
        visible_bytes(letter.value, _VALUE_WIDTH),
    )


def _table(rows: Iterable[tuple[str, ...]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column, width in (("position", 8), ("rejected at", 25), ("reason", 16), ("partition", 9), ("offset", 6)):
        table.add_column(column, no_wrap=True, min_width=width)
    for column in ("key", "value"):
        table.add_column(column, no_wrap=True)
    for cells in rows:
        table.add_row(*cells)
    return table


def _origin(letter: DeadLetter) -> str:
    """The offset of the record, or the offsets of the batch with the number of its records."""
    if letter.last_offset is None:
        return f"offset {letter.offset}"
    return f"offsets {letter.offset} to {letter.last_offset}, a batch of {letter.records:,} records"


def _moment(milliseconds: int) -> str:
    try:
        return datetime.fromtimestamp(milliseconds / 1_000, UTC).isoformat(sep=" ", timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return f"{milliseconds} ms"  # beyond the year 9999; a producer may send any number
