"""The normaliser is causal, bitwise equal in batch and stream, independent of units, and robust."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.config import ModelConfig
from model.inputs import (
    age_inputs,
    calendar_inputs,
    elapsed_inputs,
    fit_spread,
    input_size,
    prepare,
    scaled_inputs,
)
from model.normaliser import Normaliser, NormaliserState, NormaliserTrace, profile_slots
from model.sequences import Sequences, build_sequences
from model.step_kernel import MAX_DISTANCE_SCALES

HOUR_US = 3_600_000_000
NO_OUTLOOKS = np.empty((2, 0))


def config(**changes: object) -> ModelConfig:
    fields: dict[str, object] = {
        "features": ("load", "heat"),
        "targets": ("heat",),
        "cadence_us": HOUR_US,
        "horizon_steps": 2,
        "season_steps": 6,
        "lag_steps": 5,
        "profile_slots": 6,
    }
    return ModelConfig(**{**fields, **changes})  # type: ignore[arg-type]


def walk(seed: int, steps: int, missing: float = 0.0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    values = np.cumsum(rng.normal(size=(steps, 2)), axis=0) + 5 * np.sin(np.arange(steps) / 6 * 2 * np.pi)[:, None]
    values[rng.random((steps, 2)) < missing] = np.nan
    return values


def sequences(*sensors: NDArray[np.float64], shape: ModelConfig) -> Sequences:
    lengths = [len(values) for values in sensors]
    return build_sequences(
        [f"s{number}" for number in range(len(sensors))],
        np.concatenate([[0], np.cumsum(lengths)]),
        np.concatenate([np.arange(length) * HOUR_US for length in lengths]),
        np.concatenate(sensors),
        np.concatenate([np.arange(length) for length in lengths]),
        features=shape.features,
        cadence_us=HOUR_US,
        max_gap_steps=shape.max_gap_steps,
    )


def stepped(shape: ModelConfig, values: NDArray[np.float64]) -> NormaliserTrace:
    """One sensor, all its steps in one call."""
    normaliser = Normaliser(shape, np.ones(shape.feature_count))
    return normaliser.step(NormaliserState.blank(shape, 1), values, [1] * len(values), np.zeros(len(values), bool))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    slots=st.sampled_from([0, 4, 6]),
    season=st.sampled_from([1, 6, 10]),
)
def test_a_batch_gives_the_bits_of_single_steps(seed: int, lengths: list[int], slots: int, season: int) -> None:
    shape = config(profile_slots=slots, season_steps=season)
    sensors = [walk(seed + number, length, missing=0.2) for number, length in enumerate(lengths)]
    together = prepare(shape, np.array([2.0, 3.0]), sequences(*sensors, shape=shape), NO_OUTLOOKS)
    normaliser = Normaliser(shape, np.array([2.0, 3.0]))
    for number, values in enumerate(sensors):
        norm = NormaliserState.blank(shape, 1)
        for step, row in enumerate(values):
            trace = normaliser.step(norm, row[None], [1], np.zeros(1, bool))
            moment, elapsed = np.array([step * HOUR_US]), np.array([min(step, 1)], np.float32)
            at = int(together.sequences.starts[number]) + step
            of_values = np.concatenate([scaled_inputs(trace), age_inputs(trace.age)], axis=2).reshape(1, -1)
            alone = np.concatenate([of_values, elapsed_inputs(elapsed), calendar_inputs(moment)], axis=1)
            np.testing.assert_array_equal(together.x[at], alone[0])
            np.testing.assert_array_equal(together.level[at], trace.levels[0, 1:, 1])
            np.testing.assert_array_equal(together.scale[at], trace.scale[0, 1:])


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    steps=st.integers(1, 70),
    slots=st.integers(0, 9),
    season=st.integers(1, 12),
    lags=st.integers(0, 8),
)
def test_lags_and_profile_equal_ring_buffers_filled_step_by_step(
    seed: int, steps: int, slots: int, season: int, lags: int
) -> None:
    shape = config(profile_slots=slots, season_steps=season, lag_steps=lags)
    values = walk(seed, steps, missing=0.2)
    past = prepare(shape, np.ones(2), sequences(values, shape=shape), NO_OUTLOOKS)
    norm = NormaliserState.blank(shape, 1)
    normaliser = Normaliser(shape, np.ones(2))
    P = profile_slots(shape)
    ring: list[float] = []
    for step, row in enumerate(values):
        trace = normaliser.step(norm, row[None], [1], np.zeros(1, bool))
        if trace.count[0, 1] == 1.0 and not np.isnan(row[1]):
            ring = [float(trace.last[0, 1])] * lags
        elif trace.count[0, 1]:
            ring = [float(trace.last[0, 1]), *ring][:lags]
        profile = norm.profile[0, 0]
        own = step % season * P // season if P else 0
        around = [profile[(own + 1 + slot) % P] for slot in range(P)]
        level, scale = trace.levels[0, 1, 1], trace.scale[0, 1]
        unit = 1.0 / scale if scale > 0 else 0.0
        expected = [(value - level) * unit for value in ring or [0.0] * lags] + [value * unit for value in around]
        found = past.past_inputs(np.array([step]))[0]
        np.testing.assert_allclose(found, np.clip(expected, -32, 32).astype(np.float32), rtol=1e-6, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), at=st.integers(0, 39))
def test_no_step_depends_on_later_readings(seed: int, at: int) -> None:
    shape = config()
    values = walk(seed, 40, missing=0.1)
    changed = values.copy()
    changed[at + 1 :] = 1e6
    one, other = (prepare(shape, np.ones(2), sequences(each, shape=shape), NO_OUTLOOKS) for each in (values, changed))
    np.testing.assert_array_equal(one.x[: at + 1], other.x[: at + 1])
    index = np.arange(at + 1)
    np.testing.assert_array_equal(one.past_inputs(index), other.past_inputs(index))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    factor=st.sampled_from([1e-12, 0.01, 1.8, 1e6, 1e20]),
    shift=st.sampled_from([0.0, 32.0, -1e3]),
)
def test_a_change_of_unit_only_changes_level_and_scale(seed: int, factor: float, shift: float) -> None:
    shape = config()
    values = walk(seed, 80, missing=0.1)
    values[0] = 0.5  # without a first value the level would be 0 in every unit
    plain = prepare(shape, np.ones(2), sequences(values, shape=shape), NO_OUTLOOKS)
    other = prepare(shape, np.ones(2), sequences(values * factor + shift * factor, shape=shape), NO_OUTLOOKS)
    np.testing.assert_allclose(other.x, plain.x, atol=1e-4)
    np.testing.assert_allclose(other.scale, plain.scale * factor, rtol=1e-8)
    np.testing.assert_allclose(other.level, (plain.level + shift) * factor, atol=1e-8 * factor * (1 + abs(shift)))


def test_the_first_levels_are_plain_means() -> None:
    values = np.array([[1.0, 10.0], [3.0, 20.0], [8.0, 60.0]])
    trace = stepped(config(season_steps=100), values)
    np.testing.assert_allclose(trace.levels[:, :, 1], [[1, 10], [2, 15], [4, 30]])


def test_a_constant_sensor_has_scale_zero_and_inputs_of_zero() -> None:
    shape = config()
    prepared = prepare(shape, np.ones(2), sequences(np.full((500, 2), 0.1), shape=shape), NO_OUTLOOKS)
    assert (prepared.scale == 0.0).all()
    assert (prepared.level == 0.1).all()
    assert np.isfinite(prepared.x).all()
    assert (prepared.x[:, :4] == 0.0).all()


def test_a_missing_value_only_updates_its_age() -> None:
    shape = config()
    values = walk(3, 30)
    norm = NormaliserState.blank(shape, 1)
    normaliser = Normaliser(shape, np.ones(2))
    normaliser.step(norm, values, [1] * 30, np.zeros(30, bool))
    before = {name: array.copy() for name, array in norm.arrays().items()}
    normaliser.step(norm, np.full((1, 2), np.nan), [1], np.zeros(1, bool))
    for name, array in norm.arrays().items():
        expected = before[name] + 1.0 if name == "age" else before[name]
        np.testing.assert_array_equal(array, expected)


def test_a_reset_clears_the_normaliser_state() -> None:
    shape = config()
    values = walk(4, 30)
    norm = NormaliserState.blank(shape, 1)
    normaliser = Normaliser(shape, np.ones(2))
    reset = np.zeros(30, bool)
    reset[20] = True
    trace = normaliser.step(norm, values, [1] * 30, reset)
    np.testing.assert_array_equal(trace.levels[20:], stepped(shape, values[20:]).levels)
    assert trace.steps[-1] == 10


@pytest.mark.parametrize("extreme", [1e30, -1e30, 1e12])
def test_an_extreme_reading_barely_moves_level_and_scale(extreme: float) -> None:
    shape = config(season_steps=24)
    values = walk(5, 400)
    values[300, 1] = extreme
    calm, upset = stepped(shape, walk(5, 400)), stepped(shape, values)
    assert np.isfinite(upset.scale).all()
    assert upset.scale[300, 1] < 2 * calm.scale[300, 1]
    assert abs(upset.levels[301, 1, 1] - calm.levels[301, 1, 1]) <= MAX_DISTANCE_SCALES * calm.scale[300, 1] / 24 * 1.5


@pytest.mark.parametrize("factor", [1e-3, 1e3, 1e6])
def test_a_new_scale_is_followed_within_150_steps(factor: float) -> None:
    shape = config(season_steps=24)
    rng = np.random.default_rng(6)
    values = rng.normal(size=(2_000, 2))
    values[1_000:] *= factor
    values[1_000:] += 100 * factor
    trace = stepped(shape, values)
    recovered = 150  # number of steps; the level averages over a season, and the scale grows by up to 17 % a step
    assert abs(trace.levels[1_000 + recovered, 1, 1] / (100 * factor) - 1) < 0.1


def test_the_spread_of_a_smooth_feature_is_larger_than_that_of_a_rough_one() -> None:
    rng = np.random.default_rng(7)
    smooth = 10 * np.sin(np.arange(3_000) / 24 * 2 * np.pi)
    shape = config(season_steps=24)
    data = sequences(np.stack([smooth, rng.normal(size=3_000)], axis=1), shape=shape)
    rough_smooth = fit_spread(shape, data, 2_000 * HOUR_US)
    assert rough_smooth[0] > 3
    assert rough_smooth[1] == pytest.approx(0.7, abs=0.1)


@pytest.mark.parametrize("flat_days", [20, 45])
def test_a_feature_that_is_constant_at_the_end_keeps_its_spread_in_bounds(flat_days: int) -> None:
    shape = config(season_steps=24)
    walk = np.random.default_rng(8).normal(size=(3_000, 2))
    moving = fit_spread(shape, sequences(walk, shape=shape), 3_000 * HOUR_US)
    rested = walk.copy()
    rested[3_000 - 24 * flat_days :, 0] = 0.0
    rested[3_000 - 24 * 6 :, 1] = 0.0
    alone = fit_spread(shape, sequences(np.stack([walk[:, 0], rested[:, 1]], axis=1), shape=shape), 3_000 * HOUR_US)
    spread = fit_spread(shape, sequences(rested, shape=shape), 3_000 * HOUR_US)
    assert spread[0] <= 16.0
    assert alone[1] > moving[1]
    assert spread[1] == alone[1]  # the other feature has no influence


def test_the_spread_of_a_feature_without_changes_or_readings_is_one() -> None:
    shape = config()
    data = sequences(np.full((50, 2), 3.0), shape=shape)
    np.testing.assert_array_equal(fit_spread(shape, data, 50 * HOUR_US), [1.0, 1.0])
    np.testing.assert_array_equal(fit_spread(shape, data, 0), [1.0, 1.0])


def test_inputs_have_the_declared_size() -> None:
    shape = config()
    assert prepare(shape, np.ones(2), sequences(walk(1, 5), shape=shape), NO_OUTLOOKS).x.shape == (5, input_size(shape))


def test_training_sees_values_in_one_unit() -> None:
    """Labels after a change of unit are converted too, so that the change is never a label."""
    values = walk(3, 600) + 50.0
    changed = values.copy()
    changed[400:, 0] *= 1_000.0
    prepared = prepare(config(), np.ones(2), sequences(changed, shape=config()), NO_OUTLOOKS)
    own = prepared.sequences.values
    np.testing.assert_array_equal(own[:400], values[:400])
    np.testing.assert_array_equal(own[:, 1], values[:, 1])
    np.testing.assert_allclose(own[450:], values[450:])
    assert np.isnan(own[400:450, 0]).sum() == np.isnan(own[:, 0]).sum() > 0
