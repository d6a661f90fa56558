"""The remedies for non-finite states: one after the other, sensor by sensor.

A non-finite state is never written, and none of its forecasts is sent. First the sensor's partition is restored, and
the sensor's state is rebuilt from its recent readings instead of the changelog; other partitions keep running. If the
same readings lead to a non-finite state again, the state starts from scratch with the first of these readings. If even
that does not help, the model is at fault.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.errors import ModelUnusable
from pipeline.forecaster.champion import ChampionSource
from pipeline.forecaster.state_store import ServedModel

logger = logging.getLogger("streamgru.forecaster")

Sensors = Mapping[int, Sequence[str]]  # partition -> sensor ids


@dataclass(frozen=True)
class Remedies:
    """The next remedy of each sensor, by kind."""

    rebuild: dict[int, list[str]] = field(default_factory=dict)
    reset: dict[int, list[str]] = field(default_factory=dict)
    unrecoverable: dict[int, list[str]] = field(default_factory=dict)


class Quarantine:
    """Remembers which remedies were tried since readings of a partition were last committed.

    Args:
        source: of the model; it forgets a version that no remedy helps, so the next start asks the registry.
    """

    def __init__(self, model_name: str, source: ChampionSource) -> None:
        self._model_name = model_name
        self._source = source
        self._tried: dict[tuple[int, str], int] = {}

    def recover(self, non_finite: Sensors, serving: ServedModel) -> Sensors:
        """Apply the next remedy to sensors with non-finite states.

        Returns:
            The partitions to restore, with the sensors to rebuild from readings.

        Raises:
            ModelUnusable: no remedy is left.
        """
        remedies = self.next_remedies(non_finite)
        for partition, sensors in non_finite.items():
            logger.error(
                "version %d makes the states of %d sensors of partition %d non-finite; they are in quarantine: %s",
                serving.version,
                len(sensors),
                partition,
                ", ".join(sensors[:5]),
            )
        for partition, sensors in remedies.unrecoverable.items():
            self._source.clear_last_served()
            raise ModelUnusable(
                f"version {serving.version} of {self._model_name} makes non-finite forecasts for sensor {sensors[0]}, "
                f"partition {partition}, even from a state that starts from scratch; promote another version "
                "(`streamgru models` lists them) and start the forecaster again: it continues at the same reading"
            )
        for partition, sensors in remedies.reset.items():
            logger.error(
                "states rebuilt from readings are non-finite again; these sensors start from scratch: %s",
                ", ".join(sensors[:5]),
            )
            serving.reset(partition, sensors)
        return remedies.rebuild

    def next_remedies(self, non_finite: Sensors) -> Remedies:
        """The next remedy for each of these sensors; it counts as tried from now on."""
        remedies = Remedies()
        ladder = (remedies.rebuild, remedies.reset, remedies.unrecoverable)
        for partition, sensors in non_finite.items():
            for sensor in sensors:
                tried = self._tried.get((partition, sensor), 0)
                ladder[min(tried, len(ladder) - 1)].setdefault(partition, []).append(sensor)
                self._tried[partition, sensor] = tried + 1
        return remedies

    def clear(self, partitions: Iterable[int] | None = None) -> None:
        """Start again with the first remedy: readings of these partitions were committed. None: all partitions."""
        gone = None if partitions is None else set(partitions)
        self._tried = {} if gone is None else {key: n for key, n in self._tried.items() if key[0] not in gone}
