"""The recovery of sensors with non-finite states, in three steps.

A non-finite state is never written, and its forecasts are never sent.

1. The sensor's partition is restored, and the sensor's state is rebuilt from its recent readings instead of the
   changelog. Other partitions keep running.
2. If the same readings lead to a non-finite state again, the state starts from scratch with the first of them.
3. If the state becomes non-finite even then, the model is at fault: the forecaster ends and names its version.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.errors import ModelUnusable
from pipeline.forecaster.champion import ChampionSource
from pipeline.forecaster.states.store import ServedModel
from pipeline.text.visible_text import visible

logger = logging.getLogger("streamgru.forecaster")

Sensors = Mapping[int, Sequence[str]]  # partition -> sensor ids


@dataclass(frozen=True)
class Remedies:
    """The next remedy of each sensor, by kind."""

    rebuild: dict[int, list[str]] = field(default_factory=dict)
    reset: dict[int, list[str]] = field(default_factory=dict)
    unrecoverable: dict[int, list[str]] = field(default_factory=dict)


class Quarantine:
    """Counts the recovery steps of each sensor since readings of its partition were last committed.

    Args:
        source: source of the model; its record of a faulty version is deleted, so the next start asks the registry.
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
                "partition %d: version %d made %d states non-finite; they are discarded: %s",
                partition,
                serving.version,
                len(sensors),
                ", ".join(sensors[:5]),
            )
        for partition, sensors in remedies.unrecoverable.items():
            self._source.clear_last_served()
            raise ModelUnusable(
                f"version {serving.version} of {self._model_name} makes non-finite forecasts for sensor "
                f"{visible(sensors[0])}, partition {partition}, even from a state that starts from scratch. Promote "
                "another version (`streamgru models` lists them), then start the forecaster again: it continues at the "
                "same reading"
            )
        for partition, sensors in remedies.reset.items():
            logger.error(
                "partition %d: states are non-finite again after a rebuild; resetting sensors: %s",
                partition,
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
        """Start again with the first remedy for partitions whose readings were committed; for all if None."""
        done = None if partitions is None else set(partitions)
        self._tried = {key: tries for key, tries in self._tried.items() if done is not None and key[0] not in done}
