"""Metrics in Prometheus' form: histograms without locks, and pages that Prometheus can parse."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from prometheus_client.registry import Collector

from pipeline.observability.exposition import WORK_BOUNDS_S, Distribution, Exposition, by_label

BOUNDS = (0.5, 1.0, 2.0)


class Durations(Collector):
    def __init__(self, distribution: Distribution) -> None:
        self.distribution = distribution

    def collect(self) -> Iterator[Metric]:
        yield self.distribution.family("streamgru_test_seconds", "Durations of a test.")


@given(st.lists(st.sampled_from([0.0, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 1e9])))
def test_a_bucket_counts_the_values_up_to_its_bound(values: list[float]) -> None:
    one_by_one, together = Distribution(BOUNDS), Distribution(BOUNDS)
    for value in values:
        one_by_one.add(value)
    together.add_all(np.array(values, np.float64))
    for distribution in (one_by_one, together):
        samples = distribution.family("a_seconds", "A.").samples
        found = {sample.labels.get("le", sample.name): sample.value for sample in samples}
        expected = {repr(bound): sum(value <= bound for value in values) for bound in BOUNDS}
        assert found == expected | {"+Inf": len(values), "a_seconds_count": len(values), "a_seconds_sum": sum(values)}
        assert distribution.count == len(values)


def test_a_scrape_beside_a_writer_sees_whole_batches() -> None:
    distribution = Distribution(WORK_BOUNDS_S)
    exposition = Exposition("test", Durations(distribution))
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            distribution.add_all(np.array([0.25, 0.75]))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(50):
            (family,) = (
                each for each in parse(exposition.render().body.decode()) if each.name.endswith("test_seconds")
            )
            found = {sample.labels.get("le", sample.name): sample.value for sample in family.samples}
            assert found["streamgru_test_seconds_sum"] == found["+Inf"] / 2
            assert found["0.25"] * 2 == found["+Inf"] == found["streamgru_test_seconds_count"]
    finally:
        done.set()
        writer.join()


@pytest.mark.parametrize(
    ("accept", "parser", "content_type"),
    [
        ("", parse, "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text;version=1.0.0,*/*;q=0.1", parse_openmetrics, "application/openmetrics-text"),
        ("application/openmetrics-text;version=abc", parse, "text/plain; version=0.0.4; charset=utf-8"),
    ],
)
def test_a_page_has_the_form_that_was_asked_for(accept: str, parser: object, content_type: str) -> None:
    page = Exposition("test", Durations(Distribution(BOUNDS))).render(accept)
    assert page.content_type.startswith(content_type)
    names = {family.name for family in parser(page.body.decode())}  # type: ignore[operator]
    assert {"streamgru_test_seconds", "process_resident_memory_bytes"} <= names
    assert any(name.startswith("streamgru_build") for name in names)


def test_hostile_labels_stay_in_their_line() -> None:
    class Hostile(Collector):
        def collect(self) -> Iterator[Metric]:
            values = {'a"} 1\nforged 2': 3.0, "\ud800": 4.0, "\u202e": 5.0}
            yield by_label(GaugeMetricFamily("streamgru_hostile", "Hostile.", labels=["reason"]), values)

    body = Exposition("test", Hostile()).render().body.decode()
    (family,) = (each for each in parse(body) if each.name == "streamgru_hostile")
    assert [sample.value for sample in family.samples] == [3, 4, 5]
    assert "\nforged" not in body
