"""``streamgru serve``: delay of events and answers beside a running stream, memory, and its cost to a forecaster.

A feeder, `streamgru forecast`, a plain reader of committed records, `streamgru serve` and a client of its API share the
machine with the broker.
"""

import contextlib
import statistics
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil

from pipeline.kafka.topics import ensure_topics
from pipeline.settings import Settings
from tests.benchmarks import sides
from tests.benchmarks.command import ForecastCommand, named, promote, register
from tests.benchmarks.latency import PROCESSES, RATE, TIMEOUT_S, feed, read, running_process
from tests.benchmarks.page import Figure, Section
from tests.integration.stream_rig import publish, reading, rounds
from tests.ports import free_port
from tests.serving import Browser, ServeCommand
from tests.waiting import wait_until

SENSORS, MANY_SENSORS = 10_000, 100_000
SECONDS = 30
WARM_UP_S = 10.0  # left out
ASK_EVERY_S = 0.05
MOST_MIB, MOST_SENSOR_BYTES = 200.0, 200.0
COST_SENSORS, COST_STEPS, COST_ROUNDS = 200, 600, 5
LEAST_SHARE = 0.97
PATHS = (
    "/api/status",
    "/api/sensors?limit=50",
    "/api/sensors?search=77&limit=50",
    "/api/sensor/forecast?sensor=sensor-00042",
    "/api/sensor/history?sensor=sensor-00042&count=3&steps=1",
)


def measure(base: Settings) -> Section:
    """The section of the page."""
    live = measure_live(base)
    print(live, flush=True)
    many = measure_memory(base, MANY_SENSORS)
    print(many, flush=True)
    shares = measure_cost(base)
    share = statistics.median(shares)
    per_sensor = max(live["bytes per sensor"], many["bytes per sensor"])
    resident = max(live["resident MiB"], many["resident MiB"])
    figures = [
        Figure(f"committed forecast to event, {RATE:,} readings a second, median", f"{live['event median']:.0f} ms"),
        Figure("... p99", f"{live['event p99']:.0f} ms"),
        Figure(f"answer of the API, {SENSORS:,} sensors, beside the stream, median", f"{live['answer median']:.0f} ms"),
        Figure("... p99", f"{live['answer p99']:.0f} ms"),
        Figure(f"resident memory, {SENSORS:,} sensors, after the stream", f"{live['resident MiB']:.0f} MiB"),
        Figure(
            f"resident memory, {MANY_SENSORS:,} sensors",
            f"{many['resident MiB']:.0f} MiB",
            f"≤ {MOST_MIB:g} MiB",
            resident <= MOST_MIB,
        ),
        Figure(
            "memory per sensor, id and row",
            f"{per_sensor:.0f} bytes",
            f"≤ {MOST_SENSOR_BYTES:g} bytes",
            per_sensor <= MOST_SENSOR_BYTES,
        ),
        Figure(
            "a forecaster's throughput in a backlog, with a page open and /metrics scraped : alone",
            f"{share:.2f}",
            f"≥ {LEAST_SHARE:.2f}",
            share >= LEAST_SHARE,
        ),
    ]
    rows = [f"| {path} | {times[0]:.0f} ms | {times[1]:.0f} ms |" for path, times in live["answers"].items()]
    return Section(
        "serve",
        "The live page",
        figures,
        f"{SENSORS:,} sensors, {RATE:,} readings a second for {SECONDS} s, the first {WARM_UP_S:g} s left out. A "
        "committed forecast counts from the moment at which a plain `read_committed` consumer has it. One client asks "
        f"for the next of the addresses {1 / ASK_EVERY_S:.0f} times a second. The cost is the median of {COST_ROUNDS} "
        f"rounds (all: {', '.join(f'{one:.2f}' for one in shares)}), in which a forecaster steps "
        f"{COST_SENSORS * COST_STEPS:,} readings, once alone and once with `streamgru serve`, the events of a "
        "sensor's page and a scrape each second; two cores are shared with the broker.",
        "\n".join(["| address | median | p99 |", "|---|---|---|", *rows]),
    )


