"""The stepper follows the gap rule, gives equal bits for any micro-batches, and equals a batched pass to rounding."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.acceptance import NEVER_US
from model.config import ANCHORS, NO_ADAPTATION, Adaptation, ModelConfig
from model.engine import Engine
from model.experts import AdaptationConfig
from model.forecaster import Forecaster
from model.known_ahead import CalendarCovariate
from model.sequences import Sequences, Split, build_sequences
from model.state import NO_OFFSET, States, blank_states, replay_start
from model.step_plan import StepPlan
from model.stepper import Forecasts, Stepper
from model.training import TrainingOptions, train
from model.unit_change import follow_from_blank
from model.unit_kernel import ACCEPTED, FACTOR

HOUR_US = 3_600_000_000
MAX_GAP_STEPS = 12
ANCHOR_SPACING = NO_ADAPTATION.anchor_spacing


def config(**changes: object) -> ModelConfig:
    fields: dict[str, object] = {
        "features": ("load", "heat"),
        "targets": ("heat",),
        "cadence_us": HOUR_US,
        "horizon_steps": 3,
        "season_steps": 6,
        "hidden_size": 16,
        "max_gap_steps": MAX_GAP_STEPS,
        "lag_steps": 5,
        "warmup_steps": 20,
        "sensors": tuple(f"s{number}" for number in range(4)),
    }
    return ModelConfig(**{**fields, **changes})  # type: ignore[arg-type]


def untrained(**changes: object) -> Forecaster:
    """A forecaster with weights so large that a difference in the last bit grows."""
    torch.manual_seed(0)
    forecaster = Forecaster(config(**changes))
    with torch.no_grad():
        for parameter in forecaster.parameters():
            parameter.normal_(std=0.4)
    return forecaster.eval()


@dataclass(frozen=True)
class Stream:
    """Accepted readings of several sensors in order of offset."""

    sensors: tuple[str, ...]
    slots: NDArray[np.int64]
    timestamp_us: NDArray[np.int64]
    values: NDArray[np.float64]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.slots)

    def select(self, index: NDArray[np.int64] | slice) -> "Stream":
        return Stream(
            self.sensors, self.slots[index], self.timestamp_us[index], self.values[index], self.offsets[index]
        )

    def sequences(self) -> Sequences:
        order = np.argsort(self.slots, kind="stable")
        counts = np.bincount(self.slots, minlength=len(self.sensors))
        return build_sequences(
            self.sensors,
            np.concatenate([[0], np.cumsum(counts)]),
            self.timestamp_us[order],
            self.values[order],
            self.offsets[order],
            features=("load", "heat"),
            cadence_us=HOUR_US,
            max_gap_steps=MAX_GAP_STEPS,
        )


PACES = (0.7, 1.0, 1.0, 1.0, 1.0, 1.2, 2.0, 4.4)


def stream(seed: int, sensors: int, readings: int, pauses: float = 0.08, paces: Sequence[float] = PACES) -> Stream:
    """Readings with missing values, jitter, bridged gaps and, at a share of ``pauses``, gaps that reset."""
    rng = np.random.default_rng(seed)
    slots = rng.integers(0, sensors, readings)
    pace = rng.choice(paces, readings)
    pace[rng.random(readings) < pauses] = 40.0
    timestamp_us = np.empty(readings, np.int64)
    for slot in range(sensors):
        mine = slots == slot
        timestamp_us[mine] = (np.cumsum(pace[mine]) * HOUR_US).astype(np.int64)
    waves = np.sin(timestamp_us / HOUR_US / 6 * 2 * np.pi)
    values = waves[:, None] * [1.0, 30.0] + rng.normal(size=(readings, 2)) + [0.0, 1e4]
    values[rng.random((readings, 2)) < 0.1] = np.nan
    return Stream(tuple(f"s{n}" for n in range(sensors)), slots, timestamp_us, values, 7 + 3 * np.arange(readings))


def advance(stepper: Stepper, states: States, part: Stream) -> Forecasts:
    return stepper.step(states, part.sensors, part.slots, part.timestamp_us, part.values, part.offsets)


def blank(stepper: Stepper, sensors: int) -> States:
    return blank_states(stepper.config, sensors, stepper.adaptation)


def in_one_go(stepper: Stepper, readings: Stream) -> tuple[Forecasts, States]:
    states = blank(stepper, len(readings.sensors))
    return advance(stepper, states, readings), states


def chosen(forecasts: Forecasts, index: np.ndarray) -> Forecasts:
    """The forecasts of some readings."""
    of_readings = {each.name: getattr(forecasts, each.name) for each in fields(Forecasts)}
    verdict = of_readings.pop("outlook_verdict")  # by outlook
    return Forecasts(**{name: array[index] for name, array in of_readings.items()}, outlook_verdict=verdict)


def assert_same_bits(parts: Sequence[Forecasts], whole: Forecasts) -> None:
    for field in fields(Forecasts):
        joined = np.concatenate([getattr(part, field.name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(whole, field.name), err_msg=field.name)


STEPPER = Stepper(untrained())
ADAPTING = [
    STEPPER,
    *(Stepper(untrained(), adaptation) for adaptation in (Adaptation("light", True), Adaptation("full"))),
]
TWO_TARGETS = Stepper(untrained(targets=("load", "heat")), Adaptation("full"))


@pytest.mark.long(18)  # with the other tests of this file
@pytest.mark.parametrize("stepper", [*ADAPTING, TWO_TARGETS], ids=["off", "light", "full", "two targets"])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), sensors=st.integers(1, 20), cuts=st.lists(st.integers(0, 120), max_size=6))
def test_any_split_into_micro_batches_gives_the_same_bits(
    stepper: Stepper, seed: int, sensors: int, cuts: list[int]
) -> None:
    readings = stream(seed, sensors, 120, paces=(*PACES, 0.01, 0.1, 0.5, 1.5))
    whole, expected = in_one_go(stepper, readings)
    states = blank(stepper, sensors)
    bounds = [0, *sorted(cuts), len(readings)]
    parts = [advance(stepper, states, readings.select(slice(lo, hi))) for lo, hi in pairwise(bounds)]
    assert_same_bits(parts, whole)
    assert states.tobytes() == expected.tobytes()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), order_seed=st.integers(0, 2**16))
def test_any_interleaving_of_sensors_gives_the_same_bits(seed: int, order_seed: int) -> None:
    readings = stream(seed, 9, 100)
    whole, expected = in_one_go(STEPPER, readings)
    # Interleave the sensors at random, and keep the order of each sensor's readings.
    shuffled = np.random.default_rng(order_seed).permutation(readings.slots)
    index = np.empty(len(readings), np.int64)
    for slot in range(9):
        index[shuffled == slot] = np.flatnonzero(readings.slots == slot)
    other, states = in_one_go(STEPPER, readings.select(index))
    assert_same_bits([other], chosen(whole, index))
    assert states.tobytes() == expected.tobytes()


@pytest.mark.parametrize("stepper", ADAPTING, ids=lambda stepper: stepper.adaptation.level)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), sensor=st.integers(0, 19), place=st.integers(0, 40))
def test_other_sensors_and_the_place_in_a_block_do_not_change_a_bit(
    stepper: Stepper, seed: int, sensor: int, place: int
) -> None:
    readings = stream(seed, 20, 300)
    whole, expected = in_one_go(stepper, readings)
    mine = np.flatnonzero(readings.slots == sensor)
    if not len(mine):
        return
    alone = readings.select(mine)
    states = blank(stepper, place + 1)
    got = stepper.step(
        states,
        [*(f"other{n}" for n in range(place)), readings.sensors[sensor]],
        np.full(len(alone), place),
        alone.timestamp_us,
        alone.values,
        alone.offsets,
    )
    assert_same_bits([got], chosen(whole, mine))
    assert states[place].tobytes() == expected[sensor].tobytes()


@pytest.mark.parametrize(("hidden", "layers"), [(16, 2), (51, 1), (51, 2), (64, 2), (96, 3)])
@pytest.mark.parametrize("horizon", [1, 24, 200])
def test_micro_batches_of_real_size_give_the_same_bits(hidden: int, layers: int, horizon: int) -> None:
    stepper = Stepper(untrained(hidden_size=hidden, num_layers=layers, horizon_steps=horizon))
    readings = stream(1, 300, 2_000)
    whole, expected = in_one_go(stepper, readings)
    states = blank_states(stepper.config, 300)
    parts = [advance(stepper, states, readings.select(slice(lo, lo + 333))) for lo in range(0, 2_000, 333)]
    assert_same_bits(parts, whole)
    assert states.tobytes() == expected.tobytes()


def test_the_number_of_threads_does_not_change_a_bit() -> None:
    stepper = Stepper(untrained(hidden_size=64))
    readings = stream(2, 200, 800)
    whole, _ = in_one_go(stepper, readings)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert_same_bits([in_one_go(stepper, readings)[0]], whole)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("is_shared", [False, True])
def test_threads_do_not_disturb_each_other(is_shared: bool) -> None:
    """Compiled code runs without Python's lock, so calls in two threads must share no memory that they write to.

    A server of an MLflow model calls one stepper in several threads.
    """
    readings = stream(6, 40, 4_000)
    steppers = [Stepper(untrained(), Adaptation("full")) for _ in range(2)]
    if is_shared:
        steppers[1] = steppers[0]
    expected, states = in_one_go(steppers[0], readings)
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(in_one_go, steppers, [readings] * 2))
    for forecasts, stepped in found:
        assert_same_bits([forecasts], expected)
        assert stepped.tobytes() == states.tobytes()


def batched(forecaster: Forecaster, data: Sequences) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Quantiles and scale after every reading, from one pass per sensor between resets."""
    prepared = forecaster.prepare(data)
    rows = torch.from_numpy(forecaster.sensor_rows(data.sensors))
    may_anchor = [*np.flatnonzero(data.reset).tolist(), len(data)]
    found = []
    with torch.no_grad():
        for lo, hi in pairwise(may_anchor):
            sensor = int(np.searchsorted(data.starts, lo, side="right")) - 1
            past = torch.from_numpy(prepared.past_inputs(np.arange(lo, hi)))[None]
            x = torch.from_numpy(prepared.x[lo:hi])[None]
            head, _ = forecaster.unroll(x, past, rows[sensor : sensor + 1], forecaster.gru.zeros(1))
            level, scale = prepared.level[lo:hi, :, None, None], prepared.scale[lo:hi, :, None, None]
            found.append(level + scale * head[0].double().numpy())
    return np.concatenate(found)[data.observed], prepared.scale[data.observed]


