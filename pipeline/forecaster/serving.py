"""One model version with all the states it has made: what the stream is served with until another takes its place."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.forecaster import Forecaster
from model.grace import HELD, settle, turns_come
from model.rules import ACCEPTED, DUPLICATE, LATE, NEVER_US, classify
from model.state import blank_states, unsound
from model.stepper import Forecasts, Stepper
from pipeline.forecaster.readings import Readings
from pipeline.forecaster.state_table import Rows, States, StateTable
from pipeline.messages import StateTag
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.serving")

NUMBER_BYTES: Final = 12  # of a quantile in a forecast's JSON, with its comma


@dataclass(frozen=True)
class Judged:
    """What becomes of readings of one partition, by the states and the readings before each."""

    accepted: Readings  # in the order in which they are stepped
    held: Readings | None  # those that wait for earlier ones, in the order of their offsets
    duplicates: int
    late: int


@dataclass(frozen=True)
class Stepped:
    """What accepted readings made of their sensors' states, not yet in the table."""

    rows: Rows  # (B,) of the table, each once
    states: States  # (B,) as they are after the readings
    forecasts: Forecasts  # n, in the order of the readings
    unsound: Rows  # those of ``rows`` whose state or forecast is no finite number: not to be kept


class Serving:
    """A model version and its states. For one thread at a time."""

    def __init__(self, version: int, forecaster: Forecaster, settings: Settings) -> None:
        self.version = version
        self.config = forecaster.config
        self.tag = StateTag(version, settings.fingerprint)
        self.table = StateTable(blank_states(forecaster.config, 1, settings.adaptation))
        self._stepper = Stepper(forecaster, settings.adaptation)
        self._grace = settings.grace
        config = forecaster.config
        numbers = len(config.targets) * len(config.quantiles) * config.horizon_steps
        self.bytes_per_reading = self.table.dtype.itemsize + numbers * NUMBER_BYTES  # that are written, at most

    def judge(self, readings: Readings, held: Readings | None = None, end: int | None = None) -> Judged:
        """Which readings are accepted (``model.rules``, ``model.grace``); nothing is stepped.

        Args:
            readings: of one partition, in the order of their offsets.
            held: what is held of it so far.
            end: the offset up to which the partition was read.
        """
        partition = readings.partition
        [judged] = self.judge_all(
            [readings], {} if held is None else {partition: held}, {} if end is None else {partition: end}
        )
        return judged

    def judge_all(
        self,
        parts: Sequence[Readings],
        held: Mapping[int, Readings] = MappingProxyType({}),
        ends: Mapping[int, int] = MappingProxyType({}),
    ) -> list[Judged]:
        """``judge`` of readings of several partitions at once, each partition named once: several times as fast."""
        if self._grace.is_on:
            return [self._settle(part, held.get(part.partition), ends.get(part.partition)) for part in parts]
        if held:
            parts = [held[part.partition].followed_by(part) if part.partition in held else part for part in parts]
        if not sum(map(len, parts)):
            return [Judged(part, None, 0, 0) for part in parts]
        rows = np.concatenate([self.table.rows(part.partition, part.sensors) for part in parts])
        distinct, codes = np.unique(rows, return_inverse=True)
        timestamp_us = np.concatenate([part.timestamp_us for part in parts])
        verdicts = classify(codes, timestamp_us, self.table.field("last_us", distinct))
        split = np.split(verdicts, np.cumsum([len(part) for part in parts[:-1]], dtype=np.intp))
        return [_judged(part.take(mine == ACCEPTED), None, mine) for part, mine in zip(parts, split, strict=True)]

    def _settle(self, new: Readings, held: Readings | None, end: int | None) -> Judged:
        """``judge`` where gaps are waited for; what was held so far comes first."""
        readings, still = new, None
        if held is not None:
            may_move = self._may_move(held, new, end)
            readings, still = held.take(may_move).followed_by(new), held.take(~may_move)
        if not len(readings):
            return Judged(readings, held, 0, 0)
        distinct, codes = np.unique(self.table.rows(readings.partition, readings.sensors), return_inverse=True)
        last_us = self.table.field("last_us", distinct)
        settled = settle(codes, readings.timestamp_us, readings.offsets, self._grace, last_us, end)
        waiting = readings.pick(np.flatnonzero(settled.verdicts == HELD))
        still = waiting if still is None else still.merged_with(waiting)
        accepted = replace(readings.pick(settled.order), begins=settled.begins)
        return _judged(accepted, still if len(still) else None, settled.verdicts)

    def _may_move(self, held: Readings, new: Readings, end: int | None) -> NDArray[np.bool_]:
        """(n,) of what is held, all of the sensors that have a new reading, or one whose turn has come without it.

        The others are not looked at one by one: after an outage there may be very many.
        """
        distinct, codes = np.unique(self.table.rows(held.partition, held.sensors), return_inverse=True)
        last_us = self.table.field("last_us", distinct)
        come = turns_come(codes, held.timestamp_us, held.offsets, self._grace, last_us, end)
        moving: NDArray[np.bool_] = come | np.isin(distinct, self.table.rows(new.partition, new.sensors))
        return moving[codes]

    def step(self, accepted: Sequence[Readings]) -> Stepped:
        """Step accepted readings of several partitions, each partition named once, into copies of their states.

        Each sensor's are in order of time; across sensors any order gives the same.
        """
        table = self.table
        rows = np.concatenate([table.rows(part.partition, part.sensors) for part in accepted])
        distinct, slots = np.unique(rows, return_inverse=True)
        states = table.gather(distinct)
        # A state that was lost begins anew, though it keeps the time that its sensor's readings must be later than.
        states["last_us"][states["accepted"] == 0] = NEVER_US
        forecasts = self._stepper.advance(
            states,
            table.sensors_at(distinct.tolist()),
            slots.astype(np.int64, copy=False),
            np.concatenate([part.timestamp_us for part in accepted]),
            np.concatenate([part.values for part in accepted]),
            np.concatenate([part.offsets for part in accepted]),
            _begins(accepted),
        )
        bad = unsound(states)
        broken = ~np.isfinite(forecasts.quantiles).reshape(len(slots), -1).all(axis=1)
        bad[slots[broken]] = True
        return Stepped(distinct, states, forecasts, distinct[bad])

    def begin_anew(self, partition: int, sensors: Sequence[str]) -> None:
        """Lose the states of sensors: the next reading of each begins one, and must be as late as it had to be."""
        rows = self.table.rows(partition, sensors)
        states = self.table.blank(len(rows))
        states["last_us"] = self.table.field("last_us", rows)
        self.table.scatter(rows, states)

    def replay(self, accepted: Sequence[Readings]) -> None:
        """Step accepted readings whose forecasts nobody wants, straight into the table."""
        present = [part for part in accepted if len(part)]
        if present:
            stepped = self.step(present)
            self.table.scatter(stepped.rows, stepped.states)
            for partition, sensors in self.table.named(stepped.unsound).items():
                logger.error(
                    "replaying readings led the states of sensors %s, partition %d, to numbers that are not finite; "
                    "they begin anew",
                    ", ".join(sensors[:5]),
                    partition,
                )
                self.begin_anew(partition, sensors)


def _judged(accepted: Readings, held: Readings | None, verdicts: NDArray[np.int8]) -> Judged:
    duplicates, late = (int(np.count_nonzero(verdicts == verdict)) for verdict in (DUPLICATE, LATE))
    return Judged(accepted, held, duplicates, late)


def _begins(accepted: Sequence[Readings]) -> NDArray[np.bool_] | None:
    parts = [part.begins for part in accepted if part.begins is not None]
    assert len(parts) in (0, len(accepted)), "gaps are waited for in all partitions or in none"
    return np.concatenate(parts) if parts else None
