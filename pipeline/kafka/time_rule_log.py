"""Reads the recorded time rules of each partition from the changelog, without reading its states.

Every transaction of a forecaster ends with a position record, which holds the partition's time rules
(``pipeline.reading_times``). So the last of these records lies near the end of the changelog.
"""

from typing import Final

import msgspec

from pipeline.errors import TopicError
from pipeline.kafka.topic_reader import read_topic, topic_ends, topic_starts
from pipeline.kafka.topics import find_topic_id
from pipeline.reading_times import TimeRules, time_rules_from
from pipeline.settings import Settings

# Key of the position in the changelog. Sensor ids are UTF-8, so no sensor has this key.
POSITION_KEY: Final = b"\xffposition"
_FIRST_OFFSETS: Final = 16  # offsets to read from the end of a partition; multiplied until they contain a position
_MORE: Final = 16


class _RecordedRules(msgspec.Struct):
    """The fields of ``pipeline.forecaster.positions.PositionRecord`` that matter here."""

    owner: str
    time_rules: TimeRules = ()


def position_owner(group_id: str, topic_id: str) -> str:
    """The owner of positions. Another group has another owner, and so has a topic that was deleted and recreated."""
    return f"{group_id} in {topic_id}"


def read_time_rules(settings: Settings) -> dict[int, TimeRules]:
    """The time rules of each partition of the readings topic.

    A partition without a position has not been forecast: the rule of the settings applies from its first offset on, as
    it will when a forecaster takes the partition over. If a forecaster of a release without time rules wrote the last
    position, no rule applies yet.

    Raises:
        KafkaError: no broker answers, or the readings topic does not exist.
    """
    topic, readings = settings.kafka.topics.state, settings.kafka.topics.readings
    owner = position_owner(settings.forecaster.group_id, find_topic_id(settings, readings))
    try:
        starts, ends = topic_starts(settings, topic), topic_ends(settings, topic)
    except TopicError:  # without the changelog there was no forecaster
        starts, ends = {}, {}
    found: dict[int, TimeRules] = {}
    remaining = {partition for partition, end in ends.items() if starts[partition] < end}
    offsets = _FIRST_OFFSETS
    while remaining:
        begins = {partition: max(starts[partition], ends[partition] - offsets) for partition in remaining}
        for record in read_topic(settings, topic, begins, {partition: ends[partition] for partition in remaining}):
            if record.key == POSITION_KEY and (rules := _rules_of(record.value, owner)) is not None:
                found[record.partition] = rules
        remaining = {part for part in remaining if part not in found and begins[part] > starts[part]}
        offsets *= _MORE
    unprocessed = time_rules_from((), settings, 0)
    return {partition: found.get(partition, unprocessed) for partition in topic_starts(settings, readings)}


def _rules_of(value: bytes | None, owner: str) -> TimeRules | None:
    """The rules in a position record; None if the record is damaged or has another owner."""
    try:
        recorded = msgspec.json.decode(value or b"", type=_RecordedRules)
    except msgspec.DecodeError:
        return None
    return recorded.time_rules if recorded.owner == owner else None
