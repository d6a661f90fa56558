"""The page of an ingest in Prefect: the offsets that were read, and the records that were left out, with the reason."""

from collections.abc import Mapping
from typing import Final

from pipeline.history.ingest import IngestReport
from pipeline.history.unused import LATE_REMEDY
from pipeline.markdown_text import markdown, markdown_table

_MOST_ROWS: Final = 50  # of a table; a page is read in a minute


def ingest_page(done: IngestReport, history_version: int) -> str:
    """The page as Markdown; ``history_version`` is the table's version after the ingest."""
    topic = markdown(done.topic)
    if not done.total_offsets:
        return f"## Nothing new on topic {topic}\n\nThe history stays at version {history_version}."
    commits = "commit" if done.commits == 1 else "commits"
    paragraphs = [
        f"## {done.readings:,} readings from topic {topic}",
        (
            f"{done.total_offsets:,} offsets in {done.seconds:.1f} s, {done.commits} {commits}. The history is at "
            f"version {history_version}."
        ),
        _table(["partition", "from offset", "up to", "offsets"], _ranges(done)),
    ]
    if done.rejected:
        paragraphs += [
            "### Malformed and left out",
            _counts("reason", done.rejected),
            "Forecasters set these records aside as dead letters; `streamgru dlq list` shows them.",
        ]
    if done.late:
        remedy = f"{LATE_REMEDY[:1].upper()}{LATE_REMEDY[1:]}."
        paragraphs += ["### Late, not used in training", _counts("sensor", done.late), remedy]
    if done.implausible:
        paragraphs += ["### Implausible times, not used in training", _counts("sensor", done.implausible)]
    if done.ignored_values:
        paragraphs.append(f"{done.ignored_values:,} values are of features that the settings do not name.")
    if done.lost_offsets:
        paragraphs.append(f"Retention deleted {done.lost_offsets:,} offsets before they were read.")
    return "\n\n".join(paragraphs)


def _ranges(done: IngestReport) -> list[list[str]]:
    return [
        [str(partition), str(start), str(end), f"{end - start:,}"]
        for partition, (start, end) in sorted(done.ranges.items())
        if end > start
    ]


def _counts(what: str, counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return _table([what, "records"], [[markdown(name, 80), f"{count:,}"] for name, count in ordered])


def _table(header: list[str], rows: list[list[str]]) -> str:
    table = markdown_table(header, rows[:_MOST_ROWS])
    left_out = len(rows) - _MOST_ROWS
    return f"{table}\n\n{left_out:,} more rows are not shown." if left_out > 0 else table
