"""The compiled step is the network that PyTorch defines and trains, and its sums and functions have one order."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model import step_kernel
from model.acceptance import NEVER_US
from model.adaptation import AdaptedSteps, Adapter
from model.config import Adaptation, ModelConfig
from model.engine import Engine
from model.forecaster import Forecaster
from model.sequences import Sequences, Split, build_sequences
from model.state import blank_states
from model.step_plan import StepPlan
from model.stepper import Stepper
from model.training import TrainingOptions, train
from tests.random_models import random_forecaster, stepped
from tests.series import CONFIG, HOUR_US, noisy_days

Single = NDArray[np.float32]


def over(function: Any) -> Callable[[Single], Single]:
    """A compiled function of one number, in a loop over an array, as the kernel calls it."""

    @numba.njit(error_model="numpy")  # type: ignore[untyped-decorator]
    def loop(x: Single, out: Single) -> None:
        for i in range(len(x)):
            out[i] = function(x[i])

    def call(x: Single) -> Single:
        out = np.empty_like(x)
        loop(x, out)
        return out

    return call


def units_apart(found: Single, exact: NDArray[np.float64]) -> float:
    """The largest distance, in units in the last place of the exact numbers."""
    return float(np.max(np.abs(found - exact) / np.spacing(np.abs(exact).astype(np.float32))))


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


FUNCTIONS = [
    (step_kernel._exp, np.exp, 87.0),
    (step_kernel._sigmoid, sigmoid, 80.0),
    (step_kernel._tanh, np.tanh, 50.0),
    (step_kernel._softplus, lambda x: np.logaddexp(0.0, x), 80.0),
]


@pytest.mark.parametrize(("function", "exact", "most"), FUNCTIONS, ids=["exp", "sigmoid", "tanh", "softplus"])
def test_functions_are_accurate_to_two_units_in_the_last_place(function: Any, exact: Any, most: float) -> None:
    random = np.random.default_rng(0)
    x = np.concatenate([random.uniform(-most, most, 100_000), random.normal(size=100_000), [0.0, -0.0]])
    x = np.concatenate([x, 10.0 ** random.uniform(-30, 0, 1_000)]).astype(np.float32)
    assert units_apart(over(function)(x), exact(x.astype(np.float64))) <= 2.0


@pytest.mark.parametrize(("function", "exact", "most"), FUNCTIONS, ids=["exp", "sigmoid", "tanh", "softplus"])
def test_the_lanes_of_a_vector_and_the_remainder_of_a_loop_give_the_same_bits(
    function: Any, exact: Any, most: float
) -> None:
    x = np.random.default_rng(1).normal(size=200).astype(np.float32) * 8
    called = over(function)
    whole = called(x)
    for length in (1, 3, 7, 16, 33):
        parts = [called(x[first : first + length]) for first in range(0, 200, length)]
        assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_functions_bound_huge_numbers_and_pass_on_nan() -> None:
    x = np.array([-np.inf, -1e30, 1e30, np.inf, np.nan], np.float32)
    np.testing.assert_allclose(over(step_kernel._sigmoid)(x), [0, 0, 1, 1, np.nan], atol=1e-37)
    np.testing.assert_array_equal(over(step_kernel._tanh)(x), [-1, -1, 1, 1, np.nan])
    np.testing.assert_allclose(over(step_kernel._softplus)(x), [0, 0, 1e30, np.inf, np.nan], rtol=1e-6, atol=1e-37)


def wild(sensors: int, readings: int, reset_share: float = 0.002) -> Sequences:
    """Sensors of very different scales, with spikes, missing values, bridged gaps and gaps that reset."""
    random = np.random.default_rng(5)
    pace = random.choice([0.6, 1.0, 1.0, 1.0, 1.3, 3.0], (sensors, readings))
    pace[random.random(pace.shape) < reset_share] = 400.0
    times = (np.cumsum(pace, axis=1) * HOUR_US).astype(np.int64)
    steps = np.arange(readings)
    values = np.sin(steps / 24 * 2 * np.pi)[None, :, None] + random.normal(size=(sensors, readings, 2))
    values *= 10.0 ** np.linspace(-25, 25, sensors)[:, None, None]
    values += values.std() * (steps // 4_000 % 2)[None, :, None]
    spikes = random.random(values.shape) < 0.001
    values[spikes] *= 10.0 ** random.uniform(-6, 4, int(spikes.sum()))
    values[random.random(values.shape) < 0.05] = np.nan
    return build_sequences(
        tuple(f"s{number}" for number in range(sensors)),
        readings * np.arange(sensors + 1),
        times.reshape(-1),
        values.reshape(-1, 2),
        np.arange(sensors * readings),
        features=CONFIG.features,
        cadence_us=HOUR_US,
        max_gap_steps=CONFIG.max_gap_steps,
    )


def trained() -> Forecaster:
    data = noisy_days()
    options = TrainingOptions(hidden_size=32, epochs=1, updates_per_epoch=60, batch_lanes=8)
    return train(CONFIG, options, data, Split(300 * HOUR_US, 400 * HOUR_US)).forecaster


def in_parts(data: Sequences) -> list[tuple[Sequences, int, int]]:
    """All steps of each sensor, longest first, for ``StepPlan.of_sequences``."""
    spans = [data.span(sensor) for sensor in range(len(data.sensors))]
    longest_first = sorted(range(len(spans)), key=lambda sensor: spans[sensor][0] - spans[sensor][1])
    return [(data.past(sensor, spans[sensor][1]), 0, spans[sensor][1] - spans[sensor][0]) for sensor in longest_first]


@pytest.mark.long(9)
def test_hidden_states_stay_close_to_those_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    forecaster, data = trained(), wild(sensors=8, readings=9_500)
    assert len(data) > 100_000
    assert data.reset.sum() > 100
    seen: list[Single] = []

    def keep(_adapter: Adapter, _records: Any, steps: AdaptedSteps) -> Any:
        seen.append(steps.hidden)
        return steps.quantiles, np.empty((0, 1, 9))

    monkeypatch.setattr(Adapter, "adapt", keep)
    engine = Engine(forecaster, Adaptation("full"))  # the level that reads the hidden states
    parts = in_parts(data)
    plan, names = StepPlan.of_sequences(parts), [steps.sensors[0] for steps, _, _ in parts]
    engine.step(np.zeros(8, engine.dtype), names, plan, np.empty(0, np.int64), None)
    found = seen[-1]

    lengths = np.diff(plan.starts).tolist()
    x = torch.zeros(8, lengths[0], forecaster.gru.gru.input_size)
    reset = np.zeros((8, lengths[0]), bool)
    rows = torch.from_numpy(forecaster.sensor_rows(names))
    for b, (steps, _, length) in enumerate(parts):
        with torch.inference_mode():
            x[b, :length] = forecaster._with_sensor(
                torch.from_numpy(forecaster.prepare(steps).x[None]), rows[b : b + 1]
            )
        reset[b, :length] = steps.reset
    h, largest = forecaster.gru.zeros(8), 0.0
    for lo, hi in pairwise([*np.flatnonzero(reset.any(axis=0)).tolist(), lengths[0]]):
        h[:, torch.from_numpy(reset[:, lo])] = 0.0
        with torch.no_grad():
            exact, h = forecaster.gru.gru(x[:, lo:hi], h)
        for b in range(8):
            mine = found[plan.starts[b] : plan.starts[b + 1]][lo:hi]
            largest = max(largest, float(np.abs(mine - exact[b, : len(mine)].numpy()).max(initial=0.0)))
    print(f"the largest difference is {largest:.2g}")
    assert largest <= 1e-6


@pytest.mark.parametrize("season", [1, 24, 10])
def test_the_inputs_of_the_head_have_the_bits_that_training_sees(season: int) -> None:
    """The weights of the head choose one input for each step ahead, so each median is an input."""
    config = replace(CONFIG, season_steps=season, profile_slots=7)
    count = len(random_forecaster(config).skip.weight.T)  # type: ignore[union-attr]
    forecaster = random_forecaster(replace(config, horizon_steps=count))
    assert forecaster.skip is not None
    with torch.no_grad():
        for weight in (forecaster.gru.fc.weight, forecaster.gru.fc.bias, forecaster.skip.weight):
            weight.zero_()
        K, Q, median = config.target_count, len(config.quantiles), config.median_index
        chosen = forecaster.skip.weight.view(K, Q, count, count)
        chosen[:, median] = torch.eye(count)
    data = noisy_days()
    made, _, read = stepped(forecaster, data, Stepper(forecaster).adaptation)
    prepared = forecaster.prepare(data)
    inputs = np.concatenate([prepared.x[read], prepared.past_inputs(read)], axis=1)
    level, scale = prepared.level[read, :, None], prepared.scale[read, :, None]
    np.testing.assert_array_equal(made.quantiles[:, :, median], level + scale * inputs[:, None])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    sensors=st.integers(1, 6),
    cadence_us=st.sampled_from([1, 7, HOUR_US]),
    max_gap_steps=st.integers(0, 9),
)
def test_the_steps_of_readings_are_those_of_a_data_set(
    seed: int, sensors: int, cadence_us: int, max_gap_steps: int
) -> None:
    random = np.random.default_rng(seed)
    pace = random.choice([0.4, 1.0, 1.5, 1.5001, 2.0, 2.5, 6.5, 9.4, 11.0], 80)
    slots = random.integers(0, sensors, 80)
    time = np.empty(80, np.int64)
    for slot in range(sensors):
        mine = slots == slot
        time[mine] = np.cumsum(np.maximum((pace[mine] * cadence_us).astype(np.int64), 1)) - 10 * cadence_us
    values = random.normal(size=(80, 2))
    order = np.argsort(slots, kind="stable")
    expected = build_sequences(
        tuple(map(str, range(sensors))),
        np.searchsorted(slots[order], np.arange(sensors + 1)),
        time[order],
        values[order],
        np.arange(80)[order],
        features=("a", "b"),
        cadence_us=cadence_us,
        max_gap_steps=max_gap_steps,
    )
    plan = StepPlan.of_readings(np.full(sensors, NEVER_US), slots, time, values, cadence_us, max_gap_steps)
    lengths = np.diff(plan.starts)
    assert (lengths[:-1] >= lengths[1:]).all()
    np.testing.assert_array_equal(plan.reading[plan.step], np.arange(80))
    for place, slot in enumerate(plan.slots):
        here, there = slice(*plan.starts[place : place + 2]), slice(*expected.span(int(slot)))
        for name in ("timestamp_us", "elapsed", "reset", "values"):
            np.testing.assert_array_equal(getattr(plan, name)[here], getattr(expected, name)[there], err_msg=name)
        np.testing.assert_array_equal(plan.reading[here] >= 0, expected.observed[there])


def test_a_plan_of_known_steps_equals_that_of_the_readings() -> None:
    data = wild(sensors=3, readings=60, reset_share=0.05)
    read = np.flatnonzero(data.observed)
    slots = np.searchsorted(data.starts, read, side="right") - 1
    plan = StepPlan.of_readings(
        np.full(3, NEVER_US), slots, data.timestamp_us[read], data.values[read], HOUR_US, CONFIG.max_gap_steps
    )
    known = StepPlan.of_sequences(in_parts(data))
    for name in ("starts", "timestamp_us", "elapsed", "reset", "values"):
        np.testing.assert_array_equal(getattr(known, name), getattr(plan, name), err_msg=name)
    np.testing.assert_array_equal(known.reading >= 0, plan.reading >= 0)


def test_the_kernel_has_the_layout_of_a_state() -> None:
    config = ModelConfig(("a",), ("a",), HOUR_US, 1)
    names = blank_states(config, 1).dtype.names
    assert names is not None
    assert names[:6] == ("last_us", "origin", "offset", "steps", "accepted", "anchors")
    assert blank_states(config, 1)["anchors"].shape[1] == step_kernel.HEADER - step_kernel.ANCHORS
    assert blank_states(config, 1).dtype.fields["hidden"][1] == 8 * step_kernel.HEADER  # type: ignore[index]
