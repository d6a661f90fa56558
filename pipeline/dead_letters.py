"""Records that were set aside: reading them, and putting their originals back on the readings topic."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from pipeline.audit import read_range
from pipeline.errors import KafkaError
from pipeline.settings import Settings

_OURS: Final = "streamgru-"  # headers that a dead letter has on top of the original's


@dataclass(frozen=True)
class DeadLetter:
    """A record of the dead letter topic: the original's bytes, and why and from where it was set aside."""

    at_partition: int  # of the dead letter topic
    at_offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]  # the original's
    reason: str
    detail: str
    topic: str
    partition: int
    offset: int
    set_aside_ms: int

    @classmethod
    def of(cls, record: Any) -> "DeadLetter | None":
        """The dead letter in a record; none where the record has not the headers of one."""
        # Ours come last, and the original may have come with headers of the same names: the last one counts.
        ours = {name: value for name, value in record.headers or () if name.startswith(_OURS)}
        try:
            return cls(
                at_partition=record.partition,
                at_offset=record.offset,
                key=record.key,
                value=record.value,
                headers=tuple((record.headers or ())[: -len(HEADER_NAMES)]),
                reason=ours["streamgru-reason"].decode(),
                detail=ours["streamgru-detail"].decode(),
                topic=ours["streamgru-topic"].decode(),
                partition=int(ours["streamgru-partition"]),
                offset=int(ours["streamgru-offset"]),
                set_aside_ms=record.timestamp,
            )
        except (KeyError, ValueError):
            return None


HEADER_NAMES: Final = (
    "streamgru-reason",
    "streamgru-detail",
    "streamgru-topic",
    "streamgru-partition",
    "streamgru-offset",
)


def read_letters(settings: Settings) -> Iterator[DeadLetter]:
    """All dead letters, each partition's in order.

    Raises:
        KafkaError: no broker answers, the topic is missing, or the records stop coming.
    """
    for record in read_range(settings, settings.kafka.topics.dead_letters, {}, None):
        letter = DeadLetter.of(record)
        if letter is not None:
            yield letter


def read_letter(settings: Settings, partition: int, offset: int) -> DeadLetter:
    """One dead letter.

    Raises:
        KafkaError: there is none at that position, or no broker answers.
    """
    topic = settings.kafka.topics.dead_letters
    for record in read_range(settings, topic, {partition: offset}, {partition: offset + 1}):
        letter = DeadLetter.of(record)
        if letter is not None and letter.at_offset == offset:
            return letter
    raise KafkaError(
        f"there is no dead letter at offset {offset} of {topic}, partition {partition}; `streamgru dlq list` shows them"
    )


@dataclass
class Replayed:
    """What ``replay_letters`` did."""

    published: int = 0
    still_rejected: dict[str, int] = field(default_factory=dict)  # by reason: left where they are
    done_before: int = 0
