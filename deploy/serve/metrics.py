"""The metrics of ``streamgru serve``. Their number grows with the partitions, never with the sensors."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from deploy.serve.event_hub import EventHub
from pipeline.live.view import LiveView
from pipeline.observability.exposition import by_label
from pipeline.settings import Settings


class ServeMetrics(Collector):
    """Collects from a view."""

    def __init__(self, settings: Settings, view: LiveView, hub: EventHub) -> None:
        self._topic = settings.kafka.topics.readings
        self._view = view
        self._hub = hub

    def collect(self) -> Iterator[Metric]:
        """The present values."""
        with self._view.locked() as view:
            sensors, sensor_bytes = len(view.index.rows), view.index.sensor_bytes
            readings, forecasts, swaps = view.readings, view.forecasts, view.swaps_seen
            unreadable = view.unreadable_forecasts
            letters, lag, delays = dict(view.letters_by_reason), view.log.lag, view.delays
            is_stale, is_catching_up = view.stale_since_ms is not None, view.catch_up is not None
        yield GaugeMetricFamily("streamgru_serve_sensors", "Sensors with a forecast.", value=sensors)
        yield GaugeMetricFamily("streamgru_serve_sensor_bytes", "Memory of the sensors' rows.", value=sensor_bytes)
        yield CounterMetricFamily("streamgru_serve_readings", "Readings that arrived on the topic.", value=readings)
        yield CounterMetricFamily("streamgru_serve_forecasts", "Forecasts that were read.", value=forecasts)
        yield CounterMetricFamily(
            "streamgru_serve_unreadable_forecasts", "Records on the topic that are not forecasts.", value=unreadable
        )
        yield CounterMetricFamily("streamgru_serve_swaps", "Model swaps that forecasts showed.", value=swaps)
        yield by_label(
            CounterMetricFamily("streamgru_serve_dead_letters", "Dead letters that were read.", labels=["reason"]),
            letters,
        )
        family = GaugeMetricFamily(
            "streamgru_serve_lag_records",
            "Readings that the forecasters have not processed.",
            labels=["topic", "partition"],
        )
        for partition, records in lag.items():
            family.add_metric([self._topic, str(partition)], records)
        yield family
        yield delays.family(
            "streamgru_serve_visible_delay_seconds", "From the sending of a reading to its visible forecast."
        )
        yield GaugeMetricFamily("streamgru_serve_stale", "Whether no broker answers.", value=is_stale)
        yield GaugeMetricFamily(
            "streamgru_serve_catching_up", "Whether the look back is not read yet.", value=is_catching_up
        )
        yield GaugeMetricFamily("streamgru_serve_streams", "Open event streams.", value=self._hub.clients)
