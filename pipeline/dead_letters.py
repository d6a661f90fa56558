"""Dead letters: records of the readings topic that did not decode. Reads them, and republishes the originals."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import numpy as np

from pipeline.dead_letter_form import BATCH_LAST_OFFSET as BATCH_LAST_OFFSET
from pipeline.dead_letter_form import IMPLAUSIBLE
from pipeline.dead_letter_form import DeadLetter as DeadLetter  # part of this module's interface
from pipeline.errors import KafkaError, TopicError
from pipeline.kafka.batch_producer import BatchAppender, check_delivered, encode_headers
from pipeline.kafka.clients import close_producer, make_admin, make_producer, partition_count, translate_errors
from pipeline.kafka.topic_reader import read_topic, topic_ends, topic_starts
from pipeline.messages import Rejected
from pipeline.outlook_messages import OutlookDecoder, decode_outlook, make_outlook_decoder
from pipeline.reading_times import find_implausible_now
from pipeline.readings_format.decoder import RecordDecoder, make_decoder
from pipeline.sensor_limit import TOO_MANY_SENSORS, limit_in
from pipeline.settings import Settings

_TOGETHER: Final = 1_000  # letters per transaction; with more, the transaction could time out
_TOGETHER_BYTES: Final = 2 * 1024 * 1024  # per transaction; at 1 MB/s sent within forecaster.delivery_timeout_s
_NAMED: Final = 10  # letters named in an error message


def read_letters(settings: Settings) -> Iterator[DeadLetter]:
    """All dead letters, in order within each partition.

    Raises:
        KafkaError: no broker answers, the topic is missing, or the records stop coming.
    """
    for record in read_topic(settings, settings.kafka.topics.dead_letters, {}, None):
        letter = DeadLetter.of(record)
        if letter is not None:
            yield letter


def read_letter(settings: Settings, partition: int, offset: int) -> DeadLetter:
    """The dead letter at a position of the dead letter topic.

    Raises:
        KafkaError: the position holds no dead letter, or no broker answers.
    """
    topic = settings.kafka.topics.dead_letters
    start, end = topic_starts(settings, topic).get(partition, 0), topic_ends(settings, topic).get(partition, 0)
    if start <= offset < end:
        for record in read_topic(settings, topic, {partition: offset}, {partition: offset + 1}):
            letter = DeadLetter.of(record)
            if letter is not None:
                return letter
    raise KafkaError(
        f"there is no dead letter at offset {offset} of {topic}, partition {partition}; `streamgru dlq list` shows them"
    )


@dataclass
class Republication:
    """The numbers of dead letters that ``republish_letters`` published or left."""

    published: int = 0
    still_rejected: Counter[str] = field(default_factory=Counter)  # reason under the present settings -> letters
    foreign: int = 0  # letters from a topic other than the settings' readings topic


def republish_letters(
    settings: Settings, letters: Callable[[], Iterable[DeadLetter]], *, publish: bool = True
) -> Republication:
    """Publish originals on the readings topic again, if they are readings or outlooks under the present settings.

    Each original goes to its old partition, with its own key, value and headers. A second run is harmless: its readings
    count as late or as duplicates. Letters are published in transactions, see ``transactions_of``; after a crash run it
    again.

    Args:
        letters: returns the dead letters to republish; called again after all partitions were checked.
        publish: False only counts.

    Raises:
        TopicError: letters came from partitions that the topic no longer has; nothing was published.
        KafkaError: no broker answers, or it refused a record.
        Fenced: another process has started to republish; it continues, and this one must stop.
    """
    outcome = Republication()
    _check_partitions(settings, _due(settings, letters(), outcome))
    if publish and outcome.published:
        outcome = Republication()
        _publish(settings, _due(settings, letters(), outcome))
    return outcome


def transactions_of(letters: Iterable[DeadLetter]) -> Iterator[list[DeadLetter]]:
    """Split letters into lists of at most ``_TOGETHER`` and ``_TOGETHER_BYTES``; a larger letter comes alone."""
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
    """The letters to republish. Counts each letter in ``outcome``, republished or not."""
    decoder, outlook_decoder = make_decoder(settings), make_outlook_decoder(settings)
    for letter in letters:
        if letter.topic != settings.kafka.topics.readings:
            outcome.foreign += 1
            continue
        if letter.last_offset is not None:
            outcome.still_rejected[letter.reason] += 1
            continue
        if letter.reason == TOO_MANY_SENSORS and not _is_limit_raised(settings, letter):
            outcome.still_rejected[letter.reason] += 1
            continue
        if letter.whole_bytes is not None:
            outcome.still_rejected["cut"] += 1
            continue
        try:
            if settings.readings.time == "@record_timestamp":
                # A published record gets a timestamp of its own, so it would become another reading.
                raise Rejected("its time was the timestamp of the original record")
            timestamp_us = _time_of(decoder, outlook_decoder, letter)
        except Rejected as rejected:
            outcome.still_rejected[rejected.reason] += 1
            continue
        if len(find_implausible_now(np.array([timestamp_us]), settings)[0]):
            outcome.still_rejected[IMPLAUSIBLE] += 1
        else:
            outcome.published += 1
            yield letter


def _time_of(decoder: RecordDecoder, outlook_decoder: OutlookDecoder | None, letter: DeadLetter) -> int:
    """The time of the reading in a letter, or the time of issue of the outlook in it.

    Raises:
        Rejected: it is still neither of the two.
    """
    try:
        return decoder.decode(letter.key, letter.value, letter.headers).timestamp_us
    except Rejected as rejected:
        found = decode_outlook(outlook_decoder, letter, rejected)
        if isinstance(found, Rejected):
            raise found from None
        return found.issued_us


def _is_limit_raised(settings: Settings, letter: DeadLetter) -> bool:
    """Whether the limit of sensors was removed, or is higher than the one that the letter names."""
    limit, before = settings.forecaster.max_sensors_per_partition, limit_in(letter.detail)
    return limit is None or before is None or limit > before


def _check_partitions(settings: Settings, letters: Iterable[DeadLetter]) -> None:
    """Refuse letters from partitions that the readings topic lacks: it was recreated with fewer partitions."""
    topic = settings.kafka.topics.readings
    with make_admin(settings) as admin:
        partitions = partition_count(admin, topic)
    misplaced = (letter for letter in letters if letter.partition >= partitions)
    named = [
        f"{letter.at_partition}:{letter.at_offset} (from partition {letter.partition})"
        for letter in islice(misplaced, _NAMED)
    ]
    if named:
        others = sum(1 for _ in misplaced)
        more = f" and {others:,} more" if others else ""
        raise TopicError(
            f"dead letters came from partitions that topic {topic} does not have (it has {partitions}): "
            f"{', '.join(named)}{more}. Nothing was published. Republish the remaining dead letters by their "
            "positions, which `streamgru dlq list` shows. `streamgru dlq show POSITION` shows a dead letter's content, "
            "so that you can send it to another partition"
        )


def _publish(settings: Settings, letters: Iterable[DeadLetter]) -> None:
    topic = settings.kafka.topics.readings
    with translate_errors(f"republishing dead letters to {topic}", settings):
        producer = make_producer(settings, transactional_id=f"{settings.forecaster.group_id}-dlq-replay")
        try:
            producer.init_transactions()
            appender = BatchAppender(producer)
            for together in transactions_of(letters):  # the loop reads letters between transactions
                producer.begin_transaction()
                futures = _append(appender, topic, together)
                producer.flush()
                check_delivered(futures)
                producer.commit_transaction()
        finally:
            close_producer(producer)


def _append(appender: BatchAppender, topic: str, letters: Iterable[DeadLetter]) -> list[Any]:
    """The futures of the originals. ``KafkaProducer.send`` would refuse a header whose value is null."""
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
            wake=False,
        )
    return futures
