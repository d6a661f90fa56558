"""Chunks gathered on a device contain the numbers of the prepared arrays, for regular and irregular readings."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import device_data, inputs
from model.batches import Lane, chunks, scaled_labels
from model.config import ModelConfig
from model.device_data import DeviceData
from model.forecaster import Forecaster
from model.sequences import Sequences, build_sequences
from tests.series import joined

MINUTE_US = 60_000_000


def config(**changes: object) -> ModelConfig:
    fields: dict[str, object] = {
        "features": ("heat", "load"),
        "targets": ("load",),
        "cadence_us": MINUTE_US,
        "horizon_steps": 5,
        "season_steps": 7,
        "warmup_steps": 5,
        "lag_steps": 4,
        "profile_slots": 3,
    }
    return ModelConfig(**{**fields, **changes})  # type: ignore[arg-type]


def sequences(seed: int, jitter: float, gaps: float, sensors: int = 3, steps: int = 120) -> Sequences:
    """Sensors with jittered times, doubled readings, short and long gaps, missing values and a constant part."""
    random = np.random.default_rng(seed)
    times, values = [], []
    for _ in range(sensors):
        grid = np.cumsum(np.where(random.random(steps) < gaps, random.choice([2, 3, 40], size=steps), 1))
        moments = np.unique((grid + jitter * random.uniform(-1.0, 1.0, steps)) * MINUTE_US).astype(np.int64)
        both = random.normal(size=(len(moments), 2)) * 1e3 + 1e6
        both[random.random(both.shape) < 0.1] = np.nan
        both[:20, 1] = 5.0
        times.append(moments)
        values.append(both)
    return joined(times, values, ("heat", "load"), MINUTE_US, max_gap_steps=10)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    jitter=st.sampled_from([0.0, 0.3, 0.8]),
    gaps=st.sampled_from([0.0, 0.1]),
    targets=st.sampled_from([("load",), ("load", "heat")]),
    slots=st.sampled_from([0, 3]),
    stride=st.integers(1, 4),
    kept_numbers=st.sampled_from([0, 10**6]),
    axis_us=st.sampled_from([1, 150 * MINUTE_US, 2**62]),
)
def test_a_chunk_equals_the_prepared_arrays_bit_for_bit(
    seed: int,
    jitter: float,
    gaps: float,
    targets: tuple[str, ...],
    slots: int,
    stride: int,
    kept_numbers: int,
    axis_us: int,
) -> None:
    data = sequences(seed, jitter, gaps)
    chosen = config(targets=targets, profile_slots=slots)
    prepared = Forecaster(chosen).prepare(data)
    until_us = int(np.quantile(data.timestamp_us, 0.8))
    lanes = []
    for sensor in range(3):
        lo, hi = data.span(sensor, None, until_us)
        lanes += [
            Lane(prepared, lo, hi, (sensor,), lo + 7, until_us),
            Lane(prepared, lo + 9, hi - 30, (0,), lo + 9, until_us),
        ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_data, "_MOST_KEPT_NUMBERS", kept_numbers)
        patch.setattr(device_data, "_LONGEST_AXIS_US", axis_us)
        found = list(chunks(lanes, 16, stride))
    x = prepared.x
    for number, chunk in enumerate(found):
        steps = 0
        some_labels = False
        for row, lane in enumerate(lanes):
            index = np.arange(lane.lo + 16 * number, min(lane.lo + 16 * (number + 1), lane.hi))
            steps += len(index)
            n = len(index)
            np.testing.assert_array_equal(chunk.x[row, :n], x[index])
            np.testing.assert_array_equal(chunk.past[row, :n], prepared.past_inputs(index))
            assert not chunk.x[row, n:].any()
            assert not chunk.past[row, n:].any()
            wanted = np.full((chunk.x.shape[1], *chunk.labels.shape[2:]), np.nan)
            if n:
                wanted[:n] = scaled_labels(prepared, int(index[0]), int(index[-1]) + 1, until_us)
                wanted[:n][index < lane.loss_from] = np.nan
            wanted = wanted[chunk.scored]
            np.testing.assert_array_equal(chunk.valid[row].numpy() > 0, ~np.isnan(wanted))
            np.testing.assert_array_equal(chunk.labels[row], np.nan_to_num(wanted).astype(np.float32))
            some_labels |= bool((~np.isnan(wanted)).any())
        assert chunk.steps == steps
        assert chunk.labelled or not some_labels


def regular_and_irregular() -> Sequences:
    """Sensors a and c have a reading every minute, b has gaps and jitter."""
    irregular = sequences(1, 0.3, 0.1, sensors=1)
    irregular_us, steps = irregular.timestamp_us[irregular.observed], 90
    times = [np.arange(steps) * MINUTE_US, irregular_us, np.arange(steps) * MINUTE_US + 7]
    starts = np.cumsum([0, *map(len, times)])
    return build_sequences(
        ["a", "b", "c"],
        starts,
        np.concatenate(times),
        np.random.default_rng(0).normal(size=(starts[-1], 2)),
        np.arange(starts[-1]),
        features=("heat", "load"),
        cadence_us=MINUTE_US,
        max_gap_steps=10,
    )


def test_regular_and_irregular_sensors_share_a_chunk() -> None:
    data = regular_and_irregular()
    prepared = Forecaster(config()).prepare(data)
    spans = [data.span(sensor, None, None) for sensor in range(3)]
    assert DeviceData(torch.device("cpu"))[prepared].regular.tolist() == [True, False, True]
    chunk = next(chunks([Lane(prepared, lo, hi, (0,), lo, 10**18) for lo, hi in spans], 200))
    for row, (lo, hi) in enumerate(spans):
        wanted = scaled_labels(prepared, lo, hi, 10**18)
        np.testing.assert_array_equal(chunk.valid[row, : hi - lo].numpy() > 0, ~np.isnan(wanted))
        np.testing.assert_array_equal(chunk.labels[row, : hi - lo], np.nan_to_num(wanted).astype(np.float32))


def test_histories_longer_than_an_axis_of_the_search_have_all_their_labels() -> None:
    """Twenty sensors with 9,000 years each: together more than 2**62 microseconds."""
    century_us = 100 * 365 * 86_400_000_000
    random = np.random.default_rng(0)
    times = [np.cumsum(random.integers(80, 120, 90)) * (century_us // 100) for _ in range(20)]
    values = [random.normal(size=(90, 2)) for _ in times]
    data = joined(times, values, ("heat", "load"), century_us, max_gap_steps=10)
    assert sum(int(np.ptp(each)) for each in times) > device_data._LONGEST_AXIS_US
    prepared = Forecaster(config(cadence_us=century_us)).prepare(data)
    spans = [data.span(sensor, None, None) for sensor in range(20)]
    chunk = next(chunks([Lane(prepared, lo, hi, (0,), lo, 2**62) for lo, hi in spans], 200))
    for row, (lo, hi) in enumerate(spans):
        wanted = scaled_labels(prepared, lo, hi, 2**62)
        assert np.isfinite(wanted).any()
        np.testing.assert_array_equal(chunk.valid[row, : hi - lo].numpy() > 0, ~np.isnan(wanted))
        np.testing.assert_array_equal(chunk.labels[row, : hi - lo], np.nan_to_num(wanted).astype(np.float32))


def test_a_chunk_whose_lanes_are_all_warming_up_is_known_to_have_no_labels() -> None:
    prepared = Forecaster(config()).prepare(sequences(0, 0.0, 0.0))
    lanes = [Lane(prepared, lo, lo + 60, (0,), lo + 16, 10**18) for lo in (0, 120)]
    assert [chunk.labelled for chunk in chunks(lanes, 16)] == [False, True, True, True]


@pytest.mark.parametrize("missing", [slice(40, None), slice(0, None)])
def test_a_chunk_before_missing_values_is_known_to_have_no_labels(missing: slice) -> None:
    data = sequences(0, 0.0, 0.0)
    values = data.values.copy()
    values[missing, 1] = np.nan
    prepared = Forecaster(config()).prepare(replace(data, values=values))
    found = [chunk.labelled for chunk in chunks([Lane(prepared, 20, 100, (0,), 20, 10**18)], 20)]
    assert found == [missing.start > 0, False, False, False]


def test_lanes_of_two_data_sets_share_a_chunk() -> None:
    first, second = (Forecaster(config()).prepare(sequences(seed, 0.0, 0.0)) for seed in (0, 1))
    lanes = [
        Lane(second, 10, 40, (1,), 10, 10**18),
        Lane(first, 20, 60, (2,), 20, 10**18),
        Lane(second, 0, 40, (3,), 0, 10**18),
    ]
    chunk = next(chunks(lanes, 16, data=DeviceData(torch.device("cpu"))))
    assert chunk.rows.tolist() == [[1], [3], [2]]  # lanes of one data set lie side by side
    for row, (prepared, lo) in enumerate([(second, 10), (second, 0), (first, 20)]):
        np.testing.assert_array_equal(chunk.x[row], prepared.x[lo : lo + 16])


def test_tensors_on_a_cpu_share_the_memory_of_the_prepared_arrays() -> None:
    prepared = Forecaster(config()).prepare(sequences(0, 0.0, 0.0))
    tensors = DeviceData(torch.device("cpu"))[prepared]
    assert tensors._scaled_inputs.data_ptr() == prepared.scaled.ctypes.data
    assert tensors._level.data_ptr() == prepared.level.ctypes.data


def test_memory_of_the_data_stays_in_proportion_to_their_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one feature, 10 million steps take 0.7 GB beside their readings, 0.75 GB at the peak."""
    monkeypatch.setattr(inputs, "_BLOCK_STEPS", 1_024)
    monkeypatch.setattr(device_data, "_MOST_KEPT_NUMBERS", 0)
    sensors, steps = 50, 2_000
    times = [np.arange(steps) * MINUTE_US] * sensors
    values = [np.random.default_rng(sensor).normal(size=(steps, 1)) for sensor in range(sensors)]
    data = joined(times, values, ("load",), MINUTE_US, max_gap_steps=10)
    forecaster = Forecaster(config(features=("load",)))
    tracemalloc.start()
    try:
        prepared = forecaster.prepare(data)
        tensors = DeviceData(torch.device("cpu"))[prepared]
        kept, peak = (size / len(data) for size in tracemalloc.get_traced_memory())
    finally:
        tracemalloc.stop()
    assert tensors.regular.all()
    assert data.offset.dtype == np.int32
    assert kept < 72
    assert peak < 80
