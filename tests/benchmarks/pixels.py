"""Time from a committed forecast to its pixels on the page, while readings arrive at the rate of ``latency``.

A browser shows one sensor. The page stamps each forecast after the frame that shows it was painted. A reader of
committed records, in a separate process, stamps the moment at which its poll returns the same forecast.
"""

import statistics
from typing import Any

import numpy as np

from pipeline.settings import Settings
from tests.benchmarks import latency
from tests.benchmarks.command import ForecastCommand, promote, register
from tests.benchmarks.page import Figure, Section
from tests.browser import Browser
from tests.integration.stream_rig import read_all, reading
from tests.page_rig import sensor_address
from tests.ports import free_port
from tests.serving import ServeCommand
from tests.waiting import wait_until

SENSORS = 100  # fewer than in ``latency``, so that the sensor on the page gets ten forecasts a second
WARM_UP_S = 10.0
SECONDS = 30
ROUNDS = 3
TIMEOUT_S = 120.0
# A message posted in a frame's callback arrives after the frame was painted.
STAMP = """
window.painted = {};
document.addEventListener("streamgru:forecasts", (event) => {
  const names = event.detail.rows.map((row) => `${row.partition}:${row.offset}`);
  requestAnimationFrame(() => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => {
      for (const name of names) window.painted[name] ??= performance.timeOrigin + performance.now();
    };
    channel.port2.postMessage(0);
  });
});
"""


def measure(base: Settings) -> Section:
    """The section of the page."""
    from_commit: list[latency.Delays] = []
    from_reading: list[latency.Delays] = []
    for number in range(1, ROUNDS + 1):
        committed, read = _round(base, number)
        print(f"round {number}: from commit: {_words(committed)}; from reading: {_words(read)}", flush=True)
        from_commit.append(committed)
        from_reading.append(read)
    shown = statistics.median(map(len, from_commit))
    return Section(
        "pixels",
        f"From a committed forecast to its pixels, at {latency.RATE:,} readings a second",
        [
            Figure("commit to pixel, median", f"{_median(from_commit, 50):.0f} ms"),
            Figure("commit to pixel, p99", f"{_median(from_commit, 99):.0f} ms"),
            Figure("reading to pixel, median", f"{_median(from_reading, 50):.0f} ms"),
            Figure("reading to pixel, p99", f"{_median(from_reading, 99):.0f} ms"),
        ],
        f"A headless Chromium shows the chart of one of {SENSORS} sensors; {shown:.0f} of its "
        f"forecasts per round, after {WARM_UP_S:g} s of warm-up. A forecast counts as committed when a "
        "`read_committed` consumer in a separate process has it, and as visible after the browser painted the frame. "
        "The difference is negative if the page shows the forecast before this consumer has it. "
        "Latency from a reading begins at the broker's time stamp. Feeder, forecaster, reader, broker, MLflow, the "
        "page's server and the browser share the machine. Figures are medians of the rounds.",
    )


def _round(base: Settings, number: int) -> tuple[latency.Delays, latency.Delays]:
    """Milliseconds from commit to pixel, and from reading to pixel, of the shown sensor's forecasts."""
    settings = latency.fresh_settings(base, f"pixels-{number}")
    promote(settings, register(settings))
    names = [f"sensor-{place:03d}" for place in range(SENSORS)]
    count = int((WARM_UP_S + SECONDS) * latency.RATE)
    messages = [reading(settings, names[place % SENSORS], place // SENSORS) for place in range(count)]
    servers, topics = settings.kafka.bootstrap_servers, settings.kafka.topics
    results: Any = latency.PROCESSES.Queue()
    with (
        ForecastCommand(settings, "bench") as process,
        ServeCommand(settings, free_port(), settings.home) as server,
        Browser() as browser,
    ):
        process.wait_for("are served", TIMEOUT_S)
        server.wait_until_ready()
        tab = browser.open("about:blank")
        with (
            latency.running_process(latency.read, servers, topics.forecasts, count, results) as reader,
            latency.running_process(latency.feed, servers, topics.readings, messages) as feeder,
        ):
            tab.go(f"{server.address}/")
            tab.wait_for("document.documentElement.dataset.ready === '' && document.querySelector('.row')", TIMEOUT_S)
            tab.go(sensor_address(server.address, names[0]))
            tab.wait_for("document.querySelector('#fan canvas')", TIMEOUT_S)
            tab.evaluate(STAMP)
            wait_until(
                lambda: tab.evaluate("true") and (not results.empty() or reader.exitcode or feeder.exitcode),
                count / latency.RATE + TIMEOUT_S,
                "all forecasts were seen",
            )
            seen: list[tuple[int, float]] = results.get(timeout=TIMEOUT_S)
        painted: dict[str, float] = tab.evaluate("window.painted")
    arrived = {(record.partition, record.offset): record.timestamp for record in read_all(settings, topics.readings)}
    return _delays(settings, seen, painted, arrived)


def _delays(
    settings: Settings, seen: list[tuple[int, float]], painted: dict[str, float], arrived: dict[tuple[int, int], int]
) -> tuple[latency.Delays, latency.Delays]:
    """The n-th record of a partition belongs to the n-th time at which the reader saw one of that partition."""
    times: dict[int, list[float]] = {}
    for partition, at in seen:
        times.setdefault(partition, []).append(at)
    places = dict.fromkeys(times, 0)
    readings_of: dict[int, list[int]] = {}
    for (partition, _), at in sorted(arrived.items()):
        readings_of.setdefault(partition, []).append(at)
    began = min(arrived.values())
    committed, read = [], []
    for record in read_all(settings, settings.kafka.topics.forecasts):
        place = places[record.partition]
        places[record.partition] += 1
        shown = painted.get(f"{record.partition}:{record.offset}")
        if shown is not None and readings_of[record.partition][place] >= began + WARM_UP_S * 1_000:
            committed.append(shown - times[record.partition][place])
            read.append(shown - readings_of[record.partition][place])
    assert committed, "the page showed none of the forecasts"
    return np.array(committed), np.array(read)


def _median(rounds: list[latency.Delays], percentile: float) -> float:
    return statistics.median(float(np.percentile(delays, percentile)) for delays in rounds)


def _words(delays: latency.Delays) -> str:
    return f"{len(delays)} forecasts, median {np.percentile(delays, 50):.0f} ms, p99 {np.percentile(delays, 99):.0f} ms"
