"""Audits the topics offline: was every accepted reading stepped exactly once, and is every forecast what it must be?

On top of the counts of ``audit.delivery``, every forecast and every sensor's last state is recomputed from the readings
with the model version that it names (``audit.recompute``), and every record that is no reading must have been set aside
exactly once. Nothing here is the forecaster's but its rules: topics are read anew, states begin blank. Where the
audit of a partition begins is told by ``audit.scope``.

On a stream at rest the outcome is exact. On a running one, what is not committed when the audit begins is left out.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.acceptance import ACCEPTED
from model.forecaster import Forecaster
from model.reorder_buffer import BUFFERED
from model.state import state_dtype
from pipeline.audit.delivery import (
    REJECTED,
    DeliveryCounts,
    ForecastLog,
    ReadingLog,
    classify_log,
    count_deliveries,
    find_rows,
    foreign_forecasts,
)
from pipeline.audit.lineage import AcceptedLog, accepted_log, log_starts, trace_states
from pipeline.audit.recompute import RecordedState, compare_with_readings
from pipeline.audit.scope import (
    LogStarts,
    before_first_forecast,
    first_due,
    letters_due,
    set_aside_before,
    within_retention,
)
from pipeline.audit.state_audit import LastState, read_states
from pipeline.audit.topic_logs import committed_offsets, read_forecasts, read_readings
from pipeline.dead_letters import DeadLetter
from pipeline.errors import KafkaError
from pipeline.kafka.topic_reader import Offsets, read_topic, topic_starts
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.verify")

_EXAMPLES: Final = 5

LoadModel = Callable[[int], Forecaster]
States = Mapping[tuple[int, str], LastState]
Indexes = NDArray[np.int64]


@dataclass(frozen=True)
class Span:
    """The readings to audit, by partition: from ``starts`` (0 where not named) up to ``ends`` (committed, likewise).

    What lies outside ``audit.scope`` is left out all the same.
    """

    starts: Offsets = field(default_factory=dict)
    ends: Offsets = field(default_factory=dict)


@dataclass
class AuditResult:
    """What was found; ``faults`` names what is not as it must be."""

    audit: DeliveryCounts
    waiting: int = 0  # readings behind the audited ones, not forecast yet
    recomputed: int = 0  # forecasts
    different: int = 0
    largest_difference: float = 0.0  # as a part of the sensor's scale, or of the value where that is larger
    begun_anew: int = 0  # forecasts whose state knows less of the sensor than the readings do
    rebuilt: int = 0  # times a state was replayed from the readings for the version that had served before
    out_of_reach: int = 0  # forecasts of states that began with readings deleted since: not recomputed
    readings_out_of_reach: int = 0  # not audited: their forecasts have been deleted, or readings before them
    forecasts_out_of_reach: int = 0  # not audited: their readings have been deleted, or forecasts before them
    letters_out_of_reach: int = 0  # rejected records whose dead letters may have been deleted
    states: int = 0
    states_different: int = 0
    letters_missing: int = 0  # rejected records that were not set aside
    letters_twice: int = 0
    versions: dict[int, int] = field(default_factory=dict)  # forecasts by model version
    foreign: dict[str, int] = field(default_factory=dict)  # forecasts not audited: made under settings with this print
    examples: dict[str, list[str]] = field(default_factory=dict)  # kind of fault -> some places

    @property
    def fault_counts(self) -> dict[str, int]:
        """Everything that may not happen, with its count."""
        return {
            "missing": self.audit.lost,
            "twice": self.audit.twice,
            "out of order": self.audit.out_of_order,
            "unexpected": self.audit.unexpected,
            "different": self.different,
            "begun anew": self.begun_anew,
            "states different": self.states_different,
            "dead letters missing": self.letters_missing,
            "dead letters twice": self.letters_twice,
        }

    @property
    def faults(self) -> dict[str, int]:
        """What is not as it must be, with its count; empty where all is well."""
        return {name: count for name, count in self.fault_counts.items() if count}

    def note(self, fault: str, where: str) -> None:
        """Keep an example of a fault, if there are few yet."""
        found = self.examples.setdefault(fault, [])
        if len(found) < _EXAMPLES:
            found.append(where)


@dataclass(frozen=True)
class Evidence:
    """Everything on the topics that an audit looks at, with the offsets it is about."""

    readings: ReadingLog
    forecasts: ForecastLog
    states: States
    letters: Mapping[tuple[int, int], int]  # dead letters by partition and offset of the record they hold
    starts: Offsets
    ends: Offsets
    logs: LogStarts = field(default_factory=LogStarts)


def verify(settings: Settings, load: LoadModel, span: Span | None = None) -> AuditResult:
    """Audit the readings in ``span``; by default all that the group has committed.

    Args:
        settings: those that the forecasters run with.
        load: the model of a version.

    Raises:
        KafkaError: no broker answers, a topic is missing, or nothing was committed.
        RegistryError: a version that a forecast names cannot be loaded.
    """
    return audit_evidence(gather(settings, span or Span()), settings, load)


def gather(settings: Settings, span: Span) -> Evidence:
    """Read the topics."""
    # In this order: whatever a running stream adds meanwhile lies behind the offsets audited.
    committed = committed_offsets(settings)
    if not committed:
        raise KafkaError(
            f"group {settings.forecaster.group_id} has committed no offset of {settings.kafka.topics.readings}: there "
            "is nothing to verify. Start a forecaster with `streamgru forecast`"
        )
    logger.info("reading states, forecasts, dead letters and readings")
    states = read_states(settings)
    forecasts = read_forecasts(settings, numbers=True)
    letters = _read_letters(settings)
    readings = read_readings(settings)
    topics = settings.kafka.topics
    return Evidence(
        readings=readings,
        forecasts=forecasts,
        states=states,
        letters=letters,
        starts=span.starts,
        ends={partition: min(end, span.ends.get(partition, end)) for partition, end in committed.items()},
        # Behind all reading: what is deleted meanwhile may have been read, and is not missed.
        logs=LogStarts(
            *(topic_starts(settings, each) for each in (topics.readings, topics.forecasts, topics.dead_letters))
        ),
    )


def audit_evidence(evidence: Evidence, settings: Settings, load: LoadModel) -> AuditResult:
    """The verdict on what was read."""
    ends = evidence.ends
    owed = first_due(evidence.forecasts, evidence.starts, ends, settings.forecaster.start)
    starts = within_retention(evidence.forecasts, owed, evidence.logs, ends)
    evidence = replace(evidence, starts=starts)
    readings = evidence.readings
    aside = set_aside_before(readings, evidence.forecasts, evidence.letters)
    if aside.any():
        readings = replace(readings, sensor=np.where(aside, -1, readings.sensor))
        readings = replace(readings, verdict=classify_log(readings, settings.grace, ends))
        evidence = replace(evidence, readings=readings)
    due = readings.take(_is_before(readings.partition, readings.offset, ends))
    if settings.grace.is_on:
        read = {number: max(end, _end(readings, number)) for number, end in ends.items()}
        readings = replace(readings, verdict=classify_log(readings, settings.grace, read))
        due = replace(due, verdict=classify_log(due, settings.grace, ends))
        evidence = replace(evidence, readings=readings)
    issued = evidence.forecasts
    issued = issued.take(
        _is_before(issued.input_partition, issued.input_offset, ends) & ~_follows(issued, due, readings)
    )
    hidden = before_first_forecast(due, issued, evidence.logs)
    verdict = AuditResult(count_deliveries(due, issued, starts, hidden), waiting=len(readings) - len(due))
    if issued.foreign is not None:
        verdict.foreign = dict(issued.foreign.fingerprints)
    cut = (_is_before(due.partition, due.offset, starts) | hidden) & ~_is_before(due.partition, due.offset, owed)
    verdict.readings_out_of_reach = int(cut.sum())
    cut = _is_before(issued.input_partition, issued.input_offset, starts)
    cut &= ~_is_before(issued.input_partition, issued.input_offset, owed)
    verdict.forecasts_out_of_reach = int(cut.sum())
    verdict.examples.update({_FAULT.get(kind, kind): found for kind, found in verdict.audit.examples.items()})
    _audit_dead_letters(verdict, due, evidence)
    issued = issued.take(~_is_before(issued.input_partition, issued.input_offset, starts))
    versions, counts = np.unique(issued.version, return_counts=True)
    verdict.versions = dict(zip(versions.tolist(), counts.tolist(), strict=True))
    _audit_states(verdict, evidence, due, issued, settings, load)
    return verdict


def _end(readings: ReadingLog, partition: int) -> int:
    """The offset behind a partition's last reading."""
    return int(readings.offset[readings.partition == partition].max(initial=-1)) + 1


