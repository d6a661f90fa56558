"""What to do about states with numbers that are not finite: one remedy after the other, sensor by sensor.

Such a state is never written and none of its forecasts goes out. First its sensor's partition is restored, with this
sensor's state rebuilt from its recent readings, not from the changelog; other partitions flow on. If the same readings
lead there again, the state begins anew with the first of them, cold. If even that does not help, it is the model.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Sensors = Mapping[int, Sequence[str]]  # by partition


@dataclass(frozen=True)
class Remedies:
    """What to try for each sensor."""

    rebuild: dict[int, list[str]] = field(default_factory=dict)
    begin_anew: dict[int, list[str]] = field(default_factory=dict)
    hopeless: dict[int, list[str]] = field(default_factory=dict)


class Quarantine:
    """Remembers what has been tried since readings of a partition were last committed."""

    def __init__(self) -> None:
        self._tried: dict[tuple[int, str], int] = {}

    def next_remedies(self, unsound: Sensors) -> Remedies:
        """What comes next for each of these sensors, and is taken as tried from now on."""
        remedies = Remedies()
        ladder = (remedies.rebuild, remedies.begin_anew, remedies.hopeless)
        for partition, sensors in unsound.items():
            for sensor in sensors:
                tried = self._tried.get((partition, sensor), 0)
                ladder[min(tried, len(ladder) - 1)].setdefault(partition, []).append(sensor)
                self._tried[partition, sensor] = tried + 1
        return remedies

    def clear(self, partitions: Iterable[int] | None = None) -> None:
        """Readings of these were committed; none named: all are as they were after their last commit."""
        gone = None if partitions is None else set(partitions)
        self._tried = {} if gone is None else {key: n for key, n in self._tried.items() if key[0] not in gone}
