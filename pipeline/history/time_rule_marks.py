"""The time rules of each partition as application transactions of the history table, which store only numbers.

``TOPIC-PARTITION-time-rules`` has the number of the partition's rules, and ``TOPIC-PARTITION-time-rule-NUMBER-FIELD``
each field of a rule.
"""

from collections.abc import Mapping

from deltalake import DeltaTable, Transaction
from msgspec.structs import astuple

from pipeline.reading_times import TimeRule, TimeRules


def read_marks(table: DeltaTable, topic: str, partitions: int) -> dict[int, TimeRules]:
    """The time rules by partition of ``topic``; a partition is absent until its rules are stored."""
    found: dict[int, TimeRules] = {}
    for partition in range(partitions):
        name = f"{topic}-{partition}"
        count = table.transaction_version(f"{name}-time-rules")
        if count is not None:
            found[partition] = tuple(_read_rule(table, name, number) for number in range(count))
    return found


def changed_marks(topic: str, known: Mapping[int, TimeRules], rules_of: Mapping[int, TimeRules]) -> list[Transaction]:
    """The application transactions that store the rules of each partition whose rules differ from the known ones."""
    marks: list[Transaction] = []
    for partition, rules in rules_of.items():
        if known.get(partition) != rules:
            name = f"{topic}-{partition}"
            marks.append(Transaction(f"{name}-time-rules", len(rules)))
            for number, rule in enumerate(rules):
                marks += map(Transaction, _marks_of(name, number), astuple(rule))
    return marks


def _read_rule(table: DeltaTable, name: str, number: int) -> TimeRule:
    values = [table.transaction_version(mark) for mark in _marks_of(name, number)]
    return TimeRule(*(value for value in values if value is not None))


def _marks_of(name: str, number: int) -> list[str]:
    return [f"{name}-time-rule-{number}-{field}" for field in TimeRule.__struct_fields__]
