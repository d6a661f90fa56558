"""Reports hold every counter, and a failed report does not stop the forecaster."""

import json
import logging
import re
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from kafka import TopicPartition
from prometheus_client.parser import text_string_to_metric_families

from pipeline.forecaster.counters import Counters, Reporter
from pipeline.forecaster.health import Statistics, answers, health_report, probe_paths
from pipeline.forecaster.metrics import Timings
from pipeline.forecaster.micro_batch import MicroBatch, MicroBatchBuilder
from pipeline.forecaster.states.store import ServedModel
from pipeline.forecaster.stuck_detection import ForecasterState, HealthMonitor, Heartbeat
from pipeline.kafka.record_batch import FetchedRecord
from pipeline.messages import encode_reading
from pipeline.observability.health_server import HealthServer
from pipeline.settings import Settings
from tests.integration.stream_rig import START_US, small_forecaster
from tests.ports import free_port

LETTERS = {"malformed-json": 42, "[/markup]": 3, "bad-timestamp": 1}


def full() -> Counters:
    """Counters with a different, non-zero value each."""
    counters = Counters()
    for value, name in enumerate((each.name for each in fields(Counters)), start=7):
        setattr(counters, name, Counter(LETTERS) if name == "dead_letters" else value)
    return counters


def test_the_file_holds_every_counter(tmp_path: Path) -> None:
    path = tmp_path / "stats.json"
    Reporter(full(), path).report()
    written = json.loads(path.read_text())
    assert written["dead_letters"] == LETTERS
    assert written.keys() == {each.name for each in fields(Counters)} - {"started"} | {"uptime_s"}
    assert all(written.values())


def test_the_log_line_counts_dead_letters_in_total_and_by_reason() -> None:
    line = full().line()
    assert " dead_letters=46 " in line
    assert "dead_letters.malformed-json=42" in line


def test_the_log_line_shows_only_counts_that_are_not_0() -> None:
    assert re.fullmatch(r"readings=3 uptime_s=10\S*", Counters(readings=3, started=time.monotonic() - 10).line())


