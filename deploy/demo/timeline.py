"""When forecasts became visible: rate and delay over time, and what a reader noticed of a change of models."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

# Around the change of a partition's model, forecasts are looked at this long before and after.
_AROUND_SWAP_S: Final = 5.0


@dataclass(frozen=True)
class Arrivals:
    """Forecasts in the order in which a reader of committed records had them."""

    arrived_s: NDArray[np.float64]  # time of day
    delay_s: NDArray[np.float64]  # since the reading was sent; NaN where it was not seen
    version: NDArray[np.int64]  # of the model
    partition: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.arrived_s)


@dataclass(frozen=True)
class Swap:
    """A change of models, as a reader saw it."""

    version_before: int
    version_after: int
    first_s: float  # time of day of the first forecast by the new model in any partition
    last_s: float  # ... in the last partition to change
    pause_s: float  # longest pause in any partition within seconds of its change
    usual_pause_s: float  # 99th percentile of all pauses at other times


@dataclass(frozen=True)
class Seconds:
    """The run second by second, from the first forecast on."""

    start_s: float
    versions: tuple[int, ...]
    rate: NDArray[np.float64]  # (versions, seconds) forecasts
    delay_median_s: NDArray[np.float64]  # (seconds,), NaN where there were none
    delay_p99_s: NDArray[np.float64]


def find_swaps(arrivals: Arrivals) -> list[Swap]:
    """The changes from each version to the next that took over."""
    versions = np.unique(arrivals.version)
    order = sorted(versions.tolist(), key=lambda version: arrivals.arrived_s[arrivals.version == version].min())
    return [swap for before, after in pairwise(order) if (swap := _swap(arrivals, before, after)) is not None]


def _swap(arrivals: Arrivals, before: int, after: int) -> Swap | None:
    """A pause is the time in which a reading was waiting and nothing became visible in its partition."""
    changes: list[float] = []
    near: list[float] = []
    far: list[NDArray[np.float64]] = []
    for partition in np.unique(arrivals.partition):
        own = arrivals.partition == partition
        moments, versions = arrivals.arrived_s[own], arrivals.version[own]
        if after not in versions or before not in versions:
            continue
        change = moments[versions == after].min()
        changes.append(float(change))
        ends = moments[1:]
        begins = np.fmax(
            moments[:-1], (moments - arrivals.delay_s[own])[1:]
        )  # fmax: where no sending is known, ignore it
        pauses = np.maximum(ends - begins, 0.0)
        around = (ends >= change - _AROUND_SWAP_S) & (begins <= change + _AROUND_SWAP_S)
        near.append(float(pauses[around].max(initial=0.0)))
        far.append(pauses[~around & (pauses > 0)])
    if not changes:
        return None
    usual = np.concatenate(far)
    return Swap(
        version_before=before,
        version_after=after,
        first_s=min(changes),
        last_s=max(changes),
        pause_s=max(near),
        usual_pause_s=float(np.percentile(usual, 99)) if len(usual) else 0.0,
    )


def by_second(arrivals: Arrivals) -> Seconds:
    """Rates by model version, and delays, in bins of a second."""
    start_s = float(np.floor(arrivals.arrived_s[0])) if len(arrivals) else 0.0
    second = (arrivals.arrived_s - start_s).astype(np.int64)
    length = int(second.max(initial=-1)) + 1
    versions = tuple(np.unique(arrivals.version).tolist())
    rate = np.zeros((len(versions), length))
    for row, version in enumerate(versions):
        rate[row] = np.bincount(second[arrivals.version == version], minlength=length)
    median, p99 = np.full(length, np.nan), np.full(length, np.nan)
    known = ~np.isnan(arrivals.delay_s)
    bounds = np.searchsorted(second[known], np.arange(length + 1))
    delays = arrivals.delay_s[known]
    for number, (lo, hi) in enumerate(pairwise(bounds)):
        if hi > lo:
            median[number], p99[number] = np.percentile(delays[lo:hi], [50, 99])
    return Seconds(start_s, versions, rate, median, p99)
