"""``streamgru dlq``: records that were set aside, and the way back for those that are readings after all."""

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

_VALUE_WIDTH = 60
_FILE_WIDTH = 300
_NONE = "the topic of dead letters is empty: every record so far was a reading"


def position_of(text: str) -> tuple[int, int]:
    """A place on the topic of dead letters, as ``dlq list`` shows it: PARTITION:OFFSET."""
    partition, _, offset = text.partition(":")
    if not (partition.isdigit() and offset.isdigit()):
        raise click.BadParameter(f"{text!r} is not PARTITION:OFFSET, such as 3:17 (`streamgru dlq list` shows them)")
    return int(partition), int(offset)


_reason = click.option("--reason", type=click.Choice(ReadingDecoder.REASONS), help="Only those set aside for this.")


@click.group(cls=RenamingGroup, renamed={"replay": "republish"})
def dlq() -> None:
    """Dead letters: records that are no reading, with their bytes as they were."""


@dlq.command("list")
@_reason
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Show the last N.")
@click.pass_obj
def list_letters(context: Context, reason: str | None, limit: int) -> None:
    """Count the dead letters by reason, and show the latest."""
    counts: Counter[str] = Counter()
    latest: deque[DeadLetter] = deque(maxlen=limit)
    for letter in _only(read_letters(context.settings), reason):
        counts[letter.reason] += 1
        latest.append(letter)
    if not counts:
        click.echo(_NONE if reason is None else f"no record was set aside for {reason!r}")
        return
    click.echo(f"{counts.total():,} dead letters: " + ", ".join(f"{name} {n:,}" for name, n in counts.most_common()))
    # Elsewhere than in a terminal nothing is to be cut off.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _FILE_WIDTH)
    console.print(_table(sorted(latest, key=lambda letter: letter.set_aside_ms)))


@dlq.command()
@click.argument("position", type=position_of)
@click.option("--raw", is_flag=True, help="Write the original value's bytes to standard output, and nothing else.")
@click.pass_obj
def show(context: Context, position: tuple[int, int], raw: bool) -> None:
    """Show one dead letter: why it was set aside, where it came from, and what was in it."""
    letter = read_letter(context.settings, *position)
    if raw:
        sys.stdout.buffer.write(letter.value or b"")
        return
    click.echo(f"reason   {letter.reason}: {letter.detail}")
    click.echo(f"from     {letter.topic}, partition {letter.partition}, offset {letter.offset}")
    click.echo(f"set aside {_moment(letter.set_aside_ms)}")
    if letter.whole_bytes is not None:
        click.echo(f"cut      it measured {letter.whole_bytes:,} bytes, and this is the beginning of it")
    click.echo(f"key      {_text(letter.key)}")
    for name, value in letter.headers:
        click.echo(f"header   {_text(name.encode(errors='surrogateescape'))}: {_text(value)}")
    click.echo(f"value    {_text(letter.value)}")


@dlq.command()
@click.argument("positions", type=position_of, nargs=-1, metavar="[POSITION]...")
@_reason
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.pass_obj
def republish(context: Context, positions: tuple[tuple[int, int], ...], reason: str | None, dry_run: bool) -> None:
    """Publish dead letters as readings once more: those that are readings under the present settings.

    All of them, or those at the positions that `dlq list` shows. Do this after the settings have learned of a feature,
    say. What would be rejected again stays where it is. Where a sensor has moved on since, its reading comes late: it
    is counted, and goes into the history but not into the sensor's state. Published is not forecast: where the changed
    settings have the states rebuilt, a reading that is not newer than its sensor's state counts as late or as a
    duplicate, and gets no forecast.
    """
    settings = context.settings

    def letters() -> Iterator[DeadLetter]:
        chosen = (read_letter(settings, *position) for position in positions)
        return _only(chosen if positions else read_letters(settings), reason)

    outcome = republish_letters(settings, letters, publish=not dry_run)
    topic = settings.kafka.topics.readings
    click.echo(f"{outcome.published:,} {'would be' if dry_run else 'were'} published to {topic} once more")
    for why, count in outcome.still_rejected.most_common():
        click.echo(f"{count:,} would be rejected again ({why}), and stay where they are")
    if outcome.foreign:
        click.echo(f"{outcome.foreign:,} came from another topic than {topic}, and stay where they are")


def _only(letters: Iterable[DeadLetter], reason: str | None) -> Iterator[DeadLetter]:
    return (letter for letter in letters if reason is None or letter.reason == reason)


def _table(letters: Iterable[DeadLetter]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column, width in (("position", 8), ("set aside", 25), ("reason", 13), ("partition", 9), ("offset", 6)):
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
            str(letter.offset),
            _text(letter.key)[:_VALUE_WIDTH],
            value if len(value) <= _VALUE_WIDTH else value[: _VALUE_WIDTH - 1] + "…",
        )
    return table


def _text(content: bytes | None) -> str:
    """Bytes as a person reads them; whatever a terminal must not be sent is escaped."""
    if content is None:
        return "(none)"
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return repr(content)
    return text if text.isprintable() else repr(text)


def _moment(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1_000, UTC).isoformat(sep=" ", timespec="seconds")