def test_added_batches_sum_up_dead_letters_by_reason() -> None:
    counters = full()
    counters.add(Counters(dead_letters=Counter({"malformed-json": 8})))
    assert counters.content()["dead_letters"]["malformed-json"] == 50


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_answer_with_every_counter(path: str) -> None:
    answered = probe(path, full())
    assert answered["counters"]["dead_letters"] == LETTERS
    assert answered["state"] == "serving"


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_of_a_healthy_forecaster_succeed_if_the_report_fails(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    broken = full()
    broken.dead_letters = Counter({("a", "tuple"): 1})  # type: ignore[dict-item]
    answered = probe(path, broken)
    assert answered["state"] == "serving"
    assert "cannot report the details: TypeError" in answered["trouble"]
    assert "the answer to the probe contains only the state" in caplog.text


def probe(path: str, counters: Counters) -> dict[str, object]:
    paths = probe_paths(lambda: ForecasterState.SERVING, lambda: health_report(Heartbeat(), None, counters))
    page = paths[path]("")
    assert (page.status, page.content_type) == (200, "application/json")
    content: dict[str, object] = json.loads(page.body)
    return content


def test_a_failing_report_is_logged_once_and_does_not_raise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = full()
    broken.dead_letters = Counter({("a", "tuple"): 1})  # type: ignore[dict-item]
    reporter = Reporter(broken, tmp_path / "stats.json")
    with caplog.at_level(logging.INFO, "streamgru.forecaster"):
        reporter.report()
        reporter.report()
    assert caplog.text.count("cannot report the counts: TypeError") == 1
    caplog.clear()
    broken.dead_letters.clear()
    reporter.report()
    assert json.loads((tmp_path / "stats.json").read_text())["forecasts"] == broken.forecasts
    assert "cannot" not in caplog.text


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Reporter(full(), tmp_path / "missing" / "stats.json").report()
    assert f"cannot write the counts to {tmp_path}/missing/stats.json: No such file or directory" in caplog.text


# --- metrics ----------------------------------------------------------------------------------------------------------


def samples(body: bytes) -> dict[tuple[str, tuple[str, ...]], float]:
    """(name, values of the labels) -> value, of each series."""
    families = text_string_to_metric_families(body.decode())
    found = [sample for family in families for sample in family.samples]
    read = {(sample.name, tuple(sample.labels.values())): sample.value for sample in found}
    assert len(read) == len(found), "a series is repeated"
    return read


def lagging_monitor(partitions: int) -> HealthMonitor:
    monitor = HealthMonitor(Settings(), Heartbeat(), 1.0, is_fatal=False)
    monitor.lag = {partition: 10 + partition for partition in range(partitions)}
    monitor.state = ForecasterState.RESTORING
    return monitor


def full_statistics() -> Statistics:
    timings = Timings()
    timings.add_batch(0.02, 0.3, [np.array([1_000, 2_000, -1])], committed_at=2.05)
    return Statistics(full(), timings, Heartbeat(polled=1.0, committed=2.0, sensors=12))


def test_metrics_agree_with_every_counter() -> None:
    statistics = full_statistics()
    counters = statistics.counters
    monitor = lagging_monitor(2)
    page = answers("pumps", statistics, lambda: monitor)["/metrics"]("")
    assert page.status == 200
    found = samples(page.body)
    shown = set(found.values())
    left_out = {"started", "dead_letters", "implausible_times", "model_version"}
    assert {name for name, value in vars(counters).items() if name not in left_out and value not in shown} == set()
    for reason, count in LETTERS.items():
        assert found["streamgru_dead_letters_total", (reason,)] == count
    assert found["streamgru_dead_letters_total", ("bad-key",)] == 0
    assert found["streamgru_model_info", ("pumps", str(counters.model_version))] == 1
    assert found["streamgru_lag_readings", ("1",)] == 11
    assert found["streamgru_forecaster_state", ("restoring",)] == 1
    assert found["streamgru_forecaster_state", ("serving",)] == 0
    assert found["streamgru_sensors", ()] == 12
    assert found["streamgru_step_seconds_bucket", ("0.025",)] == 1
    assert found["streamgru_commit_seconds_sum", ()] == 0.3
    assert found["streamgru_reading_to_forecast_seconds_count", ()] == 2
    assert found["streamgru_reading_to_forecast_seconds_bucket", ("0.05",)] == 1
    for line in page.body.decode().splitlines():
        if line.startswith("# HELP streamgru_"):
            assert line.endswith("."), line


def test_the_number_of_series_does_not_grow_with_the_sensors() -> None:
    """The statistics come from real batches at 8 partitions, with dead letters in between."""
    few, many = (count_series(sensors) for sensors in (100, 100_000))
    assert few == many <= 500


def count_series(sensors: int) -> int:
    settings = Settings(horizon_steps=1, forecaster={"adaptation": "off", "calibration": False})
    serving = ServedModel(1, small_forecaster(settings, hidden_size=4), settings)
    builder = MicroBatchBuilder(settings, serving, "group")
    partitions = range(settings.kafka.partitions)
    assert len(partitions) == 8
    statistics = Statistics()
    monitor = lagging_monitor(len(partitions))
    for partition in partitions:
        serving.table.add_partition(partition)
        names = [f"sensor-{number}" for number in range(partition, sensors, len(partitions))]
        sent = [encode_reading(name, START_US, {"value": 1.0}) for name in names]
        records = [
            FetchedRecord(key, value if number % 1_000 else None, number, [], 1_000 * number)
            for number, (key, value) in enumerate(sent)
        ]
        commit(statistics, builder.build({TopicPartition(settings.kafka.topics.readings, partition): records}))
    statistics.heartbeat.sensors = len(serving.table)
    statistics.counters.implausible_times = {f"sensor-{number}": 1 for number in range(sensors)}
    statistics.counters.model_version = 1
    found = samples(answers("streamgru", statistics, lambda: monitor)["/metrics"]("").body)
    assert found["streamgru_sensors", ()] == statistics.counters.accepted > 0.9 * sensors
    assert found["streamgru_reading_to_forecast_seconds_count", ()] == statistics.counters.accepted
    assert found["streamgru_state_written_bytes_total", ()] > 100 * statistics.counters.accepted
    return len(found)


def commit(statistics: Statistics, batch: MicroBatch) -> None:
    statistics.counters.add(batch.counts)
    statistics.timings.add_batch(batch.step_s, 0.1, batch.sent_ms, 1e9)


@contextmanager
def listening_forecaster(statistics: Statistics) -> Iterator[str]:
    port = free_port()
    server = HealthServer("127.0.0.1", port, answers("pumps", statistics, lambda: None), "--health-port")
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.close()


def test_a_scrape_that_fails_is_one_warning_and_the_probes_still_answer(caplog: pytest.LogCaptureFixture) -> None:
    statistics = full_statistics()
    statistics.counters.restore_s = "broken"  # type: ignore[assignment]
    with listening_forecaster(statistics) as url:
        for _ in range(3):
            with pytest.raises(urllib.error.HTTPError, match="500") as refused:
                urllib.request.urlopen(f"{url}/metrics", timeout=5)
            assert refused.value.read().startswith(b"cannot collect the metrics: ValueError: ")
        assert caplog.text.count("GET /metrics answers 500, and everything else continues") == 1
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"{url}/readyz", timeout=5)
        statistics.counters.restore_s = 1.5
        with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
            assert samples(answer.read())["streamgru_last_restore_seconds", ()] == 1.5
        assert "the metrics can be collected again" in caplog.text


def test_an_unknown_path_names_the_known_ones() -> None:
    with (
        listening_forecaster(Statistics()) as url,
        pytest.raises(urllib.error.HTTPError, match=r"404.*/healthz, /readyz, /metrics"),
    ):
        urllib.request.urlopen(f"{url}/metric", timeout=5)
