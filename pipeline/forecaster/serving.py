"""One model version with all the states it has made: what the stream is served with until another takes its place."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.forecaster import Forecaster
from model.rules import ACCEPTED, NEVER_US, classify
from model.state import blank_states, unsound
from model.stepper import Forecasts, Stepper
from pipeline.forecaster.readings import Readings
from pipeline.forecaster.state_table import Rows, States, StateTable
from pipeline.messages import StateTag
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.serving")


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

    def judge(self, readings: Readings) -> NDArray[np.int8]:
        """(n,) accepted, duplicate or late (``model.rules``), by the states and the readings before each."""
        return self.judge_all([readings])[0]

    def judge_all(self, parts: Sequence[Readings]) -> list[NDArray[np.int8]]:
        """``judge`` of readings of several partitions at once, each partition named once: several times as fast."""
        if not sum(map(len, parts)):
            return [np.empty(0, np.int8) for _ in parts]
        rows = np.concatenate([self.table.rows(part.partition, part.sensors) for part in parts])
        distinct, codes = np.unique(rows, return_inverse=True)
        timestamp_us = np.concatenate([part.timestamp_us for part in parts])
        verdicts = classify(codes, timestamp_us, self.table.field("last_us", distinct))
        return np.split(verdicts, np.cumsum([len(part) for part in parts[:-1]], dtype=np.intp))

    def accept(self, readings: Readings) -> Readings:
        """The accepted ones."""
        return readings.take(self.judge(readings) == ACCEPTED)

    def step(self, accepted: Sequence[Readings]) -> Stepped:
        """Step accepted readings of several partitions, each partition named once, into copies of their states."""
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
