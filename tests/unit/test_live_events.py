"""Live events: any cut, any lost connection and any restart give each forecast, dead letter and swap exactly once."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.live.event_ids import BadEventId, EventId, topics_mark
from pipeline.live.events import EventCursor, ForecastsEvent, Swap
from pipeline.live.forecast_head import ForecastHead
from pipeline.live.replay import Ranges, Reset, plan_replay

offsets = st.lists(st.integers(0, 2**62), max_size=20)


@given(st.integers(0, 2**32 - 1), offsets, offsets, st.data())
def test_an_event_id_survives_the_way_to_the_browser_and_back(
    mark: int, forecasts: list[int], letters: list[int], data: st.DataObject
) -> None:
    models = data.draw(st.lists(st.integers(0, 10**6), min_size=len(forecasts), max_size=len(forecasts)))
    one = EventId(mark, tuple(forecasts), tuple(models), tuple(letters))
    text = one.encode()
    assert EventId.decode(text) == one
    assert text.isascii()
    assert not set(text) & set("\n\r\0 ")


@given(st.one_of(st.text(), st.binary().map(lambda raw: raw.decode("latin-1"))))
def test_any_other_text_is_refused(text: str) -> None:
    with suppress(BadEventId):
        assert EventId.decode(text).encode() == text.rstrip("=")


@given(st.text("ABCDEFGHIJabc0123456789-_", max_size=60))
def test_a_text_like_an_id_is_refused_or_an_id(text: str) -> None:
    with suppress(BadEventId):
        EventId.decode("AQ" + text)


def head(partition: int, offset: int, model: int) -> ForecastHead:
    return ForecastHead(b"sensor", partition, offset, 0, 0, model, True, partition, offset, ())


@dataclass
class Browser:
    """Remembers the last id, and every row that it was shown."""

    id: EventId | None = None
    rows: list[tuple[int, int]] = field(default_factory=list)
    swaps: list[Swap] = field(default_factory=list)

    def show(self, events: Sequence[ForecastsEvent]) -> None:
        for event in events:
            self.id = event.id
            self.rows += [(shown.partition, shown.offset) for shown in event.heads]
            self.swaps += event.swaps


def replayed(log: Sequence[ForecastHead], since: EventId, until: EventId, cut: int) -> list[ForecastsEvent]:
    """The events of a replay, some records at a time; the records of a partition stay in order."""
    planned = plan_replay(since, until, (0, 0), (0,), 1_000)
    assert isinstance(planned, Ranges)
    missed = [
        one for one in log if planned.forecasts[one.partition][0] <= one.offset < planned.forecasts[one.partition][1]
    ]
    cursor, found = EventCursor(since), []
    for begin in range(0, len(missed), cut):
        found += cursor.forecast_events(missed[begin : begin + cut])
    return found


@given(
    st.lists(st.tuples(st.integers(0, 1), st.sampled_from([1, 1, 1, 2, 3])), max_size=60),
    st.lists(st.tuples(st.integers(1, 8), st.sampled_from(["keep", "lose", "lose some", "restart"])), max_size=40),
    st.integers(1, 7),
)
def test_each_row_and_swap_is_shown_once_through_lost_connections_and_restarts(
    records: list[tuple[int, int]], turns: list[tuple[int, str]], cut: int
) -> None:
    ends, log = [0, 0], []
    for partition, model in records:
        log.append(head(partition, ends[partition], model))
        ends[partition] += 1
    start = EventId(7, (0, 0), (0, 0), (0,))
    live, browser, connected, begin = EventCursor(start), Browser(start), True, 0
    for size, fate in [*turns, (len(log), "keep")]:
        batch = log[begin : begin + size]
        begin += size
        if fate == "restart":  # the new process begins at the ends of the topics, and knows no model
            now = [sum(1 for one in log[:begin] if one.partition == number) for number in range(2)]
            models = [
                next((one.model for one in reversed(log[:begin]) if one.partition == number), 0) for number in range(2)
            ]
            live, connected = EventCursor(EventId(7, tuple(now), tuple(models), (0,))), False
            continue
        events = live.forecast_events(batch)
        if not connected:  # the browser comes back before these events, and they wait in its queue
            until = EventId(7, *_before(live.id, batch), (0,))
            assert browser.id is not None
            browser.show(replayed(log, browser.id, until, cut))
            connected = True
        if fate == "keep":
            browser.show(events)
        else:
            browser.show(events[: len(events) // 2] if fate == "lose some" else [])
            connected = False
    if not connected:
        assert browser.id is not None
        browser.show(replayed(log, browser.id, live.id, cut))
    assert sorted(browser.rows) == sorted((one.partition, one.offset) for one in log)
    for partition in range(2):
        of_partition = [offset for number, offset in browser.rows if number == partition]
        assert of_partition == sorted(of_partition)
        models = [one.model for one in log if one.partition == partition]
        changes = [(at, models[at - 1], models[at]) for at in range(1, len(models)) if models[at] != models[at - 1]]
        shown = [
            (swap.offset, swap.from_version, swap.to_version) for swap in browser.swaps if swap.partition == partition
        ]
        assert shown == changes


def _before(after: EventId, batch: Sequence[ForecastHead]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Offsets before a batch; models do not matter where a replay ends."""
    counts = [sum(1 for one in batch if one.partition == number) for number in range(2)]
    return tuple(end - count for end, count in zip(after.forecasts, counts, strict=True)), after.models


def test_forecasts_of_one_poll_are_cut_into_events_of_limited_size() -> None:
    cursor = EventCursor(EventId(0, (0,), (0,), ()))
    events = cursor.forecast_events([head(0, offset, 1) for offset in range(450)])
    assert [len(event.heads) for event in events] == [200, 200, 50]
    assert [event.id.forecasts for event in events] == [(200,), (400,), (450,)]


SINCE, UNTIL = EventId(1, (5, 5), (1, 1), (0,)), EventId(1, (9, 5, 3), (1, 1, 1), (2,))


def test_a_partition_that_was_added_is_sent_from_its_beginning() -> None:
    assert plan_replay(SINCE, UNTIL, (0, 0, 0), (0,), 99) == Ranges(((5, 9), (5, 5), (0, 3)), ((0, 2),))


@pytest.mark.parametrize(
    ("since", "firsts", "most", "reason"),
    [
        (EventId(2, (5, 5), (1, 1), (0,)), (0, 0, 0), 99, "recreated"),
        (EventId(1, (10, 5), (1, 1), (0,)), (0, 0, 0), 99, "unknown-id"),
        (EventId(1, (5,) * 4, (1,) * 4, (0,)), (0, 0, 0), 99, "unknown-id"),
        (SINCE, (7, 0, 0), 99, "deleted"),
        (SINCE, (0, 0, 0), 3, "too-far"),
    ],
)
def test_events_that_cannot_be_sent_are_a_reset(
    since: EventId, firsts: tuple[int, ...], most: int, reason: str
) -> None:
    found = plan_replay(since, UNTIL, firsts, (0,), most)
    assert isinstance(found, Reset)
    assert found.reason == reason


def test_records_deleted_before_the_id_do_not_matter() -> None:
    assert isinstance(plan_replay(SINCE, UNTIL, (5, 7, 0), (0,), 99), Ranges)


def test_another_topic_of_the_same_name_has_another_mark() -> None:
    assert topics_mark(["a", "b"]) != topics_mark(["a", "c"])
