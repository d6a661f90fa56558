"""The reorder buffer equals a brute-force version of its rule, and has the properties that recovery needs."""

import time
from collections.abc import Iterable
from itertools import pairwise
from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.acceptance import ACCEPTED, DUPLICATE, LATE, NEVER_US, classify
from model.reorder_buffer import BUFFERED, GracePeriod, can_release, reorder

Stream = list[tuple[int, int, int]]
Integers = NDArray[np.int64]

CADENCE_US = 10
SENSORS = 3
# (sensor, timestamp, offsets skipped before it); dense, with buffered, late, repeated and off-grid readings
streams = st.lists(
    st.tuples(st.integers(0, SENSORS - 1), st.integers(0, 30).map(lambda half: half * 5), st.sampled_from([0, 0, 3])),
    max_size=40,
)
graces = st.builds(
    lambda wait, offsets: GracePeriod(CADENCE_US, wait, offsets),
    st.sampled_from([5, 10, 20, 25, 60, 1_000]),
    st.sampled_from([2, 5, 12, 10_000]),
)


def arrays(stream: Stream) -> tuple[Integers, Integers, Integers]:
    codes = np.array([sensor for sensor, _, _ in stream], np.int64)
    moments = np.array([moment for _, moment, _ in stream], np.int64)
    offsets = np.cumsum([1 + skipped for _, _, skipped in stream]).astype(np.int64)
    return codes, moments, offsets


def by_hand(readings: Iterable[tuple[int, int]], grace: GracePeriod, end: int) -> tuple[dict[int, int], list[int]]:
    """Verdicts and the offsets in step order for one sensor's (timestamp, offset), by the rule taken literally."""
    verdicts: dict[int, int] = {}
    steps: list[int] = []
    last: int | None = None
    buffered: dict[int, int] = {}  # timestamp -> offset

    def release(now: int) -> None:
        nonlocal last
        while buffered:
            earliest, newest = min(buffered), max(buffered)
            filled = last is None or earliest - last <= 1.5 * CADENCE_US
            waited = newest - earliest >= grace.wait_us
            aged = any(now - offset >= grace.offsets for offset in buffered.values())
            if not (filled or waited or aged):
                return
            last = earliest
            steps.append(buffered.pop(earliest))
            verdicts[steps[-1]] = ACCEPTED

    for moment, offset in readings:
        release(offset)
        around = sorted(buffered if last is None else [last, *buffered])
        earlier = [other for other in around if other < moment]
        later = [other for other in around if other > moment]
        adjacent = earlier and later and later[0] - earlier[-1] <= 1.5 * CADENCE_US
        if moment in around:
            verdicts[offset] = DUPLICATE
        elif (later and not earlier) or adjacent:
            verdicts[offset] = LATE
        else:
            verdicts[offset] = BUFFERED
            buffered[moment] = offset
        release(offset)
    release(end)
    return verdicts, steps


@settings(deadline=None)
@given(streams, graces, st.integers(0, 20))
def test_verdicts_and_order_follow_the_rule(stream: Stream, grace: GracePeriod, beyond: int) -> None:
    codes, moments, offsets = arrays(stream)
    end = int(offsets[-1]) + 1 + beyond if len(stream) else 0
    reordering = reorder(codes, moments, offsets, grace, end=end)
    for sensor in range(SENSORS):
        mine = codes == sensor
        verdicts, steps = by_hand(zip(moments[mine].tolist(), offsets[mine].tolist(), strict=True), grace, end)
        assert reordering.verdicts[mine].tolist() == list(verdicts.values())
        assert offsets[reordering.order][codes[reordering.order] == sensor].tolist() == steps


