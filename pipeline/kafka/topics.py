"""The topics: their planned settings, creating them, and checking existing ones.

There are four, and a fifth if the settings name a topic of flat forecasts. All have the same number of partitions,
because a sensor's forecasts, state and dead letters have the partition number of its readings. The number cannot be
changed later: sensors would move to other partitions, away from their state.
"""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, Final, Literal

import kafka.errors as client_errors
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType

from pipeline.errors import KafkaError, TopicError
from pipeline.kafka.clients import (
    DEAD_LETTER_ROOM_BYTES,
    OUTPUT_LIMIT_BYTES,
    make_admin,
    make_consumer,
    translate_errors,
)
from pipeline.settings import Settings

# A forecaster reads the changelog to its end before it starts, so the changelog has to stay near one record per sensor.
# Compaction skips the open segment, so segments are small, and closed after an hour.
STATE_SEGMENT_BYTES: Final = 16 * 1024 * 1024
STATE_SEGMENT_MS: Final = 3_600_000
STATE_DIRTY_RATIO: Final = 0.1
KEEP_FOR_EVER: Final = "-1"

# How a topic's setting must compare with the plan for the stream to work; None: any value works.
Need = Literal["equal", "at least", "at most"]


@dataclass(frozen=True)
class TopicSetting:
    """One setting of a topic, and whether the stream needs it."""

    name: str
    value: str
    need: Need | None = None

    @property
    def wanted(self) -> str:
        """The value for messages, with the comparison: ``at least 16777216``."""
        return self.value if self.need in (None, "equal") else f"{self.need} {self.value}"

    def is_violated_by(self, found: str | None) -> bool:
        """Whether the stream breaks if the topic has the value ``found``."""
        if self.need is None or found is None:
            return self.need is not None
        if self.need == "equal":
            return found != self.value
        return int(found) < int(self.value) if self.need == "at least" else int(found) > int(self.value)


@dataclass(frozen=True)
class TopicPlan:
    """The planned settings of a topic."""

    name: str
    purpose: str
    settings: tuple[TopicSetting, ...]


@dataclass(frozen=True)
class TopicStatus:
    """A topic as it is now. ``partitions`` is 0 if it does not exist."""

    plan: TopicPlan
    partitions: int
    records: int
    differences: tuple[str, ...]


@dataclass(frozen=True)
class _Topic:
    partitions: int
    replicas: int
    settings: Mapping[str, str | None]


def plan_topics(settings: Settings) -> list[TopicPlan]:
    """The plans of the topics by the settings."""
    kafka = settings.kafka
    names = kafka.topics
    retention = KEEP_FOR_EVER if kafka.retention_s is None else str(kafka.retention_s * 1_000)

    def log(retention_ms: str, limit: TopicSetting) -> tuple[TopicSetting, ...]:
        return (
            TopicSetting("cleanup.policy", "delete", "equal"),
            TopicSetting("retention.ms", retention_ms),
            TopicSetting("retention.bytes", KEEP_FOR_EVER),
            limit,
        )

    output_limit = TopicSetting("max.message.bytes", str(OUTPUT_LIMIT_BYTES), "at least")
    changelog = (
        TopicSetting("cleanup.policy", "compact", "equal"),
        TopicSetting("segment.bytes", str(STATE_SEGMENT_BYTES)),
        TopicSetting("segment.ms", str(STATE_SEGMENT_MS)),
        TopicSetting("min.cleanable.dirty.ratio", str(STATE_DIRTY_RATIO)),
        output_limit,
    )
    # A reading above this limit would not fit into a dead letter.
    reading_limit = TopicSetting("max.message.bytes", str(kafka.max_reading_bytes), "at most")
    letter_limit = TopicSetting("max.message.bytes", str(kafka.max_reading_bytes + DEAD_LETTER_ROOM_BYTES), "at least")
    plans = [
        TopicPlan(names.readings, "readings", log(retention, reading_limit)),
        TopicPlan(names.forecasts, "forecasts", log(retention, output_limit)),
        TopicPlan(names.state, "states", changelog),
        TopicPlan(names.dead_letters, "dead letters", log(KEEP_FOR_EVER, letter_limit)),
    ]
    if names.flat_forecasts is not None:
        plans.append(TopicPlan(names.flat_forecasts, "flat forecasts", log(retention, output_limit)))
    return plans