def test_a_trained_model_gives_equal_forecasts_in_the_stream_and_in_a_batch() -> None:
    readings = stream(3, 4, 8_000, pauses=0.0)
    data = readings.sequences()
    split = Split(1_700 * HOUR_US, 2_300 * HOUR_US)
    options = TrainingOptions(hidden_size=32, epochs=1, updates_per_epoch=60, batch_lanes=8)
    forecaster = train(config(), options, data, split).forecaster
    expected, scale = batched(forecaster, data)
    stepper = Stepper(forecaster)
    states = blank_states(stepper.config, 4)
    parts = [advance(stepper, states, readings.select(slice(lo, lo + 700))) for lo in range(0, 8_000, 700)]
    got = np.concatenate([part.quantiles for part in parts])[np.argsort(readings.slots, kind="stable")]
    unit = np.where(scale > 0, scale, 1.0)[:, :, None, None]
    assert (np.abs(got - expected) / unit <= 1e-5 * np.maximum(1.0, np.abs(expected) / unit)).all()


def steady(count: int, start: int = 0) -> Stream:
    """One sensor, a reading every hour."""
    number = np.arange(start, start + count)
    values = np.stack([np.cos(number), np.sin(number / 6 * 2 * np.pi)], axis=1)
    return Stream(("s0",), np.zeros(count, np.int64), number * HOUR_US, values, 100 + number)


