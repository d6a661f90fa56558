"""The cost of metrics: the forecaster with and without a scrape of ``/metrics`` each second, in turns.

A separate process scrapes, as Prometheus does. Processor time is measured too, because it varies less than a rate on a
machine that does other work.
"""

import multiprocessing
import statistics
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from pipeline.settings import Settings
from tests.benchmarks import sides
from tests.benchmarks.command import named
from tests.benchmarks.page import Figure, Section
from tests.ports import free_port

SENSORS, STEPS = 1_000, 120
ROUNDS = 7
SCRAPE_EVERY_S = 1.0
QUANTILES = (0.1, 0.5, 0.9)
LEAST = 0.97
_PROCESSES = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Run:
    """One run of the forecaster over the topic."""

    rate: float  # readings a second
    cpu_s: float  # of this process, the threads of the health port included


def measure(base: Settings) -> Section:
    """The section of the page."""
    source = sides.fill(named(base, "metrics"), SENSORS, STEPS)
    _run(source, None)  # compiles and imports everything
    plain: list[Run] = []
    scraped: list[Run] = []
    scrapes: list[Scrapes] = []
    for number in range(ROUNDS):
        # Each side is first in every second round.
        for is_scraped in (number % 2 == 0, number % 2 == 1):
            if is_scraped:
                port = free_port()
                with scraping(port) as found:
                    scraped.append(_run(source, port))
                scrapes.append(found[0])
            else:
                plain.append(_run(source, None))
        print(
            f"round {number + 1}: {plain[-1].rate:,.0f} readings/s without, {scraped[-1].rate:,.0f} with "
            f"{scrapes[-1].count} scrapes; processor time {plain[-1].cpu_s:.2f} s and {scraped[-1].cpu_s:.2f} s",
            flush=True,
        )
    ratio = statistics.median(mine.rate / other.rate for mine, other in zip(scraped, plain, strict=True))
    cpu = statistics.median(other.cpu_s / mine.cpu_s for mine, other in zip(scraped, plain, strict=True))
    figures = [
        Figure("throughput with a scrape each second : without", f"{ratio:.3f}", f"≥ {LEAST}", ratio >= LEAST),
        Figure("... by processor time per reading", f"{cpu:.3f}"),
        Figure("time of a scrape, median", f"{statistics.median(each.median_ms for each in scrapes):.1f} ms"),
        Figure("series of a page", f"{max(each.series for each in scrapes)}"),
    ]
    how = (
        f"{SENSORS:,} sensors, {SENSORS * STEPS:,} readings, horizon 1, default settings, {ROUNDS} rounds; medians of "
        f"the rounds, in which the sides take turns. A separate process asks for `/metrics` every {SCRAPE_EVERY_S:g} s "
        "and parses the page."
    )
    return Section("metrics", "The cost of metrics", figures, how)


def _run(source: sides.Input, health_port: int | None) -> Run:
    began = time.process_time()
    rate = sides.forecast(source, 1, QUANTILES, health_port)
    return Run(rate, time.process_time() - began)


@dataclass(frozen=True)
class Scrapes:
    """The answered scrapes of one run."""

    count: int
    median_ms: float
    series: int  # of the last page


@contextmanager
def scraping(port: int) -> Iterator[list[Scrapes]]:
    """Scrape in a separate process; the list has one element after the context."""
    found: list[Scrapes] = []
    results: Any = _PROCESSES.Queue()
    ready, stop = _PROCESSES.Event(), _PROCESSES.Event()
    process = _PROCESSES.Process(target=scrape, args=(port, ready, stop, results), daemon=True)
    process.start()
    try:
        assert ready.wait(120), "the scraper did not start"  # it imports torch, which must not slow the run down
        yield found
        stop.set()
        found.append(results.get(timeout=60))
        assert found[0].count, "the forecaster answered no scrape"
    finally:
        process.terminate()
        process.join()


def scrape(port: int, ready: Any, stop: Any, results: Any) -> None:
    """Ask for the metrics until ``stop`` is set; attempts before the forecaster listens do not count."""
    ready.set()
    took_ms: list[float] = []
    series = 0
    while not stop.wait(SCRAPE_EVERY_S):
        began = time.perf_counter()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                body = answer.read()
        except OSError:
            continue
        took_ms.append((time.perf_counter() - began) * 1_000)
        series = sum(len(family.samples) for family in text_string_to_metric_families(body.decode()))
    results.put(Scrapes(len(took_ms), statistics.median(took_ms or [0.0]), series))