@settings(deadline=None)
@given(streams, graces, st.lists(st.integers(0, 40), max_size=5))
def test_any_micro_batches_give_the_same_result_without_classifying_idle_sensors_again(
    stream: Stream, grace: GracePeriod, cuts: list[int]
) -> None:
    codes, moments, offsets = arrays(stream)
    end = int(offsets[-1]) + 1 if len(stream) else 0
    whole = reorder(codes, moments, offsets, grace, end=end)
    last_us = np.full(SENSORS, NEVER_US)
    buffered = np.empty(0, np.intp)
    verdicts = np.full(len(stream), -1, np.int8)
    order, may_anchor, as_of = [], [], []
    bounds = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    for low, high in pairwise(bounds):
        new, now = np.arange(low, high), int(offsets[high - 1]) + 1
        sensors, places = np.unique(codes[buffered], return_inverse=True)
        ready = can_release(places, moments[buffered], offsets[buffered], grace, last_us[sensors], now)
        moves = (ready | np.isin(sensors, codes[new]))[places]
        buffered, idle = buffered[moves], buffered[~moves]
        rows = np.concatenate([buffered, new])
        part = reorder(codes[rows], moments[rows], offsets[rows], grace, last_us, now)
        again = part.verdicts[: len(buffered)]
        assert np.isin(again, [BUFFERED, ACCEPTED]).all(), "a buffered reading stays buffered or is released"
        verdicts[rows] = part.verdicts
        stepped = rows[part.order]
        np.maximum.at(last_us, codes[stepped], moments[stepped])
        order += stepped.tolist()
        may_anchor += part.may_anchor.tolist()
        as_of += part.as_of.tolist()
        buffered = np.sort(np.concatenate([idle, rows[part.verdicts == BUFFERED]]))
    assert verdicts.tolist() == whole.verdicts.tolist()
    for sensor in range(SENSORS):
        mine = [i for i in order if codes[i] == sensor]
        assert mine == [i for i in whole.order.tolist() if codes[i] == sensor]
    assert dict(zip(order, may_anchor, strict=True)) == dict(
        zip(whole.order.tolist(), whole.may_anchor.tolist(), strict=True)
    )
    assert dict(zip(order, as_of, strict=True)) == dict(zip(whole.order.tolist(), whole.as_of.tolist(), strict=True))
    assert (whole.as_of >= offsets[whole.order]).all(), "no reading is released before it comes"
    for sensor in range(SENSORS):
        assert (np.diff(whole.as_of[codes[whole.order] == sensor]) >= 0).all(), "steps follow the order of releases"


@settings(deadline=None)
@given(
    streams.filter(bool), graces, st.lists(st.integers(-1, 4), min_size=SENSORS, max_size=SENSORS), st.integers(0, 9)
)
def test_can_release_finds_the_sensors_that_reorder_releases(
    stream: Stream, grace: GracePeriod, steps: list[int], beyond: int
) -> None:
    codes, moments, offsets = arrays(stream)
    last_us = np.array([NEVER_US if step < 0 else step * CADENCE_US for step in steps])
    later = moments > last_us[codes]
    sensors, codes = np.unique(codes[later], return_inverse=True)
    moments, offsets, last_us = moments[later], offsets[later], last_us[sensors]
    end = int(offsets[-1]) + 1 + beyond if len(offsets) else 0
    reordering = reorder(codes, moments, offsets, grace, last_us, end)
    found = can_release(codes, moments, offsets, grace, last_us, end)
    assert np.flatnonzero(found).tolist() == np.unique(codes[reordering.order]).tolist()


@settings(deadline=None)
@given(streams, graces, st.integers(0, 20))
def test_a_replay_from_an_anchor_steps_every_later_reading_in_the_same_order(
    stream: Stream, grace: GracePeriod, beyond: int
) -> None:
    stream = [(0, moment, skipped) for _, moment, skipped in stream]
    codes, moments, offsets = arrays(stream)
    end = int(offsets[-1]) + 1 + beyond if len(stream) else 0
    whole = reorder(codes, moments, offsets, grace, end=end)
    steps = offsets[whole.order].tolist()
    for number in np.flatnonzero(whole.may_anchor).tolist():
        rows = offsets >= steps[number]
        again = reorder(codes[rows], moments[rows], offsets[rows], grace, end=end)
        assert offsets[rows][again.order].tolist() == steps[number:]
    later = np.append(offsets[whole.order], offsets[whole.verdicts == BUFFERED])  # buffered readings are stepped last
    assert whole.may_anchor.tolist() == [later[at] == later[at:].min() for at in range(len(steps))]


