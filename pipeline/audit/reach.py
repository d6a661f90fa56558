"""Tells which readings can be held against the forecasts there are: by partition, from which offset on."""

from pipeline.audit.findings import ForecastLog, Offsets


def first_due(forecasts: ForecastLog, asked: Offsets, committed: Offsets) -> dict[int, int]:
    """The first reading that is due a forecast under the present settings, no earlier than was asked for.

    A partition that has forecasts of other settings begins with its first one of the present: what was accepted before,
    and where states began, the rules of then decided. Without any, nothing is due yet but what will be committed.
    """
    inputs = first_inputs(forecasts)
    foreign = {} if forecasts.foreign is None else first_inputs(forecasts.foreign)
    starts = dict(asked)
    for partition in foreign:
        first = inputs.get(partition, committed.get(partition, 0))
        starts[partition] = max(first, asked.get(partition, 0))
    return starts


def first_inputs(forecasts: ForecastLog) -> dict[int, int]:
    """In each partition the offset of the first reading that has a forecast."""
    firsts: dict[int, int] = {}
    for partition, offset in zip(forecasts.input_partition.tolist(), forecasts.input_offset.tolist(), strict=True):
        firsts[partition] = min(offset, firsts.get(partition, offset))
    return firsts
