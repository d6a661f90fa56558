"""All remarks about the readings of a training."""

from collections.abc import Sequence

from model.sequences import Sequences
from pipeline.remarks.attributes import attribute_remarks
from pipeline.remarks.bounds import BoundsFinding, bounds_remarks
from pipeline.remarks.calendar import calendar_remarks
from pipeline.remarks.outlooks import outlook_remarks
from pipeline.settings import Settings


def data_remarks(
    sequences: Sequences, settings: Settings, findings: Sequence[BoundsFinding], known: str = ""
) -> list[str]:
    """A sentence for each remark about bounds, days, outlooks and attributes, in this order.

    Args:
        findings: the findings about bounds.
        known: facts about bounds that need no remark, in the form of ``facts_as_text``.
    """
    return [
        *bounds_remarks(findings, known),
        *calendar_remarks(sequences, settings),
        *outlook_remarks(settings),
        *attribute_remarks(sequences.sensors, settings),
    ]
