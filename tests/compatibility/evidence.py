"""Faults in the topics, counts and logs that an upgrade leaves."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

from tests.compatibility.golden import NEW_EXPERTS, NEW_POSITION_FIELDS, without_new
from tests.compatibility.live import Sent

READ_S: Final = 60.0  # seconds to read a topic to its end
# Counts of a forecaster that must stay at zero.
ZERO: Final = ("rebuilt_sensors", "cold_sensors", "held_lost", "quarantined_states")
# Parts of log lines about states that did not come from the changelog, and about crashes.
REBUILT_LINE: Final = "rebuilt by replaying"
BAD_LINES: Final = (REBUILT_LINE, "start cold", "Traceback")


class Topics:
    """Reads the topics with plain clients, without the product's code."""

    def __init__(self, servers: str, group: str, partitions: int) -> None:
        self._servers = servers
        self._group = group
        self._partitions = partitions

    def behind(self) -> int:
        """How many readings the group has still to process."""
        admin = KafkaAdminClient(bootstrap_servers=self._servers)
        consumer = KafkaConsumer(bootstrap_servers=self._servers)
        try:
            ends = consumer.end_offsets(self._all("readings"))
            committed = admin.list_group_offsets([self._group])[self._group]
        finally:
            admin.close()
            consumer.close()
        reached = {
            at: int(found.metadata.removeprefix("reached=")) for at, found in committed.items() if found.offset >= 0
        }
        return sum(end - reached.get(at, 0) for at, end in ends.items())

    def read(self, topic: str) -> list[Any]:
        """Every committed record."""
        consumer = KafkaConsumer(
            bootstrap_servers=self._servers, isolation_level="read_committed", enable_auto_commit=False
        )
        where = self._all(topic)
        consumer.assign(where)
        consumer.seek_to_beginning(*where)
        ends = consumer.end_offsets(where)
        found: list[Any] = []
        deadline = time.monotonic() + READ_S
        while any(consumer.position(at) < end for at, end in ends.items()):
            assert time.monotonic() < deadline, f"{topic} was not read to its end"
            for records in consumer.poll(timeout_ms=100, max_records=5_000).values():
                found.extend(records)
        consumer.close()
        return found

    def _all(self, topic: str) -> list[Any]:
        return [TopicPartition(topic, number) for number in range(self._partitions)]


def forecast_faults(forecasts: Iterable[Mapping[str, Any]], expected: Iterable[Sent]) -> list[str]:
    """Faults if the expected readings do not have exactly one forecast each."""
    found = Counter((forecast["sensor_id"], forecast["issued_at"]) for forecast in forecasts)
    wanted = Counter(dict.fromkeys(expected, 1))
    faults = []
    if missing := wanted - found:
        faults.append(f"{missing.total()} readings have no forecast, for example {next(iter(missing))}")
    if surplus := found - wanted:
        faults.append(f"{surplus.total()} forecasts too many, for example of {next(iter(surplus))}")
    return faults


def form_faults(topics: Topics, *, other_rule: bool) -> list[str]:
    """Faults if the two commits wrote records of different forms, or any dead letters; the new names are expected.

    With another rule of adaptation, states may have another fingerprint and length.
    """
    forms: dict[str, set[Any]] = {}
    for record in topics.read("forecasts"):
        names = tuple(name for name, _ in without_new(record.headers))
        forms.setdefault("headers of forecasts", set()).add(names)
        fields = (path for path in paths(json.loads(record.value)) if path.rpartition(".")[2] not in NEW_EXPERTS)
        forms.setdefault("fields of forecasts", set()).add(tuple(fields))
    for record in topics.read("forecaster-state"):
        if record.key == b"\xffposition":
            names = tuple(path for path in paths(json.loads(record.value)) if path not in NEW_POSITION_FIELDS)
            forms.setdefault("fields of positions", set()).add(names)
        else:  # magic, schema, fingerprint of the settings
            head = (record.value[:6],) if other_rule else (record.value[:6], record.value[10:22], len(record.value))
            forms.setdefault("heads of states", set()).add(head)
    letters = topics.read("readings.dlq")
    faults = [f"the {form} differ: {found}" for form, found in forms.items() if len(found) != 1]
    return [*faults, f"{len(letters)} readings became dead letters"] if letters else faults


def count_faults(counts: Mapping[str, Sequence[Mapping[str, Any]]], *, other_rule: bool) -> list[str]:
    """Faults in the counts of each commit's forecasters: rebuilt or lost states, and dead letters.

    With another rule of adaptation, states are rebuilt.
    """
    faults = []
    zero = [name for name in ZERO if not (other_rule and name == "rebuilt_sensors")]
    for side, all_of_side in counts.items():
        for one in all_of_side:
            faults += [f"{name} of a forecaster of {side} is {one[name]}" for name in zero if one[name]]
            if one["dead_letters"]:
                faults.append(f"a forecaster of {side} wrote {one['dead_letters']} dead letters")
    return faults


def log_faults(logs: Path, *, other_rule: bool) -> list[str]:
    """Lines of the forecasters' logs about a rebuild, unless the rules of adaptation differ, or about a crash."""
    bad_lines = [line for line in BAD_LINES if not (other_rule and line == REBUILT_LINE)]
    return [
        f"{log.name}: {line}"
        for log in sorted(logs.glob("forecaster-*.log"))
        for line in log.read_text(errors="replace").splitlines()
        if any(bad in line for bad in bad_lines)
    ]


def paths(content: Any, prefix: str = "") -> tuple[str, ...]:
    """The dotted names in a JSON object, in order. Numeric names are data, for example partitions, and are left out."""
    found: list[str] = []
    if isinstance(content, dict):
        for name, value in content.items():
            if not name.isdecimal():
                found += [f"{prefix}{name}", *paths(value, f"{prefix}{name}.")]
    return tuple(found)