def test_a_bridged_gap_takes_missing_steps_and_a_longer_one_resets_the_state() -> None:
    states = blank_states(STEPPER.config, 1)
    advance(STEPPER, states, steady(10))
    bridged = advance(STEPPER, states, steady(1, start=9 + 1 + MAX_GAP_STEPS))
    assert bridged.steps[0] == 10 + MAX_GAP_STEPS + 1
    assert bridged.origin[0] == 100
    assert bridged.warm[0]
    after_reset = advance(STEPPER, states, steady(1, start=22 + 2 + MAX_GAP_STEPS))
    assert after_reset.steps[0] == 1
    assert after_reset.origin[0] == 100 + 36
    assert not after_reset.warm[0]
    fresh, other = in_one_go(STEPPER, steady(1, start=36))
    np.testing.assert_array_equal(after_reset.quantiles, fresh.quantiles)
    assert states.tobytes() == other.tobytes()


def test_states_count_their_readings_and_keep_anchors() -> None:
    readings = 5 * ANCHOR_SPACING + ANCHOR_SPACING // 2
    states = blank_states(STEPPER.config, 1)
    advance(STEPPER, states, steady(30))
    np.testing.assert_array_equal(states["anchors"][0], [NO_OFFSET] * (ANCHORS - 1) + [100])
    advance(STEPPER, states, steady(readings - 30, start=30))
    np.testing.assert_array_equal(states["anchors"][0], 100 + ANCHOR_SPACING * np.arange(1, 6))
    assert states["accepted"][0] == readings
    assert states["offset"][0] == 100 + readings - 1
    assert states["last_us"][0] == (readings - 1) * HOUR_US
    assert states["origin"][0] == 100


