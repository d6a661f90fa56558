"""The only module that makes Kafka clients, with every setting of theirs that this project relies on.

Consumers read committed records only and never commit by themselves; producers are idempotent. Clients are made by
calling, never by importing. ``translate_errors`` turns the client's errors into those of ``pipeline.errors``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import kafka.errors as client_errors
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer

from pipeline.errors import BrokerUnreachable, Fenced, KafkaError, TopicError
from pipeline.kafka.connection_diagnosis import diagnose_connection
from pipeline.kafka.patches import make_or_clean_up, patch_consumer, patch_producer, stop_sender
from pipeline.settings import Settings
from pipeline.settings_sections import KafkaSettings

# How long making a client waits for the first broker to answer: a local one takes 0.1 s, and a person waits no longer.
BOOTSTRAP_TIMEOUT_MS: Final = 10_000
# The longest between two tries to reach a broker that is away: at the client's default of 30 s members would come back
# to their group one after another, long after the broker has, and be put out of it meanwhile.
RECONNECT_MS: Final = 1_000
# The client sleeps this long whenever the coordinator is still ending the previous transaction, that is at every commit
# of a busy forecaster: at the default of 100 a commit takes 106 ms, at 5 it takes 4.8 ms (1 gains 1.6 ms, and spins).
TRANSACTION_BACKOFF_MS: Final = 5
# Of the session timeout. Members learn of a rebalance by the answer to a heartbeat: a third, which is the most that the
# client takes, would be up to 2 s more without forecasts whenever a forecaster is killed.
HEARTBEAT_SHARE: Final = 1 / 6
# Bytes of a broker batch. Large ones save requests and cost no latency: whole micro-batches are appended at once.
BATCH_BYTES: Final = 256 * 1024
# What forecasts and states may measure: 10,000 steps of several quantiles and targets fit.
OUTPUT_LIMIT_BYTES: Final = 16 * 1024 * 1024
# A dead letter is the reading with its headers and, behind them, messages.dead_letter of 1.5 KB at most.
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
    """A consumer of committed records that commits nothing by itself and decodes nothing.

    ``overrides`` are kafka-python's own options. Bytes are decoded by the caller: an exception in a
    ``value_deserializer`` would strike before the record could be set aside.

    Raises:
        BrokerUnreachable: no broker answers.
    """
    forecaster = settings.forecaster
    options = {
        "group_id": group_id,
        "client_id": "streamgru-consumer",
        # Also what makes the broker wait for offsets of a transaction that is still open.
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
    """An idempotent producer, transactional where an id is given (the caller calls ``init_transactions``).

    A transactional producer takes the forecaster's timeouts, so that a successor never waits for long. Any other takes
    the client's, since publishing a file flat out may keep batches queued for longer than those allow.

    Raises:
        BrokerUnreachable: no broker answers.
    """
    forecaster = settings.forecaster
    options: dict[str, Any] = {
        "client_id": "streamgru-producer",
        "acks": "all",
        "enable_idempotence": True,
        "metrics_enabled": False,  # the client's own counts, of every batch and request, which nobody here reads
        # As many records a second as without (0.3 µs more a forecast here, less for the broker), and half the bytes.
        "compression_type": "lz4",
        # A batch may not be larger than what the topic takes, however small a reading the settings allow.
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
            "retry_backoff_ms": TRANSACTION_BACKOFF_MS,
        }
    with _connecting("connecting a producer", settings):
        producer = KafkaProducer(**_connection(settings.kafka), **(options | overrides))
    return patch_producer(producer)


def close_producer(producer: KafkaProducer, timeout_s: float = 1.0) -> None:
    """Let go of a producer, its thread and its connections; what cannot be sent in time is dropped without a word.

    Check the futures before: they tell.
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
    with _connecting("connecting to look at the topics", settings):
        admin: KafkaAdminClient = make_or_clean_up(KafkaAdminClient, _connection(settings.kafka) | options)
    return admin


def partition_count(client: KafkaConsumer | KafkaAdminClient, topic: str) -> int:
    """How many partitions a topic has, asked of the broker.

    Raises:
        TopicError: there is no such topic.
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
def translate_errors(what: str, settings: Settings | None = None) -> Iterator[None]:
    """Turns kafka-python's errors into ours. ``what`` says what is being done: "creating the topics".

    Raises:
        BrokerUnreachable: no broker answers; names the address where the settings are given.
        TopicError: a topic is missing or not allowed.
        Fenced: a successor with the same transactional id has taken over.
        KafkaError: anything else that the broker or the client refused.
    """
    try:
        yield
    except _UNREACHABLE as error:
        address = f" at {settings.kafka.bootstrap_servers}" if settings else ""
        raise BrokerUnreachable(
            f"no Kafka broker answers{address} ({what}: {error}); start the local stack with `streamgru up`, or set "
            "STREAMGRU_KAFKA__BOOTSTRAP_SERVERS to your brokers' host:port (and check any credentials)"
        ) from error
    except _FENCED as error:
        raise Fenced(f"another process has taken over the same transactional id ({what}: {error})") from error
    except _REFUSED as error:
        address = f" at {settings.kafka.bootstrap_servers}" if settings else ""
        raise KafkaError(
            f"the Kafka brokers{address} refuse this login, or what it may do ({what}: {error}); check "
            "kafka.sasl_mechanism, kafka.sasl_username and kafka.sasl_password, and the user's rights"
        ) from error
    except client_errors.UnknownTopicOrPartitionError as error:
        raise TopicError(f"{_missing('a topic')} ({what})") from error
    except client_errors.KafkaError as error:
        raise KafkaError(f"Kafka failed {what}: {error}") from error


@contextmanager
def _connecting(what: str, settings: Settings) -> Iterator[None]:
    """``translate_errors``, and where an address answers that no broker answers at, a word on why."""
    try:
        with translate_errors(what, settings):
            yield
    except BrokerUnreachable as error:
        why = diagnose_connection(settings.kafka)
        if not why:
            raise
        raise BrokerUnreachable(f"no Kafka broker can be talked to ({what}): {why}") from error


def _missing(topic: str) -> str:
    return f"{topic} does not exist; create the topics with `streamgru topics create`"


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1_000))


def _connection(kafka: KafkaSettings) -> dict[str, Any]:
    """What all clients share: address and credentials."""
    servers = [server.strip() for server in kafka.bootstrap_servers.split(",") if server.strip()]
    for server in servers:
        _, colon, port = server.rpartition(":")
        if not colon or not port.isdigit():
            raise KafkaError(f"kafka.bootstrap_servers: {server!r} is not host:port")
    options: dict[str, Any] = {
        "bootstrap_servers": servers,
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
        if path is None:
            continue
        if not path.is_file():
            raise KafkaError(f"kafka.{name}: there is no file {path}")
        options[name] = str(path)
    return options