def _follows(issued: ForecastLog, due: ReadingLog, readings: ReadingLog) -> NDArray[np.bool_]:
    """Which forecasts are of readings that are held as of the end of the audited ones, and accepted after it."""
    row, found = find_rows(due, issued.input_partition, issued.input_offset)
    later, known = find_rows(readings, issued.input_partition, issued.input_offset)
    found &= known
    found[found] = (due.verdict[row[found]] == BUFFERED) & (readings.verdict[later[found]] == ACCEPTED)
    return found


_FAULT: Final = {"lost": "missing"}  # how an audit's word reads here


def _audit_dead_letters(verdict: AuditResult, due: ReadingLog, evidence: Evidence) -> None:
    """Whether every rejected record was set aside once."""
    rejected = (due.verdict == REJECTED) & ~_is_before(due.partition, due.offset, evidence.starts)
    reached = letters_due(evidence.letters, evidence.starts, evidence.logs, evidence.ends)
    cut = _is_before(due.partition, due.offset, reached)
    verdict.letters_out_of_reach = int((rejected & cut).sum())
    rejected &= ~cut & (foreign_forecasts(due, evidence.forecasts) == 0)  # else a reading under the settings then
    for partition, offset in zip(due.partition[rejected].tolist(), due.offset[rejected].tolist(), strict=True):
        count = evidence.letters.get((partition, offset), 0)
        verdict.letters_missing += count == 0
        verdict.letters_twice += max(0, count - 1)
        if count != 1:
            fault = "dead letters twice" if count else "dead letters missing"
            verdict.note(fault, f"partition {partition} offset {offset}")


