"""The only module that makes Kafka clients, with every client option that this project relies on.

Consumers read committed records only and never commit by themselves. Producers are idempotent. ``translate_errors``
converts the client's errors to those of ``pipeline.errors``.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import kafka.errors as client_errors
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer

from pipeline.errors import BrokerUnreachable, Fenced, KafkaError, TopicError
from pipeline.kafka.connection_diagnosis import diagnose_connection
from pipeline.kafka.patches import make_or_clean_up, patch_consumer, patch_producer, stop_sender
from pipeline.settings import Settings
from pipeline.settings.sections import KafkaSettings

# How long a new client waits for the first broker; a local broker answers within 100 ms.
BOOTSTRAP_TIMEOUT_MS: Final = 10_000
# The longest wait between two attempts to reach a broker. At the client's default of 30 s, members return to their
# group long after the broker and one after another, and the group drops them before that.
RECONNECT_MS: Final = 1_000
# How often a transactional producer sends a batch again or asks for metadata while brokers are away. The wait between
# two attempts of a transactional request is shorter, see ``patches.TRANSACTION_RETRY_MS``.
TRANSACTION_BACKOFF_MS: Final = 5
# Share of the session timeout. Members learn of a rebalance from the answer to a heartbeat. At a third, the client's
# maximum, forecasts would stop for up to 2 s longer after a forecaster is killed.
HEARTBEAT_SHARE: Final = 1 / 6
# Bytes of a broker batch. Large batches save requests and add no latency: whole micro-batches are appended at once.
BATCH_BYTES: Final = 256 * 1024
# The same for the batches of a transaction, before compression; consumers fetch 1 MiB of a partition by default. With
# 256 KiB and forecasts of 24 steps, a forecaster takes 8 % more CPU time per reading in a backlog, and the broker 30 %.
TRANSACTION_BATCH_BYTES: Final = 1_000_000
# Largest forecast or state; 10,000 steps of several quantiles and targets fit.
OUTPUT_LIMIT_BYTES: Final = 16 * 1024 * 1024
# A dead letter is the record with its headers and at most 1.5 KB of headers from ``dead_letter_form``.
DEAD_LETTER_ROOM_BYTES: Final = 16 * 1024

_UNREACHABLE: Final = (
    client_errors.KafkaConnectionError,
    client_errors.KafkaTimeoutError,
    client_errors.NodeNotReadyError,
    client_errors.NetworkExceptionError,
    client_errors.BrokerNotAvailableError,
    client_errors.RequestTimedOutError,
    client_errors.MetadataEmptyBrokerList,
)
_FENCED: Final = (
    client_errors.ProducerFencedError,
    client_errors.InvalidProducerEpochError,
    client_errors.TransactionCoordinatorFencedError,
    client_errors.FencedInstanceIdError,
)
_REFUSED: Final = (
    client_errors.SaslAuthenticationFailedError,
    client_errors.UnsupportedSaslMechanismError,
    client_errors.AuthorizationError,
)


def make_consumer(settings: Settings, *, group_id: str | None = None, **overrides: Any) -> KafkaConsumer:
    """A consumer of committed records that neither commits by itself nor decodes.

    ``overrides`` are kafka-python's own options. The caller decodes the bytes: if a ``value_deserializer`` raised, the
    caller would not have the record for a dead letter.

    Raises:
        BrokerUnreachable: no broker answers.
    """
    forecaster = settings.forecaster
    options = {
        "group_id": group_id,
        "client_id": "streamgru-consumer",
        # It also makes the broker wait for committed offsets that an open transaction is about to change.
        "isolation_level": "read_committed",
        "enable_auto_commit": False,
        "metrics_enabled": False,
        "auto_offset_reset": forecaster.start,
        "max_poll_records": forecaster.max_batch_readings,
        "session_timeout_ms": _milliseconds(forecaster.session_timeout_s),
        "heartbeat_interval_ms": _milliseconds(forecaster.session_timeout_s * HEARTBEAT_SHARE),
        "max_poll_interval_ms": _milliseconds(forecaster.poll_interval_s),
        "request_timeout_ms": _milliseconds(forecaster.request_timeout_s),
        "fetch_max_wait_ms": _milliseconds(min(0.5, forecaster.request_timeout_s / 2)),
    }
    with _connecting("connecting a consumer", settings):
        consumer: KafkaConsumer = make_or_clean_up(KafkaConsumer, _connection(settings.kafka) | options | overrides)
    return patch_consumer(consumer)


def make_producer(settings: Settings, *, transactional_id: str | None = None, **overrides: Any) -> KafkaProducer:
    """An idempotent producer, transactional if an id is given (the caller calls ``init_transactions``).

    A transactional producer has the forecaster's timeouts, so that a successor never waits long. Other producers keep
    the client's timeouts, because publishing a file at full speed may keep batches queued for longer.

    Raises:
        BrokerUnreachable: no broker answers.
    """
    forecaster = settings.forecaster
    options: dict[str, Any] = {
        "client_id": "streamgru-producer",
        "acks": "all",
        "enable_idempotence": True,
        "metrics_enabled": False,  # the client's own metrics, which this project does not read
        # Compression halves the bytes at equal throughput: it costs 0.3 µs per forecast here and saves the broker work.
        "compression_type": "lz4",
        # A batch larger than the topic's limit is refused, and max_reading_bytes may be small.
        "batch_size": min(BATCH_BYTES, settings.kafka.max_reading_bytes),
        "max_request_size": max(OUTPUT_LIMIT_BYTES, settings.kafka.max_reading_bytes + DEAD_LETTER_ROOM_BYTES),
        "retry_backoff_ms": 20,
    }
    if transactional_id is not None:
        options |= {
            "transactional_id": transactional_id,
            "client_id": f"streamgru-{transactional_id}",
            "request_timeout_ms": _milliseconds(forecaster.request_timeout_s),
            "delivery_timeout_ms": _milliseconds(forecaster.delivery_timeout_s),
            "transaction_timeout_ms": _milliseconds(forecaster.transaction_timeout_s),
            "max_block_ms": _milliseconds(forecaster.commit_timeout_s),
            "batch_size": min(TRANSACTION_BATCH_BYTES, settings.kafka.max_reading_bytes),
            "retry_backoff_ms": TRANSACTION_BACKOFF_MS,
        }
    with _connecting("connecting a producer", settings):
        producer = KafkaProducer(**_connection(settings.kafka), **(options | overrides))
    return patch_producer(producer)


def look_up_topics(producer: KafkaProducer, topics: Iterable[str]) -> None:
    """Let a new producer ask for the partitions of all these topics in one request, in the background.

    Private: ``KafkaProducer._metadata.set_topics``.
    Why: the public API asks for one topic at a time, and the client waits 100 ms between two such requests.
    Without it: the first transaction waits 100 ms for each further topic.
    Tested with: kafka-python >=3.0.12,<3.1.
    Goes when: the client looks up several topics in one call.
    """
    producer._metadata.set_topics(topics)


def close_producer(producer: KafkaProducer, timeout_s: float = 1.0) -> None:
    """Close a producer, its thread and its connections.

    Records that are not sent in time are discarded without an error, so check their futures first.
    """
    try:
        producer.close(timeout=timeout_s)
    except client_errors.KafkaError:
        stop_sender(producer)


def make_admin(settings: Settings, **overrides: Any) -> KafkaAdminClient:
    """A client to create and describe topics.

    Raises:
        BrokerUnreachable: no broker answers.
    """
    options = {"client_id": "streamgru-admin"} | overrides
    with _connecting("connecting an admin client", settings):
        admin: KafkaAdminClient = make_or_clean_up(KafkaAdminClient, _connection(settings.kafka) | options)
    return admin


def partition_count(client: KafkaConsumer | KafkaAdminClient, topic: str) -> int:
    """The number of partitions of a topic, from the brokers.

    Raises:
        TopicError: the topic does not exist.
        BrokerUnreachable: no broker answers.
    """
    with translate_errors(f"looking up the partitions of topic {topic}"):
        if isinstance(client, KafkaConsumer):
            count = len(client.partitions_for_topic(topic))
        else:
            (found,) = client.describe_topics([topic])
            count = len(found["partitions"])
    if not count:
        raise TopicError(_missing(f"topic {topic}"))
    return count


@contextmanager
def translate_errors(doing: str, settings: Settings | None = None) -> Iterator[None]:
    """Convert kafka-python's errors to ours. ``doing`` is a phrase such as "creating the topics".

    Raises:
        BrokerUnreachable: no broker answers; names the address if the settings are given.
        TopicError: a topic does not exist.
        Fenced: a successor with the same transactional id has taken over.
        KafkaError: any other error of a broker or the client.
    """
    address = f" at {settings.kafka.bootstrap_servers}" if settings else ""
    try:
        yield
    except _UNREACHABLE as error:
        raise BrokerUnreachable(
            f"no Kafka broker answers{address} ({doing}: {error}); start the local stack with `streamgru up`, or set "
            "STREAMGRU_KAFKA__BOOTSTRAP_SERVERS to your brokers' host:port (and check any credentials)"
        ) from error
    except _FENCED as error:
        raise Fenced(f"another process has taken over the same transactional id ({doing}: {error})") from error
    except _REFUSED as error:
        raise KafkaError(
            f"the Kafka brokers{address} refuse this login or deny it a right ({doing}: {error}); check "
            "kafka.sasl_mechanism, kafka.sasl_username and kafka.sasl_password, and the user's rights"
        ) from error
    except client_errors.UnknownTopicOrPartitionError as error:
        raise TopicError(f"{_missing('a topic')} ({doing})") from error
    except client_errors.KafkaError as error:
        raise KafkaError(f"Kafka failed while {doing}: {error}") from error


@contextmanager
def _connecting(doing: str, settings: Settings) -> Iterator[None]:
    """``translate_errors``, with a diagnosis if an address accepts connections but no broker answers."""
    try:
        with translate_errors(doing, settings):
            yield
    except BrokerUnreachable as error:
        if diagnosis := diagnose_connection(settings.kafka):
            raise BrokerUnreachable(f"no Kafka broker is usable ({doing}): {diagnosis}") from error
        raise


def _missing(topic: str) -> str:
    return f"{topic} does not exist; create the topics with `streamgru topics create`"


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1_000))


def bootstrap_addresses(kafka: KafkaSettings) -> list[str]:
    """The addresses in ``kafka.bootstrap_servers``, each ``host:port``.

    Raises:
        KafkaError: an address has another form.
    """
    servers = [server.strip() for server in kafka.bootstrap_servers.split(",") if server.strip()]
    for server in servers:
        _, colon, port = server.rpartition(":")
        if not colon or not port.isdigit():
            raise KafkaError(f"kafka.bootstrap_servers: {server!r} is not host:port")
    return servers


def _connection(kafka: KafkaSettings) -> dict[str, Any]:
    """The options of all clients: addresses and credentials."""
    options: dict[str, Any] = {
        "bootstrap_servers": bootstrap_addresses(kafka),
        "bootstrap_timeout_ms": BOOTSTRAP_TIMEOUT_MS,
        "reconnect_backoff_max_ms": RECONNECT_MS,
        "security_protocol": kafka.security_protocol,
        "sasl_mechanism": kafka.sasl_mechanism,
        "sasl_plain_username": kafka.sasl_username,
        "sasl_plain_password": kafka.sasl_password,
    }
    for name, path in (
        ("ssl_cafile", kafka.ssl_cafile),
        ("ssl_certfile", kafka.ssl_certfile),
        ("ssl_keyfile", kafka.ssl_keyfile),
    ):
        if path is not None:
            if not path.is_file():
                raise KafkaError(f"kafka.{name}: there is no file {path}")
            options[name] = str(path)
    return options