def ensure_topics(settings: Settings, *, alter: bool = False) -> list[str]:
    """Create the missing topics, and return a line for each topic that says what was done; may be repeated.

    Args:
        settings: the plan of the topics.
        alter: change the settings of existing topics that differ. A partition count never changes.

    Raises:
        TopicError: an existing topic differs, or a topic could not be created. Names every difference; the missing
            topics are created by then.
        BrokerUnreachable: no broker answers.
    """
    plans = plan_topics(settings)
    report = []
    with make_admin(settings) as admin, translate_errors("creating the topics", settings):
        found = _find(admin, plans)
        missing = [plan for plan in plans if plan.name not in found]
        if missing and _create(admin, settings, missing):
            found = _find(admin, plans)
        if alter:
            report = _alter(admin, plans, found)
            found = _find(admin, plans)
    _raise_on_differences(settings, plans, found)
    return report + [
        f"{plan.name}: {'created' if plan in missing else 'exists'}, {settings.kafka.partitions} partitions"
        for plan in plans
    ]


def check_topics(settings: Settings, admin: KafkaAdminClient | None = None) -> None:
    """Check that the stream can work with the topics; harmless differences, such as in retention, are ignored.

    Args:
        settings: the plan of the topics.
        admin: by default a new client.

    Raises:
        TopicError: topics do not exist, or differ so that records would be lost or misplaced; names every difference.
        BrokerUnreachable: no broker answers.
    """
    plans = plan_topics(settings)
    with ExitStack() as opened:
        admin = admin or opened.enter_context(make_admin(settings))
        with translate_errors("checking the topics", settings):
            found = _find(admin, plans)
    missing = [plan.name for plan in plans if plan.name not in found]
    if missing:
        plural = "s do" if len(missing) > 1 else " does"
        raise TopicError(
            f"topic{plural} not exist: {', '.join(missing)}; create the topics with `streamgru topics create`"
        )
    _raise_on_differences(settings, plans, found, only_needed=True)


def find_topic_id(settings: Settings, topic: str) -> str:
    """The brokers' id of a topic; a recreated topic of the same name has another id.

    Raises:
        BrokerUnreachable: no broker answers.
    """
    with make_admin(settings) as admin, translate_errors(f"describing topic {topic}", settings):
        [found] = admin.describe_topics([topic])
        if found["error_code"]:
            raise client_errors.for_code(found["error_code"])(f"topic {topic}")
    return str(found["topic_id"])


def topic_statuses(settings: Settings) -> list[TopicStatus]:
    """The topics as they are now; the number of records of a topic is its number of offsets.

    Raises:
        BrokerUnreachable: no broker answers.
    """
    plans = plan_topics(settings)
    with make_admin(settings) as admin, translate_errors("describing the topics", settings):
        found = _find(admin, plans)
    statuses = []
    with closing(make_consumer(settings)) as consumer, translate_errors("counting the topics' records", settings):
        for plan in plans:
            topic = found.get(plan.name)
            records = _count_records(consumer, plan.name, topic.partitions) if topic else 0
            differences = tuple(_differences(settings, plan, topic))
            statuses.append(TopicStatus(plan, topic.partitions if topic else 0, records, differences))
    return statuses


def _count_records(consumer: KafkaConsumer, topic: str, partitions: int) -> int:
    where = [TopicPartition(topic, partition) for partition in range(partitions)]
    first, end = consumer.beginning_offsets(where), consumer.end_offsets(where)
    return sum(end[each] - first[each] for each in where)


