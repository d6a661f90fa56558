"""The page of an ingest in Prefect: the offsets that were read, and the records that were left out, with the reason."""

from collections.abc import Mapping
from typing import Final

from pipeline.history.ingest import IngestReport
from pipeline.history.unused import LATE_REMEDY
from pipeline.text.markdown_text import markdown, markdown_table
from pipeline.text.plural import counted

_MOST_ROWS: Final = 50  # of a table; a page is read in a minute


def ingest_page(done: IngestReport, history_version: int) -> str:
    """The page as Markdown; ``history_version`` is the table's version after the ingest."""
    topic = markdown(done.topic)
    history = f"The history is at version {history_version}."
    if done.total_offsets:
        outlooks = f" and {counted(done.outlooks, 'outlook')}" if done.outlooks else ""
        paragraphs = [
            f"## {counted(done.readings, 'reading')}{outlooks} from topic {topic}",
            (
                f"{counted(done.total_offsets, 'offset')} in {done.seconds:.1f} s, {counted(done.commits, 'commit')}. "
                f"{history}"
            ),
            _ranges(done),
        ]
    else:
        paragraphs = [f"## Nothing new on topic {topic}", history]
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


def _ranges(done: IngestReport) -> str:
    ranges = [(partition, *span) for partition, span in sorted(done.ranges.items()) if span[1] > span[0]]
    rows = [[str(partition), str(start), str(end), f"{end - start:,}"] for partition, start, end in ranges[:_MOST_ROWS]]
    return _table(["partition", "from offset", "up to", "offsets"], rows, len(ranges))


def _counts(what: str, counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rows = [[markdown(name, 80), f"{count:,}"] for name, count in ordered[:_MOST_ROWS]]
    return _table([what, "records"], rows, len(ordered))


def _table(header: list[str], rows: list[list[str]], total_rows: int) -> str:
    table = markdown_table(header, rows)
    left_out = total_rows - len(rows)
    return f"{table}\n\nRows that are not shown: {left_out:,}." if left_out else table