@settings(deadline=None)
@given(streams)
def test_verdicts_without_grace_equal_those_of_classify(stream: Stream) -> None:
    codes, moments, offsets = arrays(stream)
    reordering = reorder(codes, moments, offsets, GracePeriod(CADENCE_US, 0))
    assert reordering.verdicts.tolist() == classify(codes, moments).tolist()
    assert reordering.order.tolist() == np.flatnonzero(reordering.verdicts == ACCEPTED).tolist()
    assert reordering.may_anchor.all()


@settings(deadline=None)
@given(st.lists(st.integers(0, SENSORS - 1), max_size=60), st.integers(1, 5), st.randoms())
def test_readings_shuffled_within_grace_are_accepted_and_stepped_in_order(
    sensors: list[int], grace_steps: int, random: Random
) -> None:
    """Within grace, a reading arrives after readings that are at most ``grace_steps`` cadences newer."""
    taken = [0] * SENSORS
    stream = []
    for sensor in sensors:
        first = taken[sensor] == 0
        delay = -1 if first else random.uniform(0, grace_steps)  # a sensor's first reading arrives first
        stream.append((taken[sensor] + delay, sensor, taken[sensor] * CADENCE_US, 0))
        taken[sensor] += 1
    stream = [row[1:] for row in sorted(stream)]
    codes, moments, offsets = arrays(stream)
    reordering = reorder(codes, moments, offsets, GracePeriod(CADENCE_US, grace_steps * CADENCE_US))
    assert (reordering.verdicts == ACCEPTED).all()
    for sensor in range(SENSORS):
        mine = moments[reordering.order][codes[reordering.order] == sensor]
        assert mine.tolist() == [step * CADENCE_US for step in range(taken[sensor])]


def test_a_reading_behind_a_gap_is_buffered_until_the_newest_reading_exceeds_the_grace() -> None:
    grace = GracePeriod(CADENCE_US, 2 * CADENCE_US)
    moments = np.array([0, 20, 30, 40, 10])
    reordering = reorder(np.zeros(5, int), moments, np.arange(5), grace)
    assert reordering.verdicts.tolist() == [ACCEPTED] * 4 + [LATE]
    assert reorder(np.zeros(3, int), moments[:3], np.arange(3), grace).verdicts.tolist() == [
        ACCEPTED,
        BUFFERED,
        BUFFERED,
    ]
    filled = reorder(np.zeros(4, int), moments[[0, 1, 2, 4]], np.arange(4), grace)
    assert moments[[0, 1, 2, 4]][filled.order].tolist() == [0, 10, 20, 30]


def test_a_buffered_reading_of_a_silent_sensor_is_released_at_the_offset_limit() -> None:
    grace = GracePeriod(CADENCE_US, 1_000, offsets=100)
    codes, moments, offsets = np.zeros(2, int), np.array([0, 50]), np.array([0, 1])
    assert reorder(codes, moments, offsets, grace, end=100).verdicts.tolist() == [ACCEPTED, BUFFERED]
    assert reorder(codes, moments, offsets, grace, end=101).verdicts.tolist() == [ACCEPTED, ACCEPTED]


def test_the_time_to_reorder_grows_linearly_with_the_buffered_readings_of_a_sensor() -> None:
    def seconds(buffered: int) -> float:
        moments = np.append(np.delete(np.arange(buffered + 2), 1), 1) * CADENCE_US  # the gap is filled at the end
        zeros, taken = np.zeros(len(moments), int), []
        for _ in range(3):
            began = time.thread_time()  # CPU time of this thread, unaffected by other processes
            reordering = reorder(zeros, moments, np.arange(len(moments)), GracePeriod(CADENCE_US, 10**12))
            taken.append(time.thread_time() - began)
            assert moments[reordering.order].tolist() == sorted(moments.tolist())
        return min(taken)

    assert seconds(20_000) < 40 * seconds(2_000)
