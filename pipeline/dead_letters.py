"""Records that were set aside: reading them, and putting their originals back on the readings topic."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from pipeline.errors import KafkaError, TopicError
from pipeline.kafka.batch_producer import BatchAppender, check_delivered, encode_headers
from pipeline.kafka.clients import close_producer, make_admin, make_producer, partition_count, translate_errors
from pipeline.kafka.topic_reader import read_topic, topic_ends, topic_starts
from pipeline.messages import ReadingDecoder, Rejected
from pipeline.settings import Settings

_TOGETHER: Final = 1_000  # letters in one transaction, which must not outlast the transaction timeout
_TOGETHER_BYTES: Final = 2 * 1024 * 1024  # likewise; at 1 MB/s they arrive before forecaster.delivery_timeout_s is over
_NAMED: Final = 10  # letters named in a message
# What a dead letter has behind the original's headers (pipeline.messages); before them, where it was cut, its size.
HEADER_NAMES: Final = (
    "streamgru-reason",
    "streamgru-detail",
    "streamgru-topic",
    "streamgru-partition",
    "streamgru-offset",
)
TRUNCATED: Final = "streamgru-truncated"


@dataclass(frozen=True)
class DeadLetter:
    """A record of the dead letter topic: the original's bytes, and why and from where it was set aside."""

    at_partition: int  # of the dead letter topic
    at_offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]  # the original's
    reason: str
    detail: str
    topic: str
    partition: int
    offset: int
    set_aside_ms: int
    whole_bytes: int | None = None  # what key, value and headers measured, where they were too large and have been cut

    @classmethod
    def of(cls, record: Any) -> "DeadLetter | None":
        """The dead letter in a record; none where the record has not the headers of one."""
        # Ours come last; the original may have come with headers of the same names.
        headers = list(record.headers or ())
        ours = dict(headers[-len(HEADER_NAMES) :])
        headers = headers[: -len(HEADER_NAMES)]
        try:
            whole_bytes = int(headers.pop()[1]) if headers and headers[-1][0] == TRUNCATED else None
            return cls(
                at_partition=record.partition,
                at_offset=record.offset,
                key=record.key,
                value=record.value,
                headers=tuple(headers),
                reason=ours["streamgru-reason"].decode(),
                detail=ours["streamgru-detail"].decode(),
                topic=ours["streamgru-topic"].decode(),
                partition=int(ours["streamgru-partition"]),
                offset=int(ours["streamgru-offset"]),
                set_aside_ms=record.timestamp,
                whole_bytes=whole_bytes,
            )
        except (KeyError, ValueError, TypeError, AttributeError):  # a header that is missing, no number, or null
            return None


def read_letters(settings: Settings) -> Iterator[DeadLetter]:
    """All dead letters, each partition's in order.

    Raises:
        KafkaError: no broker answers, the topic is missing, or the records stop coming.
    """
    for record in read_topic(settings, settings.kafka.topics.dead_letters, {}, None):
        letter = DeadLetter.of(record)
        if letter is not None:
            yield letter


def read_letter(settings: Settings, partition: int, offset: int) -> DeadLetter:
    """One dead letter.

    Raises:
        KafkaError: there is none at that position, or no broker answers.
    """
    topic = settings.kafka.topics.dead_letters
    start, end = topic_starts(settings, topic).get(partition, 0), topic_ends(settings, topic).get(partition, 0)
    if start <= offset < end:
        for record in read_topic(settings, topic, {partition: offset}, {partition: offset + 1}):
            letter = DeadLetter.of(record)
            if letter is not None and (letter.at_partition, letter.at_offset) == (partition, offset):
                return letter
    raise KafkaError(
        f"there is no dead letter at offset {offset} of {topic}, partition {partition}; `streamgru dlq list` shows them"
    )


@dataclass
class Republication:
    """What ``republish_letters`` did."""

    published: int = 0
    still_rejected: Counter[str] = field(default_factory=Counter)  # by the reason that holds now; they stay
    foreign: int = 0  # of another topic than the settings' readings


