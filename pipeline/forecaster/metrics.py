"""The metrics of a forecaster for Prometheus, made of the statistics that its loop keeps anyway."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from pipeline.dead_letter_form import REASONS
from pipeline.forecaster.counters import Counters
from pipeline.forecaster.stuck_detection import ForecasterState, HealthMonitor, Heartbeat, state_of
from pipeline.observability.exposition import DELAY_BOUNDS_S, WORK_BOUNDS_S, Distribution, by_label, one_of
from pipeline.text.visible_text import visible

_COUNTERS: Final = (  # attribute of Counters, name without "_total", documentation
    ("readings", "streamgru_readings", "Records of the readings topic that were processed and committed."),
    ("accepted", "streamgru_accepted_readings", "Readings that were stepped into the state of their sensor."),
    (
        "duplicates",
        "streamgru_duplicate_readings",
        "Readings with the time of their sensor's last accepted reading, or of a buffered one.",
    ),
    ("late", "streamgru_late_readings", "Readings older than the last accepted reading of their sensor."),
    (
        "held_lost",
        "streamgru_lost_buffered_readings",
        "Upper bound of the buffered readings that retention deleted before a restart.",
    ),
    ("outlooks", "streamgru_accepted_outlooks", "Records with outlooks that a sensor's state accepted."),
    ("late_outlooks", "streamgru_late_outlooks", "Records with outlooks no newer than those of their sensors."),
    (
        "unused_outlooks",
        "streamgru_unused_outlooks",
        "Records with outlooks whose sensors have no state on their partition.",
    ),
    ("ignored_features", "streamgru_ignored_features", "Values of features that the settings do not name."),
    ("forecasts", "streamgru_forecasts", "Forecasts that were committed."),
    (
        "withheld_values",
        "streamgru_withheld_values",
        "Values that counted as missing, because the sensor's unit may have changed.",
    ),
    ("unit_changes", "streamgru_unit_changes", "Features of sensors that were found in another unit."),
    ("transactions", "streamgru_transactions", "Transactions that were committed."),
    ("aborted", "streamgru_start_overs", "Times that all states were discarded, after an abort or a failed restore."),
    ("state_bytes", "streamgru_state_written_bytes", "Bytes of keys and values written to the changelog of states."),
    ("restores", "streamgru_restores", "Finished restores of states, each of one partition or several."),
    ("restored_sensors", "streamgru_restored_sensors", "Sensors whose states restores read from the changelog."),
    ("rebuilt_sensors", "streamgru_rebuilt_sensors", "Sensors whose states restores rebuilt from their readings."),
    ("cold_sensors", "streamgru_cold_sensors", "Sensors that a restore had to start with too few readings."),
    ("swaps", "streamgru_model_swaps", "Model versions that took over from another version in this process."),
    ("quarantined_states", "streamgru_quarantined_states", "Non-finite states that were discarded."),
)
_GAUGES: Final = (  # attribute of Counters, name, documentation
    ("held", "streamgru_buffered_readings", "Readings that wait in the reorder buffers."),
    ("swap_pause_s", "streamgru_last_model_swap_pause_seconds", "Seconds without a forecast at the last model swap."),
    ("restore_s", "streamgru_last_restore_seconds", "Duration of the last restore in seconds."),
)


class Timings:
    """Durations of a forecaster's work. The loop's thread adds to them, and other threads read them."""

    def __init__(self) -> None:
        self.step_s = Distribution(WORK_BOUNDS_S)
        self.commit_s = Distribution(WORK_BOUNDS_S)
        self.delay_s = Distribution(DELAY_BOUNDS_S)

    def add_batch(
        self, step_s: float, commit_s: float, sent_ms: Sequence[NDArray[np.int64]], committed_at: float
    ) -> None:
        """Count a committed batch.

        Args:
            sent_ms: Kafka timestamps of the readings, in any order; a negative one means that the record has none.
            committed_at: the time of day after the commit, in seconds since 1970.
        """
        self.step_s.add(step_s)
        self.commit_s.add(commit_s)
        for each in sent_ms:
            # A host's clock may be ahead of this one.
            self.delay_s.add_all(np.maximum(committed_at - each[each >= 0] / 1_000, 0.0))

    def families(self) -> Iterator[Metric]:
        """The metrics."""
        yield self.step_s.family(
            "streamgru_step_seconds", "Duration of decoding, stepping and encoding one batch that was committed."
        )
        yield self.commit_s.family("streamgru_commit_seconds", "Duration of one successful transaction.")
        yield self.delay_s.family(
            "streamgru_reading_to_forecast_seconds",
            "Time from the Kafka timestamp of a reading until its forecast is committed and visible. Readings that "
            "waited in the reorder buffer are left out.",
        )


class ForecasterCollector(Collector):
    """Reads the statistics of one forecaster at each scrape.

    Args:
        model_name: name of the registered model.
        monitor: returns the health monitor; None until the forecaster has connected.
    """

    def __init__(
        self,
        model_name: str,
        counters: Counters,
        timings: Timings,
        heartbeat: Heartbeat,
        monitor: Callable[[], HealthMonitor | None],
    ) -> None:
        self._model_name = model_name
        self._counters = counters
        self._timings = timings
        self._heartbeat = heartbeat
        self._monitor = monitor

    def collect(self) -> Iterator[Metric]:
        """All metrics, with their present values."""
        counters, monitor = self._counters, self._monitor()
        for attribute, name, documentation in _COUNTERS:
            yield CounterMetricFamily(name, documentation, value=getattr(counters, attribute))
        yield self._dead_letters()
        for attribute, name, documentation in _GAUGES:
            yield GaugeMetricFamily(name, documentation, value=getattr(counters, attribute))
        yield from self._timings.families()
        yield one_of(
            "streamgru_forecaster_state",
            "1 for the present state of the forecaster, 0 for the other states.",
            "state",
            [state.value for state in ForecasterState],
            state_of(monitor).value,
        )
        yield GaugeMetricFamily("streamgru_sensors", "Sensors with a state in memory.", value=self._heartbeat.sensors)
        yield by_label(
            GaugeMetricFamily(
                "streamgru_lag_readings",
                "Offsets from the next reading to process to the end of its partition, as of the last check.",
                labels=["partition"],
            ),
            {} if monitor is None else monitor.lag,
        )
        yield from self._last_times()
        if counters.model_version is not None:
            served = {"model": visible(self._model_name), "version": str(counters.model_version)}
            yield InfoMetricFamily("streamgru_model", "Registered model and version that serve.", value=served)

    def _dead_letters(self) -> CounterMetricFamily:
        family = CounterMetricFamily(
            "streamgru_dead_letters", "Records that were set aside on the topic of dead letters.", labels=["reason"]
        )
        # Each reason from the start: Prometheus cannot tell how much a new series has grown.
        return by_label(family, dict.fromkeys(REASONS, 0) | self._counters.dead_letters)

    def _last_times(self) -> Iterator[Metric]:
        # The loop keeps monotonic times.
        offset_s = time.time() - time.monotonic()
        for moment, what in ((self._heartbeat.polled, "poll"), (self._heartbeat.committed, "commit")):
            if moment is not None:
                yield GaugeMetricFamily(
                    f"streamgru_last_{what}_timestamp_seconds",
                    f"Time of the last {what}, in seconds since 1970.",
                    value=round(moment + offset_s, 3),
                )
