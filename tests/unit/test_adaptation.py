"""Adaptation is never much worse than its best expert, causal, independent of other sensors, and always finite."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model import experts, kernel
from model.adaptation import AdaptedSteps, Adapter
from model.config import Level
from model.experts import LEARN_POINTS, LOSS_POINTS, PENDING, RULE, AdaptationConfig, States, adaptation_dtype
from model.state import record_bytes

Floats = NDArray[np.float64]
SEASON = 12
HOUR_US = 3_600_000_000
LEVELS = (0.1, 0.5, 0.9)
HIDDEN = 20


def config(
    level: Level = "light", *, horizon: int = 3, targets: int = 1, calibrated: bool = True, season: int = SEASON
) -> AdaptationConfig:
    return AdaptationConfig(level, calibrated, targets, horizon, season, LEVELS, HIDDEN, HOUR_US)


@dataclass(frozen=True)
class Run:
    states: States
    quantiles: Floats  # (T, B, K, Q, h)
    weights: Floats  # (T, B, K, E)


def gru_like(values: Floats, horizon: int, noise: float = 1.0) -> Floats:
    """(T, B, K, Q, h): a frozen model that forecasts zero for any values."""
    spread = noise * np.array([-1.3, 0.0, 1.3])
    return np.broadcast_to(spread[:, None], (*values.shape, 3, horizon)).copy()


def hidden_of(values: Floats) -> Floats:
    """(T, B, H): a hidden state that depends on the value of each step."""
    running = np.tanh(np.nan_to_num(values[:, :, :1], posinf=0.0, neginf=0.0))
    return np.tile(running, HIDDEN) * np.linspace(-1.0, 1.0, HIDDEN)


def run(
    shape: AdaptationConfig,
    values: Floats,
    quantiles: Floats | None = None,
    states: States | None = None,
    start: int = 0,
    times_us: NDArray[np.int64] | None = None,
) -> Run:
    """Step through values (T, B, K), hourly from step ``start`` on or at the given times (T,)."""
    T, B, _ = values.shape
    states = np.zeros(B, adaptation_dtype(shape)) if states is None else states
    quantiles = gru_like(values, shape.horizon_steps) if quantiles is None else quantiles
    n, K, h = T * B, values.shape[2], shape.horizon_steps
    given = quantiles.swapaxes(0, 1).reshape(n, K, len(shape.levels), h)  # sensor by sensor
    issued = np.isfinite(given).all(axis=(1, 2, 3))
    forecast = np.where(issued, np.cumsum(issued) - 1, -1)
    steps = AdaptedSteps(
        slots=np.arange(B),
        starts=np.arange(B + 1) * T,
        reset=np.zeros(n, bool),
        timestamp_us=np.tile((start + np.arange(T)) * HOUR_US if times_us is None else times_us, B),
        values=values.swapaxes(0, 1).reshape(n, K),
        hidden=hidden_of(values).swapaxes(0, 1).reshape(n, HIDDEN).astype(np.float32),
        forecast=forecast,
        quantiles=given[issued],
    )
    records = record_bytes(states)
    adapted, shares = Adapter(shape, range(K)).adapt(records, steps)
    outs, weights = np.full(given.shape, np.nan), np.full((n, K, shares.shape[2]), np.nan)
    outs[issued], weights[issued] = adapted, shares
    return Run(
        states,
        outs.reshape(B, T, *given.shape[1:]).swapaxes(0, 1),
        weights.reshape(B, T, K, -1).swapaxes(0, 1),
    )


def errors(values: Floats, forecasts: Floats, start: int) -> Floats:
    """(n, B, K, h): label minus forecast, for forecasts (T, B, K, h) issued from ``start`` on."""
    T, h = len(values), forecasts.shape[-1]
    labels = np.stack([values[1 + j : T - h + 1 + j] for j in range(h)], axis=-1)
    difference: Floats = (labels - forecasts[: T - h])[start:]
    return difference


def naive(values: Floats, horizon: int, season: int) -> Floats:
    """(T, B, K, h) the value one season before; persistence if the season is one step."""
    T = len(values)
    back = season - 1 - np.arange(horizon) % season
    return np.stack([values[np.maximum(np.arange(T) - steps, 0)] for steps in back], axis=-1)


def random_walk(T: int, B: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((T, B, 1)).cumsum(axis=0)


def seasonal(T: int, B: int, seed: int = 0) -> Floats:
    noise = np.random.default_rng(seed).standard_normal((T, B, 1))
    return 5.0 * np.sin(2 * np.pi * np.arange(T) / SEASON)[:, None, None] + noise


def drifting(T: int, B: int, seed: int = 0) -> Floats:
    """White noise around zero, for which a zero forecast is best, and then a random walk."""
    noise = np.random.default_rng(seed).standard_normal((T, B, 1))
    return np.concatenate([noise[: T // 2], noise[: T // 2][-1:] + noise[T // 2 :].cumsum(axis=0)])


@pytest.mark.parametrize("level", ["light", "full"])
@pytest.mark.parametrize("series", [random_walk, seasonal, drifting])
@pytest.mark.parametrize("horizon", [1, 12])
def test_adaptation_is_never_much_worse_than_persistence_seasonal_naive_and_the_model(
    level: Level, series: Callable[[int, int], Floats], horizon: int
) -> None:
    values = series(1000, 4)
    forecasts = run(config(level, horizon=horizon), values).quantiles[:, :, :, 1]
    plain = [naive(values, horizon, 1), naive(values, horizon, SEASON), np.zeros_like(forecasts)]
    best = min(np.abs(errors(values, other, 200)).mean() for other in plain)
    assert np.abs(errors(values, forecasts, 200)).mean() < 1.05 * best


def test_adaptation_follows_a_model_that_is_right() -> None:
    values = random_walk(600, 4)
    quantiles = gru_like(values, 1, 0.1)
    quantiles[:-1, :, :, :, 0] += values[1:, :, :, None]
    got = run(config(horizon=1), values, quantiles)
    assert np.abs(errors(values, got.quantiles[:, :, :, 1], 100)).mean() < 0.05
    assert got.weights[-1, :, :, config().experts.index("gru")].min() > 0.4


def test_adaptation_learns_an_autoregression_that_no_plain_expert_has() -> None:
    rng = np.random.default_rng(1)
    values = np.zeros((1000, 4, 1))
    for t in range(1, 1000):
        values[t] = 0.7 * values[t - 1] + rng.standard_normal((4, 1))
    values += 4.0 * np.sin(2 * np.pi * np.arange(1000) / SEASON)[:, None, None]
    forecasts = run(config(horizon=1), values).quantiles[:, :, :, 1]
    assert errors(values, forecasts, 500).var() < 1.2  # the variance of the innovations is 1


def test_weights_sum_to_one_over_all_experts() -> None:
    got = run(config("full"), random_walk(100, 2))
    assert got.weights.shape[-1] == len(config("full").experts)
    assert (got.weights >= 0.0).all()
    np.testing.assert_allclose(got.weights.sum(axis=-1), 1.0)


@pytest.mark.parametrize("level", ["off", "light", "full"])
def test_a_forecast_does_not_depend_on_later_readings(level: Level) -> None:
    values = random_walk(120, 2)
    changed = values.copy()
    changed[60:] += 1000.0
    first, second = (run(config(level), series).quantiles for series in (values, changed))
    np.testing.assert_array_equal(first[:60], second[:60])
    assert not np.array_equal(first[60:], second[60:])


@pytest.mark.parametrize("horizon", [1, 3, 20])
def test_corrections_learn_from_a_forecast_when_its_last_label_has_arrived(horizon: int) -> None:
    shape = config("full", horizon=horizon)
    first = shape.stride  # the first reading has no change, and so no unit: its forecast is not scored
    values = random_walk(first + horizon + 1, 3)
    early, late = run(shape, values[:-1]).states, run(shape, values).states
    assert (early["learned"] == 0).all()
    assert (early["plain_weights"] == 0.0).all()
    assert (late["learned"] == 1).all()


@pytest.mark.parametrize("horizon", [1, 3, 20])
def test_each_step_of_a_forecast_is_scored_when_its_label_arrives(horizon: int) -> None:
    shape = config("full", horizon=horizon)
    values = random_walk(shape.stride + horizon + 1, 3)
    for readings in range(1, len(values) + 1):
        states = run(shape, values[:readings]).states
        kept = np.arange(shape.stride, readings, shape.stride)  # the readings whose forecasts are kept and scored
        arrived = [(kept + 1 + step < readings).sum() for step in shape.loss_points]
        np.testing.assert_array_equal(states["labels"], np.broadcast_to(arrived, states["labels"].shape))
        assert ((states["losses"].max(axis=2) > 0.0) == (states["labels"] > 0)).all()


@pytest.mark.parametrize("level", ["off", "light", "full"])
@given(order=st.permutations(range(7)), rows=st.integers(1, 7), cut=st.integers(1, 39))
@settings(max_examples=5, deadline=None)
def test_a_sensor_has_the_same_bits_beside_any_sensors_and_across_a_restart(
    level: Level, order: list[int], rows: int, cut: int
) -> None:
    values = random_walk(40, 7)
    values[np.random.default_rng(2).random(values.shape) < 0.1] = np.nan
    shape = config(level, horizon=5)
    whole = run(shape, values)
    chosen = order[:rows]
    before = run(shape, values[:cut, chosen])
    restored = np.frombuffer(bytearray(before.states.tobytes()), adaptation_dtype(shape))
    after = run(shape, values[cut:, chosen], states=restored, start=cut)
    np.testing.assert_array_equal(
        np.concatenate([before.quantiles, after.quantiles]), whole.quantiles[:, chosen], strict=True
    )
    assert after.states.tobytes() == whole.states[chosen].tobytes()


def test_two_targets_adapt_independently() -> None:
    values = random_walk(80, 2)
    both = np.concatenate([values, seasonal(80, 2)], axis=2)
    together = run(config(targets=2), both).quantiles
    np.testing.assert_array_equal(together[:, :, :1], run(config(), values).quantiles)
    np.testing.assert_array_equal(together[:, :, 1:], run(config(), seasonal(80, 2)).quantiles)


def test_a_missing_step_issues_no_forecast_and_gives_no_label() -> None:
    values = random_walk(40, 1)
    values[20] = np.nan
    quantiles = gru_like(values, 1)
    quantiles[20] = np.nan
    got = run(config(horizon=1), values, quantiles)
    assert np.isnan(got.quantiles[20]).all()
    assert np.isfinite(got.quantiles[21:]).all()
    # Of 40 forecasts the first has no unit, one was not issued, one has no label (step 20), and the last one's is still
    # to come.
    assert got.states["labels"].item() == 36


def test_the_models_forecast_is_unchanged_until_a_target_has_a_value() -> None:
    values = random_walk(30, 2)
    values[:10, 1] = np.nan
    got = run(config(), values)
    np.testing.assert_array_equal(got.quantiles[:10, 1], gru_like(values, 3)[:10, 1])
    assert got.states["steps"].tolist() == [[30], [20]]


def test_intervals_far_ahead_soon_follow_a_calm_month() -> None:
    """The changes between readings stay as they were, so the unit of the errors does not tell of the calm."""
    horizon, calm, T = 192, 4_000, 6_000
    rng = np.random.default_rng(3)
    levels = rng.standard_normal((T // 40, 4, 1)).repeat(40, axis=0)
    levels[calm:] *= 0.25
    values = levels + 0.3 * rng.standard_normal((T, 4, 1))
    got = run(config("off", horizon=horizon), values)
    issued = range(calm + 500, T - horizon, 7)
    labels = np.stack([values[t + 1 : t + 1 + horizon] for t in issued])[:, :, :, 0]  # (n, h, B)
    low, high = (got.quantiles[list(issued), :, 0, q].transpose(0, 2, 1) for q in (0, 2))
    assert ((labels >= low) & (labels <= high)).mean() == pytest.approx(0.8, abs=0.1)


def coverage_far_ahead(values: Floats, got: Run, issued: range) -> float:
    """The share of labels (T, B, 1) in the 80 % intervals over the far half of the horizon."""
    h = got.quantiles.shape[-1]
    labels = np.stack([values[t + 1 + h // 2 : t + 1 + h] for t in issued])[:, :, :, 0]
    low, high = (got.quantiles[list(issued), :, 0, q, h // 2 :].transpose(0, 2, 1) for q in (0, 2))
    return float(((labels >= low) & (labels <= high)).mean())


@pytest.mark.parametrize("size", [300.0, 1e4])
def test_an_outlier_leaves_intervals_far_ahead_at_their_width(size: float) -> None:
    horizon, outlier = 192, 5_000
    values = np.random.default_rng(5).standard_normal((outlier + 1_100 + horizon, 6, 1))
    values[outlier] = size
    got = run(config("off", horizon=horizon), values)
    assert coverage_far_ahead(values, got, range(outlier + 500, outlier + 1_100, 5)) == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_intervals_far_ahead_follow_a_change_of_scale_once(factor: float) -> None:
    """The unit follows the scale, so the recent error must not follow it too."""
    horizon, change = 192, 5_000
    values = np.random.default_rng(9).standard_normal((change + 2_500 + horizon, 6, 1))
    values[change:] *= factor
    got = run(config("off", horizon=horizon), values)
    assert coverage_far_ahead(values, got, range(change + 600, change + 2_500, 9)) == pytest.approx(0.8, abs=0.05)


def test_a_label_scores_an_interval_with_the_recent_error_of_its_issue() -> None:
    shape = config("off", horizon=48)
    values = random_walk(600 + shape.horizon_steps, 2)
    states = run(shape, values[:600]).states
    rougher = states.copy()
    rougher["recent_errors"] *= 3.0
    label = slice(600, 600 + shape.stride)  # a label at every loss point, for forecasts that were issued before
    for part in (states, rougher):
        run(shape, values[label], states=part, start=600)
    for field in ("shape_losses", "factors", "distances"):
        far = states[field][..., shape.loss_points >= shape.stride]
        np.testing.assert_array_equal(far, rougher[field][..., shape.loss_points >= shape.stride])


def test_the_recent_error_is_kept_beyond_40_steps_for_any_season() -> None:
    for season in (1, 12, 60, 1440):
        kept = [
            h for h in range(1, 100) if "recent_errors" in adaptation_dtype(config(horizon=h, season=season)).fields
        ]
        assert kept == list(range(41, 100))


def test_each_side_of_an_interval_far_ahead_is_calibrated() -> None:
    values = np.random.default_rng(4).exponential(1.0, (8_000, 4, 1)) - np.log(2.0)
    got = run(config("off", horizon=96), values)
    last = slice(6_000, 7_900)
    labels = np.stack([values[t + 1 : t + 97] for t in range(last.start, last.stop)])[:, :, :, 0]
    for q, level in ((0, 0.1), (2, 0.9)):
        below = labels < got.quantiles[last, :, 0, q].transpose(0, 2, 1)
        assert below.mean() == pytest.approx(level, abs=0.04)


def test_level_off_only_calibrates_the_spread() -> None:
    values = 10.0 * np.random.default_rng(6).standard_normal((400, 4, 1))
    got = run(config("off"), values)
    np.testing.assert_array_equal(got.quantiles[:, :, :, 1], 0.0)
    assert 9.0 < got.quantiles[-1, :, :, 2].mean() < 17.0  # the true 90 % quantile is 12.8, and the model forecasts 1.3


WILD = {
    "constant": lambda T: np.full((T, 1, 1), 3.7e8),
    "zero": lambda T: np.zeros((T, 1, 1)),
    "missing": lambda T: np.full((T, 1, 1), np.nan),
    "constant, then moving": lambda T: np.concatenate([np.full((T // 2, 1, 1), 5.0), random_walk(T - T // 2, 1)]),
    "huge for a while": lambda T: random_walk(T, 1) * np.where(np.arange(T) // 60 % 3 == 1, 1e300, 1.0)[:, None, None],
    "tiny": lambda T: random_walk(T, 1) * 1e-300,
    "spikes": lambda T: random_walk(T, 1) + np.where(np.arange(T) % 97 == 0, 1e12, 0.0)[:, None, None],
    "often missing": lambda T: np.where(np.random.default_rng(3).random((T, 1, 1)) < 0.9, np.nan, random_walk(T, 1)),
    "alternating": lambda T: np.where(np.arange(T) % 2 == 0, 1e9, -1e9)[:, None, None],
    "rising for ever": lambda T: (1.05 ** np.arange(T))[:, None, None],
}


@pytest.mark.parametrize("name", WILD)
@pytest.mark.parametrize("horizon", [1, 12, 48])
def test_any_input_leaves_states_finite_and_quantiles_in_order(name: str, horizon: int) -> None:
    values = WILD[name](300)
    got = run(config("full", horizon=horizon), values)
    assert np.isfinite(got.quantiles).all()
    assert (np.diff(got.quantiles, axis=3) >= 0.0).all()
    for field in got.states.dtype.names or ():
        assert np.isfinite(got.states[field]).all(), field


def test_adaptation_recovers_from_a_thousandfold_scale_within_1600_steps() -> None:
    values = random_walk(2200, 2)
    values[300:320] *= 1e3
    forecasts = run(config(horizon=1), values).quantiles[:, :, :, 1]
    plain = np.abs(errors(values, naive(values, 1, 1), 1900)).mean()
    assert np.abs(errors(values, forecasts, 1900)).mean() < 1.05 * plain


def autoregressive(T: int, B: int, seed: int = 0) -> Floats:
    """Each value is mostly the negative of the one before, so persistence is far from the best."""
    noise = np.random.default_rng(seed).standard_normal((T, B, 1))
    for step in range(1, T):
        noise[step] -= 0.9 * noise[step - 1]
    return noise


@pytest.mark.parametrize("constant_for", [0, 30, 300])
def test_adaptation_learns_a_series_after_a_constant_part_of_any_length(constant_for: int) -> None:
    values = np.concatenate([np.full((constant_for, 2, 1), 4.0), 4.0 + autoregressive(1500, 2)])
    forecasts = run(config(horizon=1), values).quantiles[:, :, :, 1]
    plain = np.abs(errors(values, naive(values, 1, 1), len(values) - 500)).mean()
    assert np.abs(errors(values, forecasts, len(values) - 500)).mean() < 0.6 * plain


def test_the_record_has_the_sizes_that_the_kernel_computes_with() -> None:
    assert experts.REGRESSORS == kernel.REGRESSORS
    assert experts.AR_LAGS == kernel.AR_LAGS
    assert experts.ERROR_RATE == kernel.ERROR_RATE


@pytest.mark.parametrize("horizon", [1, 24, 96, 720, 20_000])
def test_the_state_is_bounded_for_any_horizon(horizon: int) -> None:
    for level in ("light", "full"):
        shape = config(level, horizon=horizon)  # type: ignore[arg-type]
        assert shape.slots <= PENDING
        assert len(shape.learn_points) <= LEARN_POINTS
        assert len(shape.loss_points) <= 2 * LOSS_POINTS
        assert shape.loss_points[0] == 0
        assert shape.loss_points[-1] == horizon - 1
        assert adaptation_dtype(shape).itemsize < 25_000 + 9 * horizon


def test_a_long_horizon_adapts_too() -> None:
    values = seasonal(500, 2)
    forecasts = run(config(horizon=100), values).quantiles[:, :, :, 1]
    assert (
        np.abs(errors(values, forecasts, 250)).mean()
        < 1.05 * np.abs(errors(values, naive(values, 100, 12), 250)).mean()
    )


HORIZON = 4


def by_the_clock(every: float, hours: int = 3_000, jitter: float = 0.0) -> tuple[NDArray[np.int64], Floats, Run]:
    """Times (T,), values (T, B, 1) and forecasts of seasonal series with a reading every ``every`` cadences."""
    random = np.random.default_rng(7)
    count = int(hours / every)
    at = np.arange(count) * every + random.uniform(-jitter, jitter, count)
    times_us = np.rint(at * HOUR_US).astype(np.int64)
    noise = np.sqrt(every) * 0.2 * random.standard_normal((count, 3)).cumsum(axis=0)
    values = (np.sin(2 * np.pi * at / SEASON)[:, None] * 2.0 + noise)[:, :, None]
    return times_us, values, run(config(horizon=HORIZON), values, times_us=times_us)


def errors_by_the_clock(times_us: NDArray[np.int64], values: Floats, forecasts: Floats, start: int) -> Floats:
    """(h,) mean absolute errors of forecasts (T, B, K, h); a label is interpolated between the values around it."""
    found = []
    for j in range(HORIZON):
        wanted = times_us + (j + 1) * HOUR_US
        inside = (wanted <= times_us[-1]) & (np.arange(len(times_us)) >= start)
        for b in range(values.shape[1]):
            labels = np.interp(wanted[inside], times_us, values[:, b, 0])
            found.append(np.abs(labels - forecasts[inside, b, 0, j]).mean())
    return np.array(found).reshape(HORIZON, -1).mean(axis=1)


@pytest.mark.parametrize(("every", "jitter"), [(1.0, 0.0), (1.0, 0.3), (0.5, 0.0), (0.2, 0.05), (0.6, 0.0), (1.4, 0.0)])
def test_steps_are_counted_by_time_at_any_interval_of_readings(every: float, jitter: float) -> None:
    times_us, values, done = by_the_clock(every, jitter=jitter)
    start = len(times_us) // 3
    found = errors_by_the_clock(times_us, values, done.quantiles[..., 1, :], start)
    persistence = errors_by_the_clock(
        times_us, values, np.broadcast_to(values[..., None], (*values.shape, HORIZON)), start
    )
    # At an amplitude of 2, persistence is off by up to 1.7 after a quarter of a season.
    assert (found < [0.9 * persistence[0], *(0.6 * persistence[1:])]).all(), (found, persistence)
    assert found[-1] < 0.7


@pytest.mark.parametrize("every", [0.02, 0.1, 0.2, 0.5, 0.6, 0.95, 1.0, 1.05, 1.4, 1.5, 1.6, 2.0, 2.5])
def test_each_cadence_has_one_point(every: float) -> None:
    times_us, _, done = by_the_clock(every)
    elapsed = (times_us[-1] - times_us[0]) / HOUR_US
    assert done.states["steps"][:, 0] == pytest.approx(elapsed, rel=0.002)
    assert done.states["observed"][:, 0] == pytest.approx(min(elapsed, len(times_us)), rel=0.002)


def test_readings_with_jitter_keep_a_point_each() -> None:
    times_us, _, done = by_the_clock(1.0, jitter=0.2)
    assert len(times_us) - done.states["observed"].min() < 5
    phases = (times_us + HOUR_US // 2) // HOUR_US
    assert abs(int(done.states["point_us"][0, 0]) - int(phases[-1]) * HOUR_US) < 0.1 * HOUR_US


@pytest.mark.parametrize("minute", [0, 15, 30, 45])
def test_a_season_keeps_its_phases_for_readings_at_any_minute_of_the_hour(minute: int) -> None:
    values = patterned(600)
    jitter_us = np.random.default_rng(9).integers(-30_000_000, 30_000_001, len(values))
    times_us = np.arange(len(values)) * HOUR_US + minute * 60_000_000 + jitter_us
    medians = run(config(), values, times_us=times_us).quantiles[..., 1, :]
    assert np.abs(errors(values, medians, 400)).max() < 0.1


def patterned(hours: int) -> Floats:
    """(T, 2, 1): the same numbers every season, without any noise."""
    pattern = 10.0 * np.random.default_rng(5).standard_normal((SEASON, 2, 1))
    return np.tile(pattern, (hours // SEASON, 1, 1))


def without_crowded_mark(done: Run) -> bytes:
    """The states with the mark cleared that the last point got more than one value."""
    assert done.states["crowded"].all()
    states = done.states.copy()
    states["crowded"] = 0
    return states.tobytes()


def test_an_equal_value_behind_a_point_keeps_the_forecast_and_only_sets_a_mark() -> None:
    values = patterned(600)
    at_point = run(config(), values)
    same = run(config(), values[-1:], states=at_point.states.copy(), times_us=np.array([599 * HOUR_US + 1]))
    assert without_crowded_mark(same) == at_point.states.tobytes()
    np.testing.assert_allclose(same.quantiles, at_point.quantiles[-1:], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(same.weights, at_point.weights[-1:])


def test_a_new_value_behind_a_point_moves_the_forecast() -> None:
    values = np.random.default_rng(3).standard_normal((200, 2, 1)).cumsum(axis=0)
    at_point = run(config(), values)
    moved = run(config(), values[-1:] + 5.0, states=at_point.states.copy(), times_us=np.array([199 * HOUR_US + 1]))
    assert without_crowded_mark(moved) == at_point.states.tobytes()
    assert (moved.quantiles[0, ..., 1, :] > at_point.quantiles[-1, ..., 1, :] + 2.0).all()


def test_a_value_that_arrives_behind_its_point_is_learned() -> None:
    values = patterned(360)
    plain = run(config(), values)
    # Each point first has a reading without the target, and 10 minutes later one with it.
    apart = np.repeat(values, 2, axis=0)
    apart[::2] = np.nan
    times_us = np.repeat(np.arange(360) * HOUR_US, 2) + np.tile([0, 600_000_000], 360)
    late = run(config(), apart, times_us=times_us)
    assert late.states["observed"].tolist() == plain.states["observed"].tolist()
    assert late.states["labels"].tolist() == plain.states["labels"].tolist()
    np.testing.assert_allclose(late.quantiles[-1], plain.quantiles[-1])


@pytest.mark.parametrize("horizon", [1, 3, 12])
@pytest.mark.parametrize("level", ["light", "full"])
def test_targets_in_separate_readings_are_learned_as_in_one_reading(level: Level, horizon: int) -> None:
    shape = config(level, targets=2, horizon=horizon)
    both = np.random.default_rng(6).standard_normal((360, 2, 2)).cumsum(axis=0)
    apart = np.repeat(both, 2, axis=0)
    apart[::2, :, 1] = np.nan
    apart[1::2, :, 0] = np.nan
    times_us = np.repeat(np.arange(360) * HOUR_US, 2) + np.tile([0, 600_000_000], 360)
    together, found = run(shape, both), run(shape, apart, times_us=times_us)
    for name in ("steps", "observed", "labels", "values"):
        np.testing.assert_array_equal(found.states[name], together.states[name])
    if level == "light":  # level full also learns from the hidden state, which differs
        np.testing.assert_array_equal(found.states["losses"], together.states["losses"])
        np.testing.assert_array_equal(found.quantiles[::2, :, 0], together.quantiles[:, :, 0])
        np.testing.assert_array_equal(found.quantiles[1::2, :, 1], together.quantiles[:, :, 1])


def test_every_reading_has_its_point_at_intervals_of_half_cadences() -> None:
    elapsed = np.tile([1.5, 1.0, 1.5, 2.5], 100)
    times_us = np.rint(np.cumsum(elapsed) * HOUR_US).astype(np.int64)
    values = np.random.default_rng(8).standard_normal((len(times_us), 1, 1))
    assert run(config(), values, times_us=times_us).states["observed"].item() == len(times_us)


def test_a_change_of_the_record_layout_needs_a_new_rule_number() -> None:
    """A state of an older layout can have the length of a new one, and would be read as wrong numbers."""
    shapes = (config("full", targets=2), config("full", targets=2, horizon=336))
    layouts = [hashlib.sha256(repr(shape.fields).encode()).hexdigest()[:12] for shape in shapes]
    assert (RULE, layouts) == (7, ["7e6daaed3b0e", "35b3da50060b"])


def test_the_autoregression_learns_a_short_period_that_no_profile_has() -> None:
    """An hourly job on a server: seven steps, in a season of another length."""
    T = 3_000
    rng = np.random.default_rng(3)
    values = np.tile(np.array([0.0, 5.0, 1.0, 0.0, 3.0, 0.0, 0.0]), T // 7 + 1)[:T] + rng.normal(0.0, 0.2, T)
    values = values[:, None, None]
    shape = config("light", horizon=6)
    got = run(shape, values)
    missed = np.abs(errors(values, got.quantiles[:, :, :, 1], T // 2)).mean()
    assert missed < 0.4
    assert missed < 0.2 * np.abs(errors(values, naive(values, 1, 6), T // 2)).mean()
    autoregression = got.weights[T // 2 :, 0, 0, -1].mean()
    assert autoregression > 0.5


def test_intervals_narrow_to_the_mixtures_own_errors_where_the_models_do_not_fit() -> None:
    """The model's intervals vary at random from reading to reading; the errors do not."""
    T = 4_000
    values = np.random.default_rng(5).normal(0.0, 1.0, (T, 1, 1))
    widths = np.random.default_rng(6).lognormal(0.0, 1.5, T)
    model = np.array([-1.282, 0.0, 1.282])[:, None] * widths[:, None, None, None, None]
    got = run(config("light", horizon=1), values, np.ascontiguousarray(model))
    width = got.quantiles[T // 2 :, 0, 0, 2, 0] - got.quantiles[T // 2 :, 0, 0, 0, 0]
    assert width.std() < 0.35 * width.mean()
    assert covered(values, got.quantiles, T // 2) == pytest.approx(0.8, abs=0.03)


def test_level_off_without_calibration_has_no_state() -> None:
    assert not config("off", calibrated=False).active
    assert adaptation_dtype(config("off", calibrated=False)).itemsize == 0


def spread_of(believed_scale: float, values: Floats, horizon: int = 1) -> Floats:
    """(T, B, K, Q, h): a model that forecasts zero with normal quantiles of this scale."""
    spread = believed_scale * np.array([-1.282, 0.0, 1.282])
    return np.broadcast_to(spread[:, None], (*values.shape, 3, horizon)).copy()


def covered(values: Floats, quantiles: Floats, start: int) -> float:
    """Share of the next values inside the 80 % interval."""
    label, low, high = values[1:], quantiles[:-1, :, :, 0, 0], quantiles[:-1, :, :, 2, 0]
    return float(((low <= label) & (label <= high))[start:].mean())


@pytest.mark.parametrize("believed_scale", [0.1, 1.0, 2.0])
@pytest.mark.parametrize("level", ["off", "light"])
def test_intervals_have_their_nominal_coverage_for_any_spread_of_the_model(level: Level, believed_scale: float) -> None:
    rng = np.random.default_rng(0)
    drifting = rng.standard_normal((3000, 10, 1)) * np.exp(np.sin(np.arange(3000) / 240))[:, None, None]
    for values in (rng.standard_normal((3000, 10, 1)), rng.exponential(size=(3000, 10, 1)) - 0.7, drifting):
        got = run(config(level, horizon=1), values, spread_of(believed_scale, values))
        assert covered(values, got.quantiles, 1500) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("believed_scale", [0.003, 0.01, 0.1])
def test_intervals_of_a_smooth_series_have_their_nominal_coverage(believed_scale: float) -> None:
    rising = np.arange(3000.0)[:, None, None] + np.zeros((1, 4, 1))
    values = rising + 0.01 * np.random.default_rng(8).standard_normal(rising.shape)
    quantiles = spread_of(believed_scale, values) + (rising + 1.0)[:, :, :, None, None]
    got = run(config("off", horizon=1), values, quantiles)
    assert covered(values, got.quantiles, 1500) == pytest.approx(0.8, abs=0.04)


def test_the_models_spread_is_unchanged_without_calibration_and_labels() -> None:
    values = random_walk(1, 3)
    model = spread_of(2.0, values, horizon=5)
    got = run(config("light", horizon=5, calibrated=False), values, model)
    np.testing.assert_allclose(np.diff(got.quantiles, axis=3), np.diff(model, axis=3))


def test_a_state_learns_again_after_a_million_uninformative_steps() -> None:
    T, after = 1_000_000, 12_000
    values = np.zeros((T + after, 1, 1))
    values[: T // 2, 0, 0] = 5.0  # constant, then missing and extreme values
    rng = np.random.default_rng(7)
    values[T // 2 : T, 0, 0] = np.where(rng.random(T // 2) < 0.5, np.nan, 10.0 ** rng.uniform(-12, 12, T // 2))
    values[T:] = autoregressive(after, 1)
    shape = config("light", horizon=1)
    got = run(shape, values)
    assert np.isfinite(got.quantiles).all()
    for field in got.states.dtype.names or ():
        assert np.isfinite(got.states[field]).all(), field
    plain = np.abs(errors(values[T:], naive(values[T:], 1, 1), after - 2000)).mean()
    assert np.abs(errors(values[T:], got.quantiles[T:, :, :, 1], after - 2000)).mean() < 0.6 * plain


def test_a_gru_that_follows_chance_is_shrunk_towards_the_profile() -> None:
    T, horizon = 1_500, 24
    rng = np.random.default_rng(9)
    day = np.sin(np.arange(T + horizon) * 2.0 * np.pi / SEASON)
    values = (day[:T] + rng.normal(0.0, 0.2, T))[:, None, None]
    ahead = np.stack([day[1 + j : T + 1 + j] for j in range(horizon)], axis=-1) + rng.normal(0.0, 0.5, (T, 1))
    quantiles = (ahead[:, None, :] + np.array([-1.0, 0.0, 1.0])[:, None])[:, None, None]
    shape = config("light", horizon=horizon)
    weights = run(shape, values, quantiles).weights[-1, 0, 0]
    assert weights[shape.experts.index("shrunk_gru")] > 2.0 * weights[shape.experts.index("gru")]
