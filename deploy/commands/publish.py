"""``streamgru publish``: publish files as readings."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TimeRemainingColumn

from deploy.context import Context
from deploy.data_files import read_outlook_files, read_reading_files
from deploy.literal_console import TaskText, make_console
from deploy.option_types import POSITIVE, issued_column_option, layout_options
from deploy.processes import terminated_like_interrupted
from deploy.terminal_text import say
from pipeline.errors import DataFileError, KafkaError
from pipeline.files.file_layout import FileLayout, Order
from pipeline.files.outlook_table import OutlookRecord, OutlookTable, no_readings
from pipeline.files.publishing import Publication
from pipeline.files.reading_table import ReadingTable
from pipeline.iso_times import iso_microseconds_in_zone
from pipeline.kafka.clients import close_producer, make_admin, make_producer, partition_count
from pipeline.messages import iso_timestamp
from pipeline.reading_times import find_implausible_now
from pipeline.settings import Settings
from pipeline.settings.names import listed
from pipeline.text.plural import counted

SETTLE_S = 2.0  # time that an interrupted command waits for records in flight
INTERRUPTED = 130  # exit code
_ROW = re.compile(r"[0-9]{1,18}")


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@layout_options
@click.option(
    "--speed",
    type=POSITIVE,
    metavar="FACTOR",
    help="Send FACTOR times as fast as the readings were measured; by default as fast as possible.",
)
@click.option(
    "--order",
    type=click.Choice(["event", "file"]),
    default="event",
    show_default=True,
    help="Sort the readings of all sensors by time, or keep the order of the rows.",
)
@click.option(
    "--from", "begin", metavar="ROW|TIME", help="Start at this row, or at the first reading at or after this time."
)
@click.option("--until", metavar="TIME", help="Publish only readings before this time.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Publish at most N readings.")
@issued_column_option("Given without --outlooks, it says that the FILEs hold outlooks.")
@click.option(
    "--outlooks",
    "outlook_files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A file of outlooks to publish between the readings of the FILEs, each before the first reading with its "
    "time of issue or a later time. --time-column and --sensor-column count for both.",
)
@click.pass_obj
def publish(
    context: Context,
    /,
    files: tuple[Path, ...],
    speed: float | None,
    order: Order,
    begin: str | None,
    until: str | None,
    limit: int | None,
    issued_column: str | None,
    outlook_files: tuple[Path, ...],
    **columns: Any,
) -> None:
    """Publish CSV or Parquet files as readings, or as outlooks.

    Columns that the settings name as features are published; other columns are ignored. --from and --until take times
    such as 2013-03-01 or 2013-03-01T14:00:00Z; without a zone they are in --timezone, or in UTC. If the command is
    interrupted, it prints how to continue.

    A row of a file of outlooks has the time of issue, the time ahead, and the covariates that the settings name. The
    name in --sensor-column is a sensor, or a group of the settings, whose outlooks go to every partition.
    """
    settings = context.settings
    found = OutlookTable((), (), (), ())
    if outlook_files or issued_column is not None:
        found = read_outlook_files(outlook_files or files, issued_column, columns, settings)
        _check_issued(found.records, settings)
    outlooks = found.records
    if issued_column is not None and not outlook_files:
        if speed is not None or begin is not None or until is not None or limit is not None or order != "event":
            raise click.UsageError(
                "outlooks alone are published whole, in the order of their issue; leave out --speed, "
                "--order, --from, --until and --limit, or give the outlooks by --outlooks and the readings as FILEs"
            )
        _publish(settings, no_readings(settings), (0, 0), outlooks)
        say(f"{counted(len(outlooks), 'outlook')} published to {settings.kafka.topics.readings}: {_receivers(found)}")
        return
    if outlooks and order != "event":
        raise click.UsageError("--outlooks needs --order event")
    layout = FileLayout.of(settings.files, **columns, order=order)
    if order == "file" and (until is not None or (begin is not None and not begin.isdigit())):
        raise click.UsageError("--from and --until accept times only with --order event; with --order file, give a row")
    table = read_reading_files(files, layout, settings)
    start, stop = _rows(table, layout.timezone, begin, until, limit)
    if start >= stop:
        raise click.UsageError(f"nothing to publish: no readings {_span(table, begin, until)}")

    _check_times(table, start, stop, settings)
    if outlooks and (strangers := [name for name in found.sensors if name not in table.sensors]):
        say(
            f"warning: the files have outlooks of {listed(strangers)}: neither a group in the settings nor a sensor in "
            "the readings has this name, so they are published as outlooks of sensors",
            err=True,
        )
    count = _publish(settings, table, (start, stop), outlooks, speed=speed, limit=limit)
    beside = f" and {counted(count, 'outlook')}" if outlooks else ""
    topic = settings.kafka.topics.readings
    say(f"{counted(stop - start, 'reading')} of {counted(len(table.sensors), 'sensor')}{beside} published to {topic}")


def _publish(
    settings: Settings,
    table: ReadingTable,
    rows: tuple[int, int],
    outlooks: Sequence[OutlookRecord],
    *,
    speed: float | None = None,
    limit: int | None = None,
) -> int:
    """Publish rows of the table with the outlooks between them, and return the number of outlooks.

    If it is interrupted, it says how to continue, and ends the command.
    """
    start, stop = rows
    topic = settings.kafka.topics.readings
    with make_admin(settings) as admin:
        partition_count(admin, topic)  # fails at once for a missing topic; a producer would wait for it
    producer = make_producer(settings, linger_ms=5)
    publication = Publication(settings, producer, table, start, stop, outlooks)
    try:
        with terminated_like_interrupted(), _progress_bar(is_shown=start < stop) as progress:
            task = progress.add_task(f"publishing to {topic}", total=stop - start)
            publication.run(speed, lambda row: progress.update(task, completed=row - start))
    except KeyboardInterrupt:
        publication.wait_for_acks(SETTLE_S)
        say(f"interrupted; {_resume_hint(publication, start, stop, limit)}", err=True)
        click.get_current_context().exit(INTERRUPTED)
    except KafkaError as error:
        raise type(error)(f"{error}\n{_resume_hint(publication, start, stop, limit)}") from error
    finally:
        close_producer(producer, SETTLE_S)
    return publication.published_outlooks


def _receivers(table: OutlookTable) -> str:
    """The names that outlooks are for, so that a misspelt group shows up among the sensors."""
    parts = {"sensors": table.sensors, "groups": table.groups}
    return "; ".join(f"as {kind} {listed(names)}" for kind, names in parts.items() if names)


def _check_issued(outlooks: Sequence[OutlookRecord], settings: Settings) -> None:
    """Refuse outlooks that would become dead letters because of their times of issue."""
    places, first = find_implausible_now(np.array([each.outlook.issued_us for each in outlooks], np.int64), settings)
    if len(places):
        raise DataFileError(
            f"nothing was published: {len(places):,} of {len(outlooks):,} outlooks have implausible times of issue: "
            f"{first}. If the times are right, change that setting for this command and for the forecasters"
        )


def _check_times(table: ReadingTable, start: int, stop: int, settings: Settings) -> None:
    """Refuse readings that would become dead letters because of their times."""
    places, first = find_implausible_now(table.timestamp_us[start:stop], settings)
    if len(places):
        sensor = table.sensors[table.sensor_codes[start + places[0]]]
        raise DataFileError(
            f"nothing was published: {len(places):,} of {stop - start:,} readings have implausible times, first one of "
            f"sensor {sensor}: {first}. If the times are right, change that setting for this command and for the "
            "forecasters"
        )


def _rows(
    table: ReadingTable, timezone: str | None, begin: str | None, until: str | None, limit: int | None
) -> tuple[int, int]:
    """The rows [start, stop) to publish. ``begin`` and ``until`` may be times if the rows are in order of time."""
    start, stop = 0, len(table)
    if begin is not None:
        is_row = _ROW.fullmatch(begin) is not None
        start = int(begin) if is_row else _first_row_at(table, moment_us(begin, timezone, "--from"))
    if until is not None:
        stop = _first_row_at(table, moment_us(until, timezone, "--until"))
    return start, stop if limit is None else min(stop, start + limit)


def _first_row_at(table: ReadingTable, timestamp_us: int) -> int:
    return int(np.searchsorted(table.timestamp_us, timestamp_us))


def moment_us(text: str, timezone: str | None, option: str) -> int:
    """Microseconds UTC of a time in ISO 8601; ``timezone`` is the zone of a time that has none, by default UTC.

    Raises:
        click.BadParameter: the text is not a time, or there is no such zone.
    """
    try:
        zone = ZoneInfo(timezone or "UTC")
    except (ValueError, OSError, ZoneInfoNotFoundError) as error:
        raise click.BadParameter(f"{timezone!r} is not a zone such as UTC", param_hint="--timezone") from error
    timestamp_us = iso_microseconds_in_zone(text, zone)
    if timestamp_us is None:
        raise click.BadParameter(f"{text!r} is neither a row nor a time like 2013-03-01T14:00:00Z", param_hint=option)
    return timestamp_us


def _span(table: ReadingTable, begin: str | None, until: str | None) -> str:
    asked = " ".join(text for text in (begin and f"from {begin}", until and f"until {until}") if text)
    if not len(table):
        return f"{asked}; the files have none".strip()
    first, last = (iso_timestamp(int(time)) for time in (table.timestamp_us.min(), table.timestamp_us.max()))
    return f"{asked}; the files have {len(table):,}, from {first} to {last}"


def _resume_hint(publication: Publication, start: int, stop: int, limit: int | None) -> str:
    if start == stop:
        return "to continue, repeat the command; outlooks that are published already then count as late"
    done = publication.acknowledged
    # Without a reading the command would refuse to send the outlooks after the last one.
    again = min(done, stop - 1) if publication.published_outlooks else done
    rest = "" if limit is None else f" --limit {stop - again}"
    return (
        f"{done - start:,} of {stop - start:,} readings are published for certain. To continue, give the same command "
        f"and --from {again}{rest}"
    )


def _progress_bar(*, is_shown: bool) -> Progress:
    """The progress in readings; not shown for outlooks alone."""
    return Progress(
        TaskText("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=make_console(stderr=True),
        disable=not is_shown,
    )