def measure_live(base: Settings) -> dict[str, Any]:
    """Delays in ms, and the memory at the end."""
    settings = named(base, "serve-live", serve={"refresh_s": 0.0})
    ensure_topics(settings)
    promote(settings, register(settings))
    names = [f"sensor-{number:05d}" for number in range(SENSORS)]
    first = publish(settings, rounds(settings, names, range(2)))  # every sensor is known before
    messages = [reading(settings, names[number % SENSORS], 2 + number // SENSORS) for number in range(SECONDS * RATE)]
    servers, topics = settings.kafka.bootstrap_servers, settings.kafka.topics
    results: Any = PROCESSES.Queue()
    total = first + len(messages)
    with (
        ForecastCommand(settings, "bench") as forecaster,
        ServeCommand(settings, free_port(), settings.home) as serve,
        running_process(read, servers, topics.forecasts, total, results) as reader,
        Browser(serve.address) as browser,
    ):
        forecaster.wait_for("are served", TIMEOUT_S)
        serve.wait_until_ready()
        wait_until(lambda: serve.json("/api/status")["sensors"] == SENSORS, TIMEOUT_S, "all sensors are known")
        wait_until(lambda: serve.json("/api/status")["forecasts"] == first, TIMEOUT_S, "the backlog is read")
        begun_s = time.time() + WARM_UP_S
        with asking(serve) as answers, running_process(feed, servers, topics.readings, messages):
            limit_s = SECONDS + TIMEOUT_S
            wait_until(lambda: not results.empty() or reader.exitcode, limit_s, "all forecasts were seen")
            seen: list[tuple[int, float]] = results.get()
        wait_until(lambda: serve.json("/api/status")["forecasts"] == total, TIMEOUT_S, "all forecasts were read")
        time.sleep(1.0)
        sensor_bytes = _metric(serve, "streamgru_serve_sensor_bytes") / SENSORS
        resident = psutil.Process(serve.process.pid).memory_info().rss / 2**20
        arrived = _arrivals(browser)
    delays = []
    for partition in range(settings.kafka.partitions):
        committed_ms = [at for where, at in seen if where == partition]
        shown_ms = arrived[partition]
        committed_ms = committed_ms[len(committed_ms) - len(shown_ms) :]
        delays += [shown - at for shown, at in zip(shown_ms, committed_ms, strict=True) if at >= begun_s * 1_000]
    times = {path: np.array([took for asked, took in found if asked >= begun_s]) for path, found in answers.items()}
    every = np.concatenate(list(times.values()))
    return {
        "event median": float(np.percentile(delays, 50)),
        "event p99": float(np.percentile(delays, 99)),
        "answer median": float(np.percentile(every, 50)),
        "answer p99": float(np.percentile(every, 99)),
        "answers": {
            path: (float(np.percentile(found, 50)), float(np.percentile(found, 99))) for path, found in times.items()
        },
        "resident MiB": resident,
        "bytes per sensor": sensor_bytes,
    }


def measure_memory(base: Settings, sensors: int) -> dict[str, float]:
    """Resident memory after a look back over the forecasts of this number of sensors."""
    settings = named(base, f"serve-{sensors}", serve={"refresh_s": 0.0, "look_back_records": 1_000_000})
    ensure_topics(settings)
    promote(settings, register(settings))
    names = [f"sensor-{number:06d}" for number in range(sensors)]
    publish(settings, rounds(settings, names, range(1)))
    with ForecastCommand(settings, "bench"), ServeCommand(settings, free_port(), settings.home) as serve:
        wait_until(lambda: _sensors(serve) == sensors, 3 * TIMEOUT_S, f"{sensors:,} sensors are known")
        serve.json("/api/sensors?sort=name&limit=200")
        serve.json("/api/sensors?search=99&limit=200")
        return {
            "resident MiB": psutil.Process(serve.process.pid).memory_info().rss / 2**20,
            "bytes per sensor": _metric(serve, "streamgru_serve_sensor_bytes") / sensors,
        }


def measure_cost(base: Settings) -> list[float]:
    """The forecaster's rate with `streamgru serve` beside it, divided by its rate alone; one per round."""
    source = sides.fill(named(base, "serve-cost", serve={"refresh_s": 0.0}), COST_SENSORS, COST_STEPS)
    shares = []
    for number in range(COST_ROUNDS):
        alone = sides.forecast(source, 24, (0.1, 0.5, 0.9))
        made = sides.again(source.settings, horizon_steps=24, quantiles=(0.1, 0.5, 0.9))
        settings = Settings(**made.model_dump(exclude_none=True))  # a variable cannot hold None
        with ServeCommand(settings, free_port(), settings.home) as serve:
            serve.wait_until_ready()
            with running_process(look, serve.address):
                beside = sides.forecast_into(settings, source.readings).rate
        shares.append(beside / alone)
        print(f"round {number + 1}: {alone:,.0f} readings/s alone, {beside:,.0f} beside", flush=True)
    return shares


@contextlib.contextmanager
def asking(serve: ServeCommand) -> Iterator[dict[str, list[tuple[float, float]]]]:
    """Ask for the addresses in turn within the context: address -> (time of day in s, duration in ms) per answer."""
    found: dict[str, list[tuple[float, float]]] = {path: [] for path in PATHS}

    def ask(number: int) -> None:
        path = PATHS[number % len(PATHS)]
        asked, began = time.time(), time.perf_counter()
        serve.get(path)
        found[path].append((asked, (time.perf_counter() - began) * 1_000))

    with _repeating(ask, ASK_EVERY_S):
        yield found


def look(address: str, ready: Any) -> None:
    """Read the status events and those of one sensor, as the page does, and scrape /metrics each second.

    It runs in a process of its own: the forecaster that is measured would wait for the threads of its process.
    """
    with Browser(address, "/api/events?sensor=sensor-00042"):
        ready.set()
        while True:
            time.sleep(1.0)
            with urllib.request.urlopen(f"{address}/metrics") as answer:
                answer.read()


@contextlib.contextmanager
def _repeating(act: Any, interval_s: float) -> Iterator[None]:
    stopped = threading.Event()

    def run() -> None:
        number = 0
        while not stopped.wait(interval_s):
            act(number)
            number += 1

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join(30)


def _arrivals(browser: Browser) -> dict[int, list[float]]:
    """By partition: ms since the epoch at which each forecast arrived."""
    found: dict[int, list[float]] = {}
    for (name, data), at in zip(browser.events, browser.arrived_s, strict=True):
        if name == "forecasts":
            for row in data["rows"]:
                found.setdefault(row["partition"], []).append(at * 1_000)
    return found


def _sensors(serve: ServeCommand) -> int:
    try:
        return int(serve.json("/api/status")["sensors"])
    except OSError:
        return -1


def _metric(serve: ServeCommand, name: str) -> float:
    lines = serve.get("/metrics").decode().splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])
