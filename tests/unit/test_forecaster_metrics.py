"""Reports hold every counter, and a failed report does not stop the forecaster."""

import json
import logging
import urllib.request
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest

from pipeline.forecaster.metrics import Counters, HealthServer, Reporter, health_report
from pipeline.forecaster.stuck_detection import ForecasterState, Heartbeat
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
    port = free_port()
    server = HealthServer(
        "127.0.0.1", port, lambda: ForecasterState.SERVING, lambda: health_report(Heartbeat(), None, counters)
    )
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            assert answer.status == 200
            content: dict[str, object] = json.load(answer)
            return content
    finally:
        server.close()


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
