"""The faults of a chaos run, drawn from its seed."""

import random
from dataclasses import dataclass, replace
from typing import Final, Literal

from tests.chaos.gauge import POINTS

# Points that every loop passes. Kills at the other points need a restart, a rebalance or a promotion first.
_FREELY: Final = tuple(point for point in POINTS if point not in ("swapping", "revoked", "restoring"))
# Shares of the faults: one forecaster runs before the first, three between the two, one after the second.
_THREE_FROM: Final = 0.2
_THREE_UNTIL: Final = 0.8


@dataclass(frozen=True)
class Size:
    """How many readings, sensors, partitions and faults a run has."""

    readings: int = 100_000
    sensors: int = 200
    partitions: int = 8
    kills: int = 110
    stalls: int = 12
    broker_kills: int = 10
    broker_stalls: int = 2
    promotions: int = 6
    pause_s: float = 1.5  # between two faults, on average
    settle_every: int = 12  # faults between two waits until all partitions have caught up
    rate: float = 130.0  # readings a second


@dataclass(frozen=True)
class Fault:
    """One fault, or a change of the number of forecasters."""

    kind: Literal["kill", "stall", "broker kill", "broker stall", "promotion", "forecasters"]
    point: str | None = None  # fault point; None for a random moment
    count: int = 0  # forecasters that run from now on; 0 keeps their number
    pause_s: float = 0.0  # seconds to wait before the fault


def draw(size: Size, seed: int) -> list[Fault]:
    """The faults of a run, in order."""
    generator = random.Random(seed)
    faults = [Fault("kill", point) for point in _kills(size)]
    faults += [Fault("stall", "polled" if number % 2 else None) for number in range(size.stalls)]
    faults += [Fault("broker kill")] * size.broker_kills + [Fault("broker stall")] * size.broker_stalls
    generator.shuffle(faults)
    for number in range(size.promotions):  # spread evenly, each with a kill in the middle of the swap
        faults.insert(round((number + 0.5) * len(faults) / size.promotions), Fault("promotion"))
    three, one = round(_THREE_FROM * len(faults)), round(_THREE_UNTIL * len(faults))
    _move_rebalances(faults, range(three, one))
    faults = [
        *faults[:three],
        Fault("forecasters", count=3),
        *faults[three:one],
        Fault("forecasters", count=1),
        *faults[one:],
    ]
    return [replace(fault, pause_s=min(4 * size.pause_s, generator.expovariate(1 / size.pause_s))) for fault in faults]


def _kills(size: Size) -> list[str | None]:
    """Fault points of all kills except those during promotions; None for a random moment."""
    count = size.kills - size.promotions
    special = ["restoring", "revoked"] * max(1, count // 16)
    at_points = [_FREELY[number % len(_FREELY)] for number in range(max(len(_FREELY), count // 2 - len(special)))]
    return [*special, *at_points, *([None] * max(0, count - len(special) - len(at_points)))]


def _move_rebalances(faults: list[Fault], among: range) -> None:
    """Move kills at a revocation to places in ``among``, where several forecasters run: one alone revokes nothing."""
    places = [index for index in among if faults[index] == Fault("kill")]
    for index, fault in enumerate(faults):
        if fault.point == "revoked" and index not in among and places:
            place = places.pop()
            faults[index], faults[place] = faults[place], faults[index]
