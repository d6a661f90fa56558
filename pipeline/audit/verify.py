"""Audits the topics offline: was every accepted reading stepped exactly once, and is every forecast correct?

``audit.delivery`` counts the forecasts. ``audit.recompute`` recomputes each forecast and each sensor's last state from
the readings, with the model version that the forecast or state names. It uses nothing in a forecaster's memory. Each
rejected record must have exactly one dead letter. ``audit.scope`` decides where the audit of a partition begins. The
audit ends at the committed offset, so in a running stream it leaves out the newest readings.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.acceptance import ACCEPTED
from model.forecaster import Forecaster
from model.reorder_buffer import BUFFERED
from model.state import outlooks_from, state_dtype
from pipeline.audit.delivery import (
    REJECTED,
    DeliveryCounts,
    ForecastLog,
    ReadingLog,
    classify_log,
    count_deliveries,
    find_rows,
    foreign_forecasts,
    is_before,
)
from pipeline.audit.lineage import AcceptedLog, accepted_log, log_starts, trace_states
from pipeline.audit.recompute import RecordedState, compare_with_readings
from pipeline.audit.scope import (
    LogStarts,
    before_first_forecast,
    first_due,
    group_starts,
    letters_due,
    lie_within,
    set_aside_before,
    set_aside_by_letters,
    set_aside_by_limit,
    within_retention,
)
from pipeline.audit.state_audit import LastState, read_states
from pipeline.audit.topic_logs import read_forecasts, read_readings
from pipeline.dead_letters import read_letters
from pipeline.errors import KafkaError
from pipeline.kafka.group_positions import committed_offsets
from pipeline.kafka.topic_reader import Offsets, topic_starts
from pipeline.messages import ReadingDecoder
from pipeline.sensor_limit import TOO_MANY_SENSORS, limit_in
from pipeline.settings import Settings
from pipeline.text.visible_text import visible

logger = logging.getLogger("streamgru.verify")

_EXAMPLES: Final = 5  # places named per kind of fault

LoadModel = Callable[[int], Forecaster]
States = Mapping[tuple[int, str], LastState]
Indexes = NDArray[np.int64]


@dataclass(frozen=True)
class Span:
    """The readings to audit: partition -> offset, by default from 0 up to the committed offset.

    ``audit.scope`` may narrow it.
    """

    starts: Offsets = field(default_factory=dict)
    ends: Offsets = field(default_factory=dict)


@dataclass
class AuditResult:
    """The outcome of an audit; ``faults`` counts the faults by kind."""

    audit: DeliveryCounts
    waiting: int = 0  # readings after the audited ones, not committed yet
    recomputed: int = 0  # forecasts
    different: int = 0  # forecasts that differ from the recomputed ones
    largest_difference: float = 0.0  # as a fraction of the sensor's scale, or of the value if that is larger
    begun_anew: int = 0  # forecasts whose state begins later than the rules allow
    rebuilt: int = 0  # states rebuilt from the readings without a change of the model version
    out_of_reach: int = 0  # forecasts not recomputed, because the first readings of their states were deleted
    outlooks: int = 0  # records with outlooks on the audited part of the topic
    readings_out_of_reach: int = 0  # readings not audited: their forecasts were deleted, or readings before them
    forecasts_out_of_reach: int = 0  # forecasts not audited: their readings were deleted, or forecasts before them
    letters_out_of_reach: int = 0  # rejected records whose dead letters may have been deleted
    states: int = 0
    states_different: int = 0
    rejected_then: int = 0  # readings that decode now, and count as rejected because of their dead letters
    letters_missing: int = 0  # rejected records without a dead letter
    letters_twice: int = 0  # dead letters beyond the first of a record
    versions: dict[int, int] = field(default_factory=dict)  # model version -> forecasts
    foreign: dict[str, int] = field(default_factory=dict)  # fingerprint of other settings -> forecasts, not audited
    examples: dict[str, list[str]] = field(default_factory=dict)  # kind of fault -> the first places
    reasons: dict[str, int] = field(default_factory=dict)  # reason -> rejected records on the whole topic
    implausible_times: dict[str, int] = field(default_factory=dict)  # sensor -> readings; the sensors with most

    @property
    def fault_counts(self) -> dict[str, int]:
        """Kind of fault -> count, including 0."""
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
        """Kind of fault -> count, without 0; empty if the audit found no fault."""
        return {name: count for name, count in self.fault_counts.items() if count}

    def note(self, fault: str, where: str) -> None:
        """Store the place of a fault, up to ``_EXAMPLES`` of a kind."""
        found = self.examples.setdefault(fault, [])
        if len(found) < _EXAMPLES:
            found.append(where)


@dataclass(frozen=True)
class Evidence:
    """The content of the topics that an audit reads, and the offsets that it covers."""

    readings: ReadingLog
    forecasts: ForecastLog
    states: States
    letters: Mapping[tuple[int, int], int]  # partition and offset of a rejected record -> its dead letters
    starts: Offsets
    ends: Offsets
    logs: LogStarts = field(default_factory=LogStarts)
    # Partition and offset of a reading that was rejected because of too many sensors -> the limit at that time.
    beyond_limit: Mapping[tuple[int, int], int] = field(default_factory=dict)
    # Partition, first and last offset of each dead letter of a record or batch that did not decode at that time.
    unreadable: Sequence[tuple[int, int, int]] = ()


def verify(settings: Settings, load: LoadModel, span: Span | None = None) -> AuditResult:
    """Audit the readings in ``span``; by default all readings that the group has committed.

    Args:
        settings: the settings of the forecasters.
        load: returns the model of a version.

    Raises:
        KafkaError: no broker answers, a topic is missing, or the group has committed no offset.
        RegistryError: a version that a forecast names cannot be loaded.
    """
    return audit_evidence(gather(settings, span or Span()), settings, load)


def gather(settings: Settings, span: Span) -> Evidence:
    """Read the topics."""
    # Read the committed offsets first: records that a running stream adds later lie after the audited ones.
    topics, committed = settings.kafka.topics, committed_offsets(settings)
    if not committed:
        raise KafkaError(
            f"group {settings.forecaster.group_id} has committed no offset of {topics.readings}: there is nothing to "
            "verify. Start a forecaster with `streamgru forecast`"
        )
    logger.info("reading states, forecasts, dead letters and readings")
    states, forecasts = read_states(settings), read_forecasts(settings, numbers=True)
    letters, beyond_limit, unreadable = _read_letters(settings)
    # Read in this order: readings come after the states and forecasts that were made from them. The starts of the logs
    # come last, so that records deleted by retention during the audit count as deleted.
    return Evidence(
        states=states,
        forecasts=forecasts,
        letters=letters,
        beyond_limit=beyond_limit,
        unreadable=unreadable,
        readings=read_readings(settings),
        starts=span.starts,
        ends={partition: min(end, span.ends.get(partition, end)) for partition, end in committed.items()},
        logs=LogStarts(
            *(topic_starts(settings, each) for each in (topics.readings, topics.forecasts, topics.dead_letters))
        ),
    )


def audit_evidence(evidence: Evidence, settings: Settings, load: LoadModel) -> AuditResult:
    """The outcome for topics that were read."""
    ends = evidence.ends
    owed = first_due(evidence.forecasts, evidence.starts, ends, settings.forecaster.start)
    starts = within_retention(evidence.forecasts, owed, evidence.logs, ends)
    readings = _set_aside(evidence, settings)
    rejected_then = int(((readings.sensor < 0) & (evidence.readings.sensor >= 0)).sum())
    due = readings.take(is_before(readings.partition, readings.offset, ends))
    if settings.grace.is_on:
        last = {number: int(readings.offset[readings.partition == number].max(initial=-1)) for number in ends}
        read = {number: max(end, last[number] + 1) for number, end in ends.items()}
        readings = replace(readings, verdict=classify_log(readings, settings.grace, read))
        due = replace(due, verdict=classify_log(due, settings.grace, ends))
    evidence = replace(evidence, readings=readings, starts=starts)
    issued = evidence.forecasts
    issued = issued.take(
        is_before(issued.input_partition, issued.input_offset, ends) & ~_is_released_later(issued, due, readings)
    )
    hidden = before_first_forecast(due, issued, evidence.logs)
    verdict = AuditResult(
        count_deliveries(due, issued, starts, hidden),
        waiting=len(readings) - len(due),
        outlooks=sum(
            starts.get(each.partition, 0) <= each.offset < ends.get(each.partition, 0) for each in readings.outlooks
        ),
        rejected_then=rejected_then,
        reasons=readings.reasons,
        implausible_times=readings.implausible,
    )
    if issued.foreign is not None:
        verdict.foreign = dict(issued.foreign.fingerprints)
    cut = (is_before(due.partition, due.offset, starts) | hidden) & ~is_before(due.partition, due.offset, owed)
    verdict.readings_out_of_reach = int(cut.sum())
    before_start = is_before(issued.input_partition, issued.input_offset, starts)
    cut = before_start & ~is_before(issued.input_partition, issued.input_offset, owed)
    verdict.forecasts_out_of_reach = int(cut.sum())
    for kind, positions in verdict.audit.examples.items():
        verdict.examples["missing" if kind == "lost" else kind] = positions
    _audit_dead_letters(verdict, due, evidence)
    issued = issued.take(~before_start)
    versions, counts = np.unique(issued.version, return_counts=True)
    verdict.versions = dict(zip(versions.tolist(), counts.tolist(), strict=True))
    _audit_states(verdict, evidence, due, issued, settings, load)
    return verdict


def _set_aside(evidence: Evidence, settings: Settings) -> ReadingLog:
    """The readings; those that decode now, but were rejected by the rules of their time, count as rejected."""
    found, forecasts = evidence.readings, evidence.forecasts
    aside = set_aside_before(found, forecasts, evidence.letters)
    aside |= set_aside_by_letters(found, forecasts, evidence.unreadable)
    readings = replace(found, sensor=np.where(aside, -1, found.sensor))
    firsts = group_starts(forecasts, evidence.ends, settings.forecaster.start, evidence.logs)
    aside |= set_aside_by_limit(readings, evidence.beyond_limit, firsts)
    if not aside.any():
        return found
    readings = replace(found, sensor=np.where(aside, -1, found.sensor))
    return replace(readings, verdict=classify_log(readings, settings.grace, evidence.ends))


def _is_released_later(issued: ForecastLog, due: ReadingLog, readings: ReadingLog) -> NDArray[np.bool_]:
    """Which forecasts belong to readings that are buffered at the end of the audit, and accepted after it."""
    row, found = find_rows(due, issued.input_partition, issued.input_offset)
    later, known = find_rows(readings, issued.input_partition, issued.input_offset)
    found &= known
    found[found] = (due.verdict[row[found]] == BUFFERED) & (readings.verdict[later[found]] == ACCEPTED)
    return found


def _audit_dead_letters(verdict: AuditResult, due: ReadingLog, evidence: Evidence) -> None:
    """Check that every rejected record has exactly one dead letter."""
    rejected = (due.verdict == REJECTED) & ~is_before(due.partition, due.offset, evidence.starts)
    reached = letters_due(evidence.letters, evidence.starts, evidence.logs, evidence.ends)
    cut = is_before(due.partition, due.offset, reached)
    verdict.letters_out_of_reach = int((rejected & cut).sum())
    # A record with a forecast made under other settings was a reading under these.
    rejected &= ~cut & (foreign_forecasts(due, evidence.forecasts) == 0)
    # The dead letter of a batch has the offset of its first record. The other records may decode now, one by one.
    batches = [(partition, first + 1, last) for partition, first, last in evidence.unreadable if last > first]
    in_batch = lie_within(due, batches)[rejected].tolist()
    places = zip(due.partition[rejected].tolist(), due.offset[rejected].tolist(), in_batch, strict=True)
    for partition, offset, has_batch_letter in places:
        count = evidence.letters.get((partition, offset), 0)
        if has_batch_letter and not count:
            continue
        verdict.letters_missing += count == 0
        verdict.letters_twice += max(0, count - 1)
        if count != 1:
            fault = "dead letters twice" if count else "dead letters missing"
            verdict.note(fault, f"partition {partition} offset {offset}")


def _audit_states(
    verdict: AuditResult, evidence: Evidence, due: ReadingLog, issued: ForecastLog, settings: Settings, load: LoadModel
) -> None:
    """Check that every state begins early enough, and compare forecasts and states with recomputed ones."""
    accepted = accepted_log(evidence.readings, settings)
    lineage = trace_states(evidence.readings, issued, accepted, settings)
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
            states.report_fault(int(accepted.stream[place]), f"the recomputed state differs in {', '.join(fields)}")
    verdict.different = len(different)
    for fault, wrong in (("different", different), ("begun anew", np.flatnonzero(lineage.begun_anew).tolist())):
        for row in wrong[:_EXAMPLES]:
            verdict.note(fault, f"partition {issued.input_partition[row]} offset {issued.input_offset[row]}")


class _StateCheck:
    """Checks the changelog's last states, and selects the ones to recompute."""

    def __init__(self, verdict: AuditResult, evidence: Evidence, due: ReadingLog, accepted: AcceptedLog) -> None:
        self._verdict = verdict
        self._accepted = accepted
        self._ends = evidence.ends
        self._by_offset = np.lexsort((accepted.offset, accepted.stream))  # places by offset within each stream
        self._offsets = accepted.offset[self._by_offset]
        self._starts = log_starts(evidence.readings, max(evidence.ends, default=0))
        self._found: dict[int, LastState] = {}  # stream -> its last state
        row, found = find_rows(due, evidence.readings.partition[accepted.row], accepted.offset)
        before_end = found.copy()
        before_end[found] = due.verdict[row[found]] == ACCEPTED
        self._last = np.full(len(accepted.streams), -1)  # stream -> place of its last audited reading
        np.maximum.at(self._last, accepted.stream[before_end], np.flatnonzero(before_end))
        for stream in np.flatnonzero(self._last >= 0).tolist():
            state = evidence.states.get(accepted.streams[stream])
            verdict.states += 1
            if state is None:
                self.report_fault(stream, "the changelog has no record of it")
            elif state.fault is not None:
                self.report_fault(stream, state.fault)
            else:
                self._found[stream] = state

    @property
    def versions(self) -> set[int]:
        """The model versions that made the states."""
        return {state.version for state in self._found.values()}

    def recorded(self, version: int, dtype: np.dtype[Any]) -> dict[int, RecordedState]:
        """Place of the last reading -> state, for the states of a version that can be recomputed."""
        recorded = {}
        for stream, state in self._found.items():
            if state.version != version:
                continue
            if len(state.row) != dtype.itemsize:
                self.report_fault(stream, f"the size of the state does not match version {version}")
                continue
            row = np.frombuffer(state.row, dtype)[0]
            last = self._place(stream, int(row["offset"]))
            due = self._last[stream]
            if last is None or last < due:
                offset = self._accepted.offset[due]
                self.report_fault(stream, f"the state does not hold the reading at offset {offset}")
                continue
            first = self._place(stream, int(row["origin"]))
            if first is not None:
                # The changelog was read after the committed offset, so the state has all outlooks before it.
                until = max(self._ends.get(self._accepted.streams[stream][0], 0), int(outlooks_from(row)))
                recorded[last] = RecordedState(first, last, row, until)
            elif row["origin"] >= self._starts[self._accepted.streams[stream][0]]:
                self.report_fault(stream, f"its first reading, offset {row['origin']}, is not one that was accepted")
        return recorded

    def report_fault(self, stream: int, why: str) -> None:
        """Count a state as wrong."""
        partition, sensor = self._accepted.streams[stream]
        self._verdict.states_different += 1
        self._verdict.note("states different", f"sensor {visible(sensor)}, partition {partition}: {why}")

    def _place(self, stream: int, offset: int) -> int | None:
        low, high = self._accepted.starts[stream], self._accepted.starts[stream + 1]
        at = int(low + np.searchsorted(self._offsets[low:high], offset))
        return int(self._by_offset[at]) if at < high and self._offsets[at] == offset else None


def _read_letters(
    settings: Settings,
) -> tuple[Counter[tuple[int, int]], dict[tuple[int, int], int], list[tuple[int, int, int]]]:
    """``letters``, ``beyond_limit`` and ``unreadable`` of ``Evidence``."""
    counts: Counter[tuple[int, int]] = Counter()
    beyond_limit: dict[tuple[int, int], int] = {}
    unreadable = []
    for letter in read_letters(settings):
        if letter.topic == settings.kafka.topics.readings:
            where = letter.partition, letter.offset
            counts[where] += 1
            if letter.reason == TOO_MANY_SENSORS:
                beyond_limit[where] = limit_in(letter.detail) or 0
            elif letter.reason in ReadingDecoder.REASONS:
                unreadable.append((*where, letter.offset if letter.last_offset is None else letter.last_offset))
    return counts, beyond_limit, unreadable