def test_forecasts_are_warm_from_the_warm_up_length_on() -> None:
    whole, _ = in_one_go(STEPPER, steady(40))
    np.testing.assert_array_equal(whole.warm, np.arange(1, 41) >= 20)


def test_quantiles_never_cross() -> None:
    whole, _ = in_one_go(STEPPER, stream(5, 6, 600))
    assert (np.diff(whole.quantiles, axis=2) >= 0).all()


def test_an_unknown_sensor_gets_finite_forecasts() -> None:
    known = steady(30)
    states = blank_states(STEPPER.config, 1)
    arguments = (known.slots, known.timestamp_us, known.values, known.offsets)
    unknown = STEPPER.step(states, ["never seen"], *arguments)
    assert np.isfinite(unknown.quantiles).all()
    assert not np.array_equal(unknown.quantiles, in_one_go(STEPPER, known)[0].quantiles)


def test_a_constant_sensor_is_forecast_to_stay_constant() -> None:
    readings = steady(50)
    readings.values[:] = 7.3
    whole, _ = in_one_go(STEPPER, readings)
    assert (whole.quantiles == 7.3).all()


def test_extreme_values_leave_forecasts_and_states_finite() -> None:
    readings = steady(200)
    readings.values[50:60, 1] = [1e30, -1e30, 0.0, 1e-300, 1e30, 1e30, -1e-30, 1e15, 0.0, 0.0]
    whole, states = in_one_go(STEPPER, readings)
    assert np.isfinite(whole.quantiles).all()
    assert np.isfinite(states["hidden"]).all()


def test_no_readings_give_no_forecasts() -> None:
    states = blank_states(STEPPER.config, 2)
    before = states.tobytes()
    nothing = advance(STEPPER, states, stream(1, 2, 5).select(slice(0, 0)))
    assert nothing.quantiles.shape == (0, 1, 3, 3)
    assert states.tobytes() == before