def republish_letters(
    settings: Settings, letters: Callable[[], Iterable[DeadLetter]], *, publish: bool = True
) -> Republication:
    """Put originals back on the readings topic, those that are readings under the present settings.

    Each goes to the partition it came from, with its own key, value and headers. Doing it twice is harmless: the second
    time they are duplicates by the rule of acceptance. A transaction's letters, see ``transactions_of``, are published
    before the next are read; after a crash all or none of them are visible, and nothing notes which.

    Args:
        letters: begins to read the dead letters to republish; called a second time once all of them were found fit.
        publish: false only counts what would be done.

    Raises:
        TopicError: letters came from partitions that the topic no longer has; nothing was published.
        KafkaError: no broker answers, or it refused a record.
        Fenced: another process has begun to republish meanwhile; it continues, this one stops.
    """
    outcome = Republication()
    _check_partitions(settings, _due(settings, letters(), outcome))
    if publish and outcome.published:
        outcome = Republication()
        _publish(settings, _due(settings, letters(), outcome))
    return outcome


def transactions_of(letters: Iterable[DeadLetter]) -> Iterator[list[DeadLetter]]:
    """The letters in runs of at most ``_TOGETHER`` and, unless one alone is larger, ``_TOGETHER_BYTES``."""
    together: list[DeadLetter] = []
    size = 0
    for letter in letters:
        letter_bytes = len(letter.key or b"") + len(letter.value or b"") + len(encode_headers(letter.headers))
        if together and (len(together) == _TOGETHER or size + letter_bytes > _TOGETHER_BYTES):
            yield together
            together, size = [], 0
        together.append(letter)
        size += letter_bytes
    if together:
        yield together


def _due(settings: Settings, letters: Iterable[DeadLetter], outcome: Republication) -> Iterator[DeadLetter]:
    """The letters that go out again; they and all others are counted in ``outcome`` as they are read."""
    decoder = ReadingDecoder(settings.features)
    for letter in letters:
        if letter.topic != settings.kafka.topics.readings:
            outcome.foreign += 1
            continue
        if letter.whole_bytes is not None:
            outcome.still_rejected["cut"] += 1
            continue
        try:
            decoder.decode(letter.key, letter.value)
        except Rejected as rejected:
            outcome.still_rejected[rejected.reason] += 1
        else:
            outcome.published += 1
            yield letter


def _check_partitions(settings: Settings, letters: Iterable[DeadLetter]) -> None:
    """Refuses letters from partitions that the readings topic has not: it was made anew, with fewer."""
    topic = settings.kafka.topics.readings
    with make_admin(settings) as admin:
        partitions = partition_count(admin, topic)
    named: list[str] = []
    more = 0
    for letter in letters:
        if letter.partition < partitions:
            continue
        if len(named) < _NAMED:
            named.append(f"{letter.at_partition}:{letter.at_offset} (from partition {letter.partition})")
        else:
            more += 1
    if named:
        raise TopicError(
            f"dead letters came from partitions that topic {topic} does not have (it has {partitions}): "
            f"{', '.join(named)}{f' and {more:,} more' if more else ''}. Nothing was published. Republish the others "
            "by their positions, which `streamgru dlq list` shows. `streamgru dlq show POSITION` shows the content of "
            "a letter, so that you can send it to another partition"
        )


def _publish(settings: Settings, letters: Iterable[DeadLetter]) -> None:
    topic = settings.kafka.topics.readings
    with translate_errors(f"publishing dead letters to {topic} once more", settings):
        producer = make_producer(settings, transactional_id=f"{settings.forecaster.group_id}-dlq-replay")
        try:
            producer.init_transactions()
            appender = BatchAppender(producer)
            for together in transactions_of(letters):  # which reads them: no transaction is open meanwhile
                producer.begin_transaction()
                futures = _append(appender, topic, together)
                producer.flush()
                check_delivered(futures)
                producer.commit_transaction()
        finally:
            close_producer(producer)


def _append(appender: BatchAppender, topic: str, letters: Iterable[DeadLetter]) -> list[Any]:
    """The futures of the originals, each partition's in order. ``send`` would refuse a header whose value is null."""
    of_partition: dict[int, list[DeadLetter]] = {}
    for letter in letters:
        of_partition.setdefault(letter.partition, []).append(letter)
    futures = []
    for partition, group in of_partition.items():
        futures += appender.append(
            topic,
            partition,
            [letter.key for letter in group],
            [letter.value for letter in group],
            [encode_headers(letter.headers) for letter in group],
        )
    return futures