def _audit_states(
    verdict: AuditResult, evidence: Evidence, due: ReadingLog, issued: ForecastLog, settings: Settings, load: LoadModel
) -> None:
    """Whether every state goes back far enough, and forecasts and states are what the readings make of them."""
    readings = evidence.readings
    accepted = accepted_log(readings, settings)
    lineage = trace_states(readings, issued, accepted, settings)
    verdict.out_of_reach = int(lineage.out_of_reach.sum())
    verdict.rebuilt = int(lineage.rebuilt.sum())
    verdict.begun_anew = int(lineage.begun_anew.sum())
    different = np.flatnonzero((lineage.place >= 0) & ~lineage.recomputable & ~lineage.out_of_reach).tolist()
    states = _StateCheck(verdict, evidence, due, accepted)
    for version in sorted({*verdict.versions, *states.versions}):
        logger.info("recomputing %d forecasts of version %d", verdict.versions.get(version, 0), version)
        forecaster = load(version)
        rows = np.flatnonzero((issued.version == version) & lineage.recomputable)
        recorded = states.recorded(version, state_dtype(forecaster.config, settings.adaptation))
        outcome = compare_with_readings(forecaster, settings, accepted, issued, lineage, rows, recorded)
        verdict.recomputed += outcome.recomputed
        verdict.largest_difference = max(verdict.largest_difference, outcome.largest_difference)
        different += outcome.different
        for place, fields in outcome.states_different.items():
            states.report_fault(int(accepted.stream[place]), f"recomputed, it differs in {', '.join(fields)}")
    verdict.different = len(different)
    for fault, wrong in (("different", different), ("begun anew", np.flatnonzero(lineage.begun_anew).tolist())):
        for row in wrong[:_EXAMPLES]:
            verdict.note(fault, f"partition {issued.input_partition[row]} offset {issued.input_offset[row]}")