def arguments(**changes: object) -> dict[str, object]:
    """The arguments of ``Stepper.step`` for two readings of one sensor, with changes."""
    given = steady(2)
    fields: dict[str, object] = {
        "states": blank_states(STEPPER.config, 1),
        "sensors": given.sensors,
        "slots": given.slots,
        "timestamp_us": given.timestamp_us,
        "values": given.values,
        "offsets": given.offsets,
    }
    return {**fields, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slots": np.array([0, 1])}, "not an index of a state"),
        ({"slots": np.array([0, 10**7])}, "not an index of a state"),
        ({"slots": np.array([0, -1])}, "not an index of a state"),
        ({"sensors": ["s0", "s1"]}, "2 sensor ids as many as the 1 states"),
        ({"timestamp_us": np.zeros(1, np.int64)}, "2 slots, 1 times, 2 rows of values and 2 offsets"),
        ({"values": np.zeros((3, 2))}, "2 slots, 2 times, 3 rows of values and 2 offsets"),
        ({"offsets": np.zeros(1, np.int64)}, "2 slots, 2 times, 2 rows of values and 1 offsets"),
        ({"may_anchor": np.ones(1, bool)}, "may_anchor has 1 entries for 2 readings"),
        ({"values": np.zeros((2, 1))}, "the readings have 1 features, but the model has 2"),
        ({"values": np.zeros((2, 9))}, "the readings have 9 features, but the model has 2"),
        ({"states": blank_states(config(hidden_size=17), 1)}, "the states belong to another model"),
        ({"states": blank_states(config(), 1, Adaptation("light"))}, "the states belong to another model"),
        ({"states": blank_states(config(), 3)[::2], "sensors": ["s0", "s1"]}, "not contiguous in memory"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_before_anything_is_stepped(
    changes: dict[str, object], message: str
) -> None:
    """The compiled code checks no index: it would write beyond an array, or end the process."""
    given = arguments(**changes)
    states = given["states"]
    assert isinstance(states, np.ndarray)
    before = states.tobytes()
    with pytest.raises(ValueError, match=message):
        STEPPER.step(**given)  # type: ignore[arg-type]
    assert states.tobytes() == before


@pytest.mark.parametrize("shape", [None, (1, 0), (1, 3), (2, 4)])
def test_inputs_known_ahead_of_another_shape_are_refused(shape: tuple[int, int] | None) -> None:
    engine = Engine(untrained(calendar=(CalendarCovariate("holiday", ()),)), NO_ADAPTATION)
    plan = StepPlan.of_readings(np.full(1, NEVER_US), *np.zeros((2, 1), np.int64), np.ones((1, 2)), HOUR_US, 1)
    ahead = None if shape is None else np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match="needs 4 inputs known ahead for each of 1 forecasts"):
        engine.step(np.zeros(1, engine.dtype), ["s0"], plan, plan.step, ahead)
    engine.step(np.zeros(1, engine.dtype), ["s0"], plan, plan.step, np.zeros((1, 4), np.float32))


def test_a_plan_of_other_sensors_is_refused() -> None:
    plan = StepPlan.of_readings(np.full(1, NEVER_US), *np.zeros((2, 1), np.int64), np.ones((1, 2)), HOUR_US, 1)
    engine = STEPPER._engine
    for states, sensors in ((1, ["s0", "s1"]), (1, []), (0, ["s0"])):
        with pytest.raises(ValueError, match="the plan has steps of 1 sensors"):
            engine.step(np.zeros(states, engine.dtype), sensors, plan, plan.step, None)


def test_steps_of_the_plain_preset_equal_a_batched_pass() -> None:
    forecaster = untrained(preset="plain")
    readings = stream(8, 4, 400)
    expected, _ = batched(forecaster, readings.sequences())
    got, _ = in_one_go(Stepper(forecaster), readings)
    order = np.argsort(readings.slots, kind="stable")
    np.testing.assert_allclose(got.quantiles[order][:50], expected[:50], rtol=1e-5)


@pytest.mark.parametrize("stepper", ADAPTING[1:], ids=lambda stepper: stepper.adaptation.level)
def test_a_reset_clears_the_adaptation(stepper: Stepper) -> None:
    _, states = in_one_go(stepper, steady(300))
    assert states["adaptation"]["labels"].min() > 0
    later = steady(60, start=300 + MAX_GAP_STEPS + 2)
    after_reset = advance(stepper, states, later)
    fresh, other = in_one_go(stepper, later)
    assert_same_bits([after_reset], fresh)
    assert states.tobytes() == other.tobytes()


def test_adapted_forecasts_hold_the_weights_of_their_experts() -> None:
    for stepper in ADAPTING:
        forecasts, _ = in_one_go(stepper, stream(4, 3, 200))
        experts = AdaptationConfig.of(stepper.config, stepper.adaptation).experts
        if stepper.adaptation.level == "off":
            assert forecasts.weights.shape == (200, 1, 0)
        else:
            assert forecasts.weights.shape == (200, 1, len(experts))
            np.testing.assert_allclose(forecasts.weights.sum(axis=2), 1.0)


def test_adaptation_halves_the_error_of_an_untrained_model() -> None:
    readings = steady(600)
    readings.values[:, 1] += 0.1 * np.random.default_rng(3).normal(size=600)
    errors = []
    for stepper in ADAPTING:
        forecasts, _ = in_one_go(stepper, readings)
        errors.append(np.abs(forecasts.quantiles[300:-1, 0, 1, 0] - readings.values[301:, 1]).mean())
    assert errors[1] < 0.5 * errors[0]
    assert errors[2] < 0.5 * errors[0]


def test_an_anchor_moves_to_the_next_reading_at_which_a_replay_may_begin() -> None:
    readings = steady(2 * ANCHOR_SPACING + 10)
    may_anchor = np.ones(len(readings), bool)
    may_anchor[ANCHOR_SPACING : ANCHOR_SPACING + 3] = False
    for cut in (0, ANCHOR_SPACING, ANCHOR_SPACING + 2):
        states = blank_states(STEPPER.config, 1)
        for part in (slice(0, cut), slice(cut, len(readings))):
            given = readings.select(part)
            STEPPER.step(
                states, given.sensors, given.slots, given.timestamp_us, given.values, given.offsets, may_anchor[part]
            )
        np.testing.assert_array_equal(
            states["anchors"][0][-3:], 100 + np.array([0, ANCHOR_SPACING + 3, 2 * ANCHOR_SPACING])
        )
    states = blank_states(STEPPER.config, 1)
    given = readings.select(slice(0, ANCHOR_SPACING + 2))
    STEPPER.step(
        states, given.sensors, given.slots, given.timestamp_us, given.values, given.offsets, may_anchor[: len(given)]
    )
    assert replay_start(states[0], 1, ANCHOR_SPACING) == 100, "the previous anchor is used until the next one is set"


# --- changes of unit --------------------------------------------------------------------------------------------------

CHANGED = 500


def two_sensors(factor: float = 1.0, offset: float = 0.0) -> Stream:
    """A reading of each sensor every hour; from step ``CHANGED`` on, the first sensor's heat has another unit."""
    steps = np.repeat(np.arange(700), 2)
    random = np.random.default_rng(5)
    values = np.sin(steps / 6 * 2 * np.pi)[:, None] * [1.0, 5.0] + random.normal(size=(len(steps), 2)) + [0.0, 30.0]
    slots = np.tile([0, 1], 700)
    changed = (steps >= CHANGED) & (slots == 0)
    values[changed, 1] = values[changed, 1] * factor + offset
    return Stream(("s0", "s1"), slots, steps * HOUR_US, values, 7 + np.arange(len(steps)))


@pytest.mark.parametrize("stepper", ADAPTING[1:], ids=["light", "full"])
@pytest.mark.parametrize(("factor", "offset"), [(1_000.0, 0.0), (0.001, 0.0), (1.0, 500.0)])
def test_after_a_change_of_unit_forecasts_are_those_of_converted_readings(
    stepper: Stepper, factor: float, offset: float
) -> None:
    readings = two_sensors(factor, offset)
    found, states = in_one_go(stepper, readings)
    mine = readings.slots == 0
    followed = follow_from_blank(np.array([0, 700]), np.zeros(700, bool), readings.values[mine])
    [at] = np.flatnonzero((followed.outcome == ACCEPTED).any(axis=1))
    assert CHANGED < at < CHANGED + 48
    assert states["units"][:, :, FACTOR].tolist() == [[0.0, factor], [0.0, 0.0]]
    converted = readings.values.copy()
    converted[mine] = followed.values
    own, _ = in_one_go(stepper, replace(readings, values=converted))
    heat = followed.factor[:, 1]
    expected = own.quantiles[mine].copy()
    expected[heat != 0.0] = expected[heat != 0.0] * factor + followed.offset[-1, 1]
    np.testing.assert_array_equal(found.quantiles[mine], expected)
    np.testing.assert_array_equal(found.quantiles[~mine], own.quantiles[~mine])
    np.testing.assert_array_equal(found.scale[mine], own.scale[mine] * np.where(heat != 0.0, factor, 1.0)[:, None])


@pytest.mark.parametrize("stepper", ADAPTING[1:], ids=["light", "full"])
@settings(max_examples=6, deadline=None)
@given(cuts=st.lists(st.integers(0, 1_400), max_size=6))
def test_any_split_gives_the_same_bits_through_a_change_of_unit(stepper: Stepper, cuts: list[int]) -> None:
    readings = two_sensors(1_000.0)
    whole, expected = in_one_go(stepper, readings)
    states = blank(stepper, 2)
    bounds = [0, *sorted([*cuts, 2 * CHANGED + 5]), len(readings)]
    parts = [advance(stepper, states, readings.select(slice(lo, hi))) for lo, hi in pairwise(bounds)]
    assert_same_bits(parts, whole)
    assert states.tobytes() == expected.tobytes()


def test_without_a_change_of_unit_the_rule_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = two_sensors()
    stepper = ADAPTING[1]
    found, states = in_one_go(stepper, readings)
    assert not states["unit_evidence"].any()
    monkeypatch.setattr(Engine, "_follow", lambda *_: None)
    without, states_without = in_one_go(stepper, readings)
    for field in ("quantiles", "scale", "weights", "steps"):
        np.testing.assert_array_equal(getattr(found, field), getattr(without, field))
    assert not found.unit_outcome.any()
    for name in set(states.dtype.names or ()) - {"units"}:
        assert states[name].tobytes() == states_without[name].tobytes()


def test_without_adaptation_and_calibration_values_are_taken_as_they_are() -> None:
    readings = two_sensors(1_000.0)
    _, states = in_one_go(STEPPER, readings)
    assert "units" not in (states.dtype.names or ())
    assert states["last"][0, 1] > 100.0
