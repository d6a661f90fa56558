"""``streamgru dlq``: list, show and republish dead letters."""

import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import click
from rich.console import Console
from rich.table import Table

from deploy.context import Context
from deploy.renamed import RenamingGroup
from pipeline.dead_letters import DeadLetter, read_letter, read_letters, republish_letters
from pipeline.messages import ReadingDecoder
from pipeline.sensor_limit import TOO_MANY_SENSORS

_VALUE_WIDTH = 60
_FILE_WIDTH = 300
_NO_LETTERS = "the topic of dead letters is empty: every record so far was a reading"


def position_of(text: str) -> tuple[int, int]:
    """Partition and offset of a dead letter, written PARTITION:OFFSET as ``dlq list`` does."""
    partition, _, offset = text.partition(":")
    if not (partition.isdigit() and offset.isdigit()):
        raise click.BadParameter(f"{text!r} is not PARTITION:OFFSET, such as 3:17 (`streamgru dlq list` shows them)")
    return int(partition), int(offset)


_reason = click.option(
    "--reason",
    type=click.Choice((*ReadingDecoder.REASONS, TOO_MANY_SENSORS)),
    help="Only letters with this reason.",
)


@click.group(cls=RenamingGroup, renamed={"replay": "republish"})
def dlq() -> None:
    """List, show and republish dead letters: records that are not valid readings, with their original bytes."""


@dlq.command("list")
@_reason
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="Show the latest N."
)
@click.pass_obj
def list_letters(context: Context, reason: str | None, limit: int) -> None:
    """Count the dead letters by reason, and show the latest."""
    counts: Counter[str] = Counter()
    latest: deque[DeadLetter] = deque(maxlen=limit)
    for letter in _only(read_letters(context.settings), reason):
        counts[letter.reason] += 1
        latest.append(letter)
    if not counts:
        click.echo(_NO_LETTERS if reason is None else f"no dead letter has the reason {reason!r}")
        return
    click.echo(f"{counts.total():,} dead letters: " + ", ".join(f"{name} {n:,}" for name, n in counts.most_common()))
    # Cut nothing off unless the output is a terminal.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _FILE_WIDTH)
    console.print(_table(sorted(latest, key=lambda letter: letter.set_aside_ms)))


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
    click.echo(f"reason   {letter.reason}: {letter.detail}")
    click.echo(f"from     {letter.topic}, partition {letter.partition}, {_origin(letter)}")
    click.echo(f"rejected {_moment(letter.set_aside_ms)}")
    if letter.whole_bytes is not None:
        click.echo(f"cut      the record had {letter.whole_bytes:,} bytes; only its beginning is kept")
    click.echo(f"key      {_text(letter.key)}")
    for name, value in letter.headers:
        click.echo(f"header   {_text(name.encode(errors='surrogateescape'))}: {_text(value)}")
    click.echo(f"value    {_text(letter.value)}")


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
    click.echo(f"{outcome.published:,} {'would be' if dry_run else 'were'} published to {topic} once more")
    for why, count in outcome.still_rejected.most_common():
        click.echo(f"{count:,} would be rejected again ({why}); not published")
    if outcome.foreign:
        click.echo(f"{outcome.foreign:,} came from a topic other than {topic}; not published")


def _only(letters: Iterable[DeadLetter], reason: str | None) -> Iterator[DeadLetter]:
    return (letter for letter in letters if reason is None or letter.reason == reason)


def _table(letters: Iterable[DeadLetter]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column, width in (("position", 8), ("rejected at", 25), ("reason", 13), ("partition", 9), ("offset", 6)):
        table.add_column(column, no_wrap=True, min_width=width)
    for column in ("key", "value"):
        table.add_column(column, no_wrap=True)
    for letter in letters:
        value = _text(letter.value)
        table.add_row(
            f"{letter.at_partition}:{letter.at_offset}",
            _moment(letter.set_aside_ms),
            letter.reason,
            str(letter.partition),
            str(letter.offset) if letter.last_offset is None else f"{letter.offset}-{letter.last_offset}",
            _text(letter.key)[:_VALUE_WIDTH],
            value if len(value) <= _VALUE_WIDTH else value[: _VALUE_WIDTH - 1] + "…",
        )
    return table


def _text(content: bytes | None) -> str:
    """Bytes as text; control characters are escaped, because they could change the terminal."""
    if content is None:
        return "(none)"
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return repr(content)
    return text if text.isprintable() else repr(text)


def _origin(letter: DeadLetter) -> str:
    """The offset of the record, or the offsets of the batch with the number of its records."""
    if letter.last_offset is None:
        return f"offset {letter.offset}"
    return f"offsets {letter.offset} to {letter.last_offset}, a batch of {letter.records:,} records"


def _moment(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1_000, UTC).isoformat(sep=" ", timespec="seconds")