class _StateCheck:
    """Sorts the changelog's last states: those to recompute, by version, and those that are wrong at sight."""

    def __init__(self, verdict: AuditResult, evidence: Evidence, due: ReadingLog, accepted: AcceptedLog) -> None:
        self._verdict = verdict
        self._accepted = accepted
        self._by_offset = np.lexsort((accepted.offset, accepted.stream))  # places: streams stay where they are
        self._offsets = accepted.offset[self._by_offset]
        self._starts = log_starts(evidence.readings, max(evidence.ends, default=0))
        self._found: dict[int, LastState] = {}  # by stream
        row, found = find_rows(due, evidence.readings.partition[accepted.row], accepted.offset)
        before_end = found.copy()
        before_end[found] = due.verdict[row[found]] == ACCEPTED
        self._last = np.full(len(accepted.streams), -1)  # by stream, the place of the last reading that is audited
        np.maximum.at(self._last, accepted.stream[before_end], np.flatnonzero(before_end))
        for stream in np.flatnonzero(self._last >= 0).tolist():
            state = evidence.states.get(accepted.streams[stream])
            verdict.states += 1
            if state is None:
                self.report_fault(stream, "there is none")
            elif state.fault is not None:
                self.report_fault(stream, state.fault)
            else:
                self._found[stream] = state

    @property
    def versions(self) -> set[int]:
        """Of the models that made the states."""
        return {state.version for state in self._found.values()}

    def recorded(self, version: int, dtype: np.dtype[Any]) -> dict[int, RecordedState]:
        """The states of a version to recompute, by the place of the last reading in them."""
        recorded = {}
        for stream, state in self._found.items():
            if state.version != version:
                continue
            if len(state.row) != dtype.itemsize:
                self.report_fault(stream, "it has another size than its model's")
                continue
            row = np.frombuffer(state.row, dtype)[0]
            last = self._place(stream, int(row["offset"]))
            due = self._last[stream]
            if last is None or last < due:
                self.report_fault(stream, f"it does not hold the reading at offset {self._accepted.offset[due]}")
                continue
            first = self._place(stream, int(row["origin"]))
            if first is not None:
                recorded[last] = RecordedState(first, last, row)
            elif row["origin"] >= self._starts[self._accepted.streams[stream][0]]:
                self.report_fault(
                    stream, f"it begins at offset {row['origin']}, which is no accepted reading of the sensor"
                )
        return recorded

    def report_fault(self, stream: int, why: str) -> None:
        """Count a state as wrong."""
        partition, sensor = self._accepted.streams[stream]
        self._verdict.states_different += 1
        self._verdict.note("states different", f"sensor {sensor}, partition {partition}: {why}")

    def _place(self, stream: int, offset: int) -> int | None:
        low, high = self._accepted.starts[stream], self._accepted.starts[stream + 1]
        at = int(low + np.searchsorted(self._offsets[low:high], offset))
        return int(self._by_offset[at]) if at < high and self._offsets[at] == offset else None


def _read_letters(settings: Settings) -> dict[tuple[int, int], int]:
    """How many dead letters there are of each record of the readings topic."""
    letters: dict[tuple[int, int], int] = {}
    for record in read_topic(settings, settings.kafka.topics.dead_letters, {}, None):
        letter = DeadLetter.of(record)
        if letter is not None and letter.topic == settings.kafka.topics.readings:
            source = (letter.partition, letter.offset)
            letters[source] = letters.get(source, 0) + 1
    return letters


def _is_before(partition: NDArray[np.int32], offset: Indexes, limits: Offsets) -> NDArray[np.bool_]:
    """Whether each position lies before its partition's limit; partitions that are not named have none before."""
    first = np.zeros(max([int(partition.max(initial=0)), *limits]) + 1, np.int64)
    for number, limit in limits.items():
        first[number] = limit
    return np.asarray(offset < first[partition])
