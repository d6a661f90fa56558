"""State records: their fields, their bytes, and the offset at which a replay begins."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.acceptance import NEVER_US
from model.config import ANCHORS, Adaptation, ModelConfig
from model.state import NO_OFFSET, blank_states, replay_start, state_dtype

ANCHOR_SPACING = 64

CONFIG = ModelConfig(
    features=("load", "heat", "wind"), targets=("heat",), cadence_us=3_600_000_000, horizon_steps=24, hidden_size=64
)


def test_a_sensor_of_three_features_takes_less_than_one_and_a_half_kilobytes() -> None:
    assert state_dtype(CONFIG).itemsize < 1_500


def test_records_are_packed_and_little_endian() -> None:
    dtype = state_dtype(CONFIG)
    assert dtype.itemsize == sum(dtype[name].itemsize for name in dtype.names or ())
    assert all(dtype[name].base.byteorder in "<=" for name in dtype.names or ())
    assert dtype["last_us"].str == "<i8"


def test_a_state_without_adaptation_has_no_bytes_for_it() -> None:
    names = state_dtype(CONFIG).names
    assert names is not None
    assert "adaptation" not in names
    for adaptation in (Adaptation("off", True), Adaptation("light"), Adaptation("full", True)):
        adapted = state_dtype(CONFIG, adaptation)
        assert adapted.names == (*names, "units", "unit_evidence", "adaptation")
        for name in adapted.names[len(names) :]:
            assert not any(blank_states(CONFIG, 2, adaptation)[name].tobytes())


def test_blank_states_have_no_readings() -> None:
    states = blank_states(CONFIG, 3)
    assert (states["last_us"] == NEVER_US).all()
    assert (states["steps"] == 0).all()
    for name in ("origin", "offset", "anchors"):
        assert (states[name] == NO_OFFSET).all()


@given(seed=st.integers(0, 2**16), rows=st.integers(1, 4))
def test_states_survive_encoding_to_bytes(seed: int, rows: int) -> None:
    dtype = state_dtype(CONFIG)
    raw = np.random.default_rng(seed).integers(0, 256, rows * dtype.itemsize, dtype=np.uint8).tobytes()
    assert np.frombuffer(raw, dtype).tobytes() == raw


def state_after(readings: int) -> np.void:
    """The record after ``readings`` accepted readings whose offsets are 1000, 1010, 1020, ..."""
    state = blank_states(CONFIG, 1)
    pushed = [1_000 + 10 * number for number in range(0, readings, ANCHOR_SPACING)][-ANCHORS:]
    if pushed:
        state["anchors"][0, -len(pushed) :] = pushed
    state["accepted"] = readings
    return state[0]  # type: ignore[no-any-return]


@given(readings=st.integers(1, 2_000), steps=st.integers(1, 400))
def test_a_replay_begins_at_the_last_anchor_that_is_far_enough_back(readings: int, steps: int) -> None:
    first = (replay_start(state_after(readings), steps, ANCHOR_SPACING) - 1_000) // 10
    replayed = readings - first
    oldest = max(0, (readings - 1) // ANCHOR_SPACING - ANCHORS + 1) * ANCHOR_SPACING
    assert replayed >= steps or first == oldest
    assert replayed < steps + ANCHOR_SPACING or first == 0


@pytest.mark.parametrize("readings", [1, 63, 64, 65])
def test_a_young_state_is_replayed_from_its_origin(readings: int) -> None:
    assert replay_start(state_after(readings), 320, ANCHOR_SPACING) == 1_000


def test_a_blank_state_has_nothing_to_replay() -> None:
    assert replay_start(blank_states(CONFIG, 1)[0], 10, ANCHOR_SPACING) == NO_OFFSET
