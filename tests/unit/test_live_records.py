"""Records that any producer may write to the topics: they neither end the follower nor fill its memory."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.serve import answers, reports
from pipeline.kafka.record_batch import FetchedRecord
from pipeline.kafka.topic_reader import LoggedRecord
from pipeline.live.event_ids import EventId
from pipeline.live.events import EventCursor
from pipeline.live.forecast_head import ForecastHead, HeadReader
from pipeline.live.letter_head import read_letter
from pipeline.live.view import LiveView
from pipeline.settings import Settings

SETTINGS = Settings(features=("a",), targets=("a",), horizon_steps=3)
READER = HeadReader(SETTINGS)
PARTITION = 2


def forecast(**parts: Any) -> bytes:
    """A forecast with other parts."""
    whole = {
        "sensor_id": "s",
        "issued_at": "2026-01-01T00:00:00Z",
        "cadence_s": 3600.0,
        "quantiles": {"a": {"0.1": [1.0, 1.0, 1.0], "0.5": [1.5, 1.5, 1.5], "0.9": [2.0, 2.0, 2.0]}},
        "model": {"name": "streamgru", "version": 1},
        "settings": "x",
        "input": {"topic": "readings", "partition": PARTITION, "offset": 3},
        "state": {"origin": 0, "steps": 1, "warm": True},
    }
    return json.dumps(whole | parts).encode()


UNREADABLE = [
    None,
    b"",
    b"{",
    b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"," + forecast()[1:],
    forecast(model={"name": "streamgru", "version": -1}),
    forecast(model={"name": "streamgru", "version": 2**32}),
    forecast(model={"name": "streamgru", "version": 2**70}),
    forecast(input={"topic": "readings", "partition": PARTITION, "offset": -1}),
    forecast(input={"topic": "readings", "partition": PARTITION, "offset": 2**63}),
    forecast(input={"topic": "readings", "partition": 0, "offset": 3}),
    forecast(issued_at="2026-01-01T00:00:00"),
    forecast(sensor_id=""),
    forecast(sensor_id="x" * 1_025),
    forecast(sensor_id="\ud800"),
    forecast(quantiles={"a": {"0.1": 512, "0.5": [1.0], "0.9": [2.0]}}),
    forecast(quantiles={"a": {"0.1": [], "0.5": [1.0], "0.9": [2.0]}}),
    forecast(quantiles={"a": {"0.1": [None], "0.5": [1.0], "0.9": [2.0]}}),
]


def read(value: bytes | None) -> ForecastHead | None:
    return READER.read(PARTITION, FetchedRecord(b"s", value, 7, [], 1))


def show(head: ForecastHead) -> None:
    """Index a forecast and send it, as the follower and the event hub do."""
    view = LiveView(SETTINGS, lambda: 0.0)
    indexed = view.add_forecasts([head], np.zeros(8, np.int64))
    (event,) = EventCursor(EventId(0, (0,) * 8, (0,) * 8, ())).forecast_events([head])
    assert EventId.decode(event.id.encode()) == event.id
    assert answers.encode(reports.event_row(view, head, indexed, 0))
    assert view.index.rows[0]["model"] == head.model


def test_a_forecast_is_read() -> None:
    head = read(forecast())
    assert head is not None
    assert list(head.first_step) == [1.0, 1.5, 2.0]
    show(head)


@pytest.mark.parametrize("value", UNREADABLE, ids=range(len(UNREADABLE)))
def test_a_record_that_is_not_a_forecast_is_left_out(value: bytes | None) -> None:
    assert read(value) is None


@given(st.binary(max_size=50), st.integers(0, 300))
def test_any_bytes_are_a_forecast_or_left_out(replacement: bytes, at: int) -> None:
    whole = forecast()
    head = read(whole[:at] + replacement + whole[at + len(replacement) :])
    if head is not None:
        show(head)


def letter(*, value: bytes = b"{", key: bytes | None = b"k", **headers: str) -> LoggedRecord:
    """A record of the dead letter topic with other headers."""
    ours = {"reason": "malformed", "detail": "no JSON", "topic": "readings", "partition": "1", "offset": "17"} | headers
    named: list[tuple[str, bytes | None]] = [(f"streamgru-{name}", text.encode()) for name, text in ours.items()]
    return LoggedRecord("readings.dlq", 0, key, value, 5, [("original", b"x" * 1_000), *named], 1)


def test_a_kept_dead_letter_holds_no_bytes_of_the_original_but_its_key() -> None:
    found = read_letter(letter(value=b"x" * 10_000, key=b"k" * 5_000, reason="r" * 5_000, detail="d" * 5_000))
    assert found is not None
    assert found.value is None
    assert found.headers == ()
    assert len(answers.encode(reports.letter(found))) < 2_000
    assert (found.partition, found.offset) == (1, 17)


@pytest.mark.parametrize("headers", [{"offset": "1" * 30}, {"partition": "-1"}, {"offset": "x"}])
def test_a_record_that_is_not_a_dead_letter_is_left_out(headers: dict[str, str]) -> None:
    assert read_letter(letter(**headers)) is None