def _find(admin: KafkaAdminClient, plans: Iterable[TopicPlan]) -> dict[str, _Topic]:
    """The topics that exist."""
    described: dict[str, dict[str, Any]] = {
        topic["name"]: topic
        for topic in admin.describe_topics([plan.name for plan in plans])
        if topic["error_code"] != client_errors.UnknownTopicOrPartitionError.errno
    }
    for topic in described.values():
        if topic["error_code"]:
            raise client_errors.for_code(topic["error_code"])(f"topic {topic['name']}")
    if not described:
        return {}
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in described]
    configs = admin.describe_configs(resources, config_filter="all")["topic"]
    for name in described:
        if not configs.get(name):  # the client hides the reason
            raise KafkaError(
                f"the brokers return no configuration of topic {name} to this login; grant it DescribeConfigs on the "
                "topics, besides Describe (or, if a broker has just restarted, try again in a moment)"
            )
    return {
        name: _Topic(
            partitions=len(topic["partitions"]),
            replicas=min(len(partition["replica_nodes"]) for partition in topic["partitions"]),
            settings={key: config["value"] for key, config in configs[name].items()},
        )
        for name, topic in described.items()
    }


def _create(admin: KafkaAdminClient, settings: Settings, plans: list[TopicPlan]) -> bool:
    """Create topics; return whether another process had created any of them, perhaps with other settings."""
    wanted = {
        plan.name: {
            "num_partitions": settings.kafka.partitions,
            "replication_factor": settings.kafka.replication_factor,
            "configs": {setting.name: setting.value for setting in plan.settings},
        }
        for plan in plans
    }
    existed = False
    answer = admin.create_topics(wanted, raise_errors=False)
    for topic in answer["topics"]:
        error = client_errors.for_code(topic["error_code"])
        existed |= error is client_errors.TopicAlreadyExistsError
        if error not in (client_errors.NoError, client_errors.TopicAlreadyExistsError):
            reason = topic.get("error_message") or error.__name__
            raise TopicError(
                f"topic {topic['name']} could not be created: {reason}; check kafka.topics, kafka.partitions and "
                "kafka.replication_factor in the settings"
            )
    admin.wait_for_topics(list(wanted))
    return existed


def _alter(admin: KafkaAdminClient, plans: Iterable[TopicPlan], found: Mapping[str, _Topic]) -> list[str]:
    lines = []
    for plan in plans:
        if plan.name not in found:
            continue
        changes = {
            setting.name: setting.value
            for setting in plan.settings
            if found[plan.name].settings.get(setting.name) != setting.value
        }
        if changes:
            answer = admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, plan.name, changes)])
            result = answer["topic"][plan.name]
            if result != "OK":
                raise TopicError(f"the settings of topic {plan.name} could not be changed: {result}")
            lines.append(f"{plan.name}: set " + ", ".join(f"{name}={value}" for name, value in changes.items()))
    return lines


def _differences(settings: Settings, plan: TopicPlan, found: _Topic | None, only_needed: bool = False) -> list[str]:
    """A line for each difference of an existing topic from its plan."""
    if found is None:
        return []
    lines = []
    kafka = settings.kafka
    if found.partitions != kafka.partitions:
        lines.append(
            f"{plan.name}: has {found.partitions} partitions, and the settings say {kafka.partitions}; set "
            f"kafka.partitions = {found.partitions}, or name another topic in kafka.topics"
        )
    if found.replicas < kafka.replication_factor and not only_needed:
        lines.append(
            f"{plan.name}: has {found.replicas} replicas, and the settings say {kafka.replication_factor}; reassign "
            f"its partitions, or set kafka.replication_factor = {found.replicas}"
        )
    for setting in plan.settings:
        value = found.settings.get(setting.name)
        if setting.is_violated_by(value) if only_needed else value != setting.value:
            lines.append(f"{plan.name}: {setting.name} is {value}, and should be {setting.wanted}")
    return lines


def _raise_on_differences(
    settings: Settings, plans: Iterable[TopicPlan], found: Mapping[str, _Topic], *, only_needed: bool = False
) -> None:
    lines = [line for plan in plans for line in _differences(settings, plan, found.get(plan.name), only_needed)]
    if lines:
        raise TopicError(
            "\n  ".join(["existing topics differ from the settings:", *lines])
            + "\n`streamgru topics create --alter` changes all but partitions and replicas; or change the settings"
        )
