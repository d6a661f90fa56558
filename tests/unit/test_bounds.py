"""No published quantile leaves the bounds of its target; without bounds, forecasts and artefacts keep their bytes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.artefact import CONFIG_FILE, ArtefactError, load_artefact, save_artefact
from model.autoregression import Autoregression
from model.baselines import Persistence, SeasonalNaive
from model.bounds import NO_BOUNDS, Bounds, limits, within_bounds
from model.config import Adaptation
from model.forecaster import Forecaster
from model.unit_kernel import FACTOR, OFFSET
from pipeline.audit.recompute import TOLERANCE, half_counts, relative_differences
from pipeline.errors import SettingsError
from pipeline.evaluation.evaluate import model_config
from pipeline.forecast_encoding import round_to_scale
from pipeline.settings import load_settings
from tests.random_models import batched, random_forecaster, stepped
from tests.series import CONFIG, HOUR_US, noisy_days

ADAPTATIONS = [Adaptation(), Adaptation("off", True), Adaptation("light", True), Adaptation("full", True)]
BOUNDS = [Bounds(minimum=0.0), Bounds(-0.3, 0.7), Bounds(maximum=0.2), Bounds(count=True), Bounds(-1, 1, True)]


def with_bounds(*bounds: Bounds) -> Forecaster:
    return random_forecaster(replace(CONFIG, bounds=bounds))


def assert_possible(quantiles: np.ndarray, bounds: Bounds) -> None:
    assert quantiles.min() >= bounds.lowest
    assert quantiles.max() <= bounds.highest
    assert (np.diff(quantiles, axis=2) >= 0.0).all()
    assert not (np.signbit(quantiles) & (quantiles == 0.0)).any()
    if bounds.count:
        np.testing.assert_array_equal(quantiles, np.rint(quantiles))


# --- arithmetic -------------------------------------------------------------------------------------------------------

ends = st.none() | st.integers(-50, 50).map(float)


@st.composite
def any_bounds(draw: st.DrawFn) -> Bounds:
    low, high, count = draw(ends), draw(ends), draw(st.booleans())
    least = 0.0 if count else -np.inf
    if high is not None and high <= (least if low is None else low):
        high = None
    return Bounds(low, high, count)


@given(bounds=st.lists(any_bounds(), min_size=1, max_size=3), seed=st.integers(0, 10_000), size=st.floats(1e-3, 1e3))
def test_every_quantile_is_possible_and_in_order(bounds: list[Bounds], seed: int, size: float) -> None:
    quantiles = np.sort(np.random.default_rng(seed).normal(0, size, (4, len(bounds), 3, 5)), axis=2)
    kept = within_bounds(bounds, quantiles)
    for target, each in enumerate(bounds):
        assert_possible(kept[:, target : target + 1], each)
        inside = (quantiles[:, target] >= each.lowest) & (quantiles[:, target] <= each.highest)
        nearest = np.rint(quantiles[:, target][inside]) if each.count else quantiles[:, target][inside]
        np.testing.assert_array_equal(kept[:, target][inside], nearest)


def test_without_bounds_the_quantiles_are_not_touched() -> None:
    quantiles = np.array([[[[-0.0, np.inf]]]])
    assert within_bounds((), quantiles) is quantiles


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_bound_does_not_hide_a_non_finite_forecast(broken: float) -> None:
    assert np.isnan(within_bounds([Bounds(0.0, 1.0, True)], np.full((1, 1, 1, 1), broken))).all()


@given(
    value=st.floats(-1e6, 1e6),
    scale=st.sampled_from([0.0, 1e-20, 0.3, 40.0, 5e6, 2e9]),
    low=st.floats(-1e3, 1e3),
    width=st.floats(1e-3, 1e3),
)
def test_rounding_for_publication_crosses_no_bound(value: float, scale: float, low: float, width: float) -> None:
    between = np.array([[[low, low + width]]])
    quantiles = np.clip(np.full((1, 1, 1, 1), value), low, low + width)
    assert low <= round_to_scale(quantiles, np.full((1, 1), scale), between).item() <= low + width


@pytest.mark.parametrize("scale", [0.0, 1e-20, 3e-10, 0.3, 1e9])
def test_rounding_for_publication_keeps_whole_numbers(scale: float) -> None:
    quantiles = np.arange(1000.0).reshape(1, 1, 1, -1)
    result = round_to_scale(quantiles, np.full((1, 1), scale), limits([Bounds(count=True)])[None])
    np.testing.assert_array_equal(result, quantiles)


@pytest.mark.parametrize(
    ("given_bounds", "told"),
    [
        ({"minimum": 2, "maximum": 2}, "the minimum (2) must lie below the maximum (2)"),
        ({"count": True, "maximum": -1}, "the least value of a count (0) must lie below the maximum (-1)"),
        ({"count": True, "minimum": 0.5}, "the minimum of a count must be a whole number, not 0.5"),
        ({"minimum": float("nan")}, "minimum must be a number within ±1e30, not nan"),
        ({"maximum": 10**400}, "maximum must be a number within ±1e30"),
        ({"minimum": True}, "minimum must be a number within ±1e30, not True"),
        ({"count": 1}, "count must be true or false, not 1"),
    ],
)
def test_impossible_bounds_are_refused(given_bounds: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the message is compared next
        Bounds(**given_bounds)
    assert str(raised.value).startswith(told)


# --- stream, batch and audit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
@pytest.mark.parametrize("adaptation", ADAPTATIONS, ids=lambda each: f"{each.level} {each.calibrated}")
def test_the_stream_keeps_the_bounds_and_carries_the_same_states(adaptation: Adaptation, bounds: Bounds) -> None:
    sequences = noisy_days(hours=150)
    free, free_states, _ = stepped(with_bounds(), sequences, adaptation)
    made, states, _ = stepped(with_bounds(bounds), sequences, adaptation)
    assert ((free.quantiles < bounds.lowest) | (free.quantiles > bounds.highest)).any()
    assert free.limits.shape == (len(free.scale), 0, 2)
    assert_possible(made.quantiles, bounds)
    np.testing.assert_array_equal(made.quantiles, within_bounds([bounds], free.quantiles))
    assert states.tobytes() == free_states.tobytes()
    published = round_to_scale(made.quantiles, made.scale, made.limits)
    assert_possible(published, bounds)


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
@pytest.mark.parametrize("adaptation", ADAPTATIONS[::2], ids=lambda each: each.level)
def test_the_evaluator_keeps_the_bounds_like_the_stream(adaptation: Adaptation, bounds: Bounds) -> None:
    sequences = noisy_days(hours=150)
    found = batched(with_bounds(bounds), sequences, adaptation)
    assert_possible(found, bounds)
    np.testing.assert_array_equal(found, within_bounds([bounds], batched(with_bounds(), sequences, adaptation)))
    made, _, read = stepped(with_bounds(bounds), sequences, adaptation)
    apart = np.abs(made.quantiles - found[read])
    if bounds.count:  # a difference in the last bits may become one of 1, but rarely
        assert (apart > 0.0).mean() < 1e-3
    else:
        assert (apart <= 1e-5 * np.maximum(made.scale[:, :, None, None], np.abs(found[read]))).all()


@pytest.mark.parametrize("bounds", [Bounds(minimum=0.0), Bounds(-0.3, 0.7), Bounds(-1, 1, True)], ids=str)
@pytest.mark.parametrize(("factor", "raised"), [(1_000.0, 0.0), (1.0, 300.0)])
def test_bounds_change_their_unit_with_the_sensor(bounds: Bounds, factor: float, raised: float) -> None:
    adaptation = Adaptation("light", True)
    sequences = noisy_days()
    lo, hi = sequences.span(0)
    values = sequences.values.copy()
    values[(lo + hi) // 2 : hi, 0] = values[(lo + hi) // 2 : hi, 0] * factor + raised
    sequences = replace(sequences, values=values)
    made, states, read = stepped(with_bounds(bounds), sequences, adaptation)
    assert states["units"][0, 0, FACTOR] == factor  # the change was accepted
    offset = states["units"][0, 0, OFFSET]
    first = read < hi
    mapped = first & (made.unit_factor[:, 0] != 0.0)
    assert mapped.any()
    low, high = bounds.lowest * factor + min(offset, 0.0), bounds.highest * factor + max(offset, 0.0)
    published = round_to_scale(made.quantiles, made.scale, made.limits)
    for quantiles in (made.quantiles, published, batched(with_bounds(bounds), sequences, adaptation)[read]):
        assert_possible(quantiles[~mapped], bounds)
        assert quantiles[mapped].min() >= low
        assert quantiles[mapped].max() <= high
        assert (np.diff(quantiles, axis=2) >= 0.0).all()


def test_bounds_do_not_hold_back_values_that_jump_and_return_slowly() -> None:
    """A jump of the values looks like another zero point; the true bounds must not move with it."""
    sequences = noisy_days()
    lo, hi = sequences.span(0)
    half = (lo + hi) // 2
    values = sequences.values.copy()
    values[half:hi, 0] += np.minimum(300.0, np.linspace(450.0, 0.0, hi - half))
    sequences = replace(sequences, values=values)
    bounds = Bounds(minimum=-1.0, maximum=320.0)
    made, _, read = stepped(with_bounds(bounds), sequences, Adaptation("light", True))
    free, _, _ = stepped(with_bounds(NO_BOUNDS), sequences, Adaptation("light", True))
    mapped = (read < hi) & (made.unit_factor[:, 0] != 0.0)
    assert mapped.any()
    assert made.limits[mapped, 0, 0].max() <= -1.0
    assert made.limits[mapped, 0, 1].min() >= 320.0
    assert_possible(made.quantiles[read < hi], Bounds(minimum=-1.0))
    inside = (free.quantiles >= -1.0) & (free.quantiles <= 320.0)
    np.testing.assert_array_equal(made.quantiles[inside], free.quantiles[inside])


def test_readings_outside_the_bounds_are_accepted_and_step_the_state() -> None:
    sequences = noisy_days(hours=60)
    made, states, _ = stepped(with_bounds(Bounds(5.0, 6.0)), sequences, Adaptation())
    assert_possible(made.quantiles, Bounds(5.0, 6.0))
    assert states["accepted"].tolist() == np.add.reduceat(sequences.observed, sequences.starts[:-1]).tolist()


@pytest.mark.parametrize("adaptation", [Adaptation(), Adaptation("light", True)], ids=lambda each: each.level)
def test_the_audit_accepts_the_rounding_of_counts_and_nothing_beyond(adaptation: Adaptation) -> None:
    forecaster = with_bounds(Bounds(-3, None, True))
    sequences = noisy_days(hours=100)
    made, _, _ = stepped(forecaster, sequences, adaptation)
    plain, _, _ = stepped(forecaster, sequences, adaptation, whole=False)
    assert (plain.quantiles != np.rint(plain.quantiles)).any()
    published = round_to_scale(made.quantiles, made.scale, made.limits).astype(np.float32)
    expected = round_to_scale(plain.quantiles, plain.scale, plain.limits)
    half = half_counts(forecaster.config, plain)
    assert relative_differences(published, expected, plain.scale, half).max() <= TOLERANCE
    assert (relative_differences(published + np.float32(2.0), expected, plain.scale, half) > TOLERANCE).all()
    if adaptation.active:
        doubled = replace(plain, unit_factor=np.full_like(plain.unit_factor, 1_000.0))
        assert (half_counts(forecaster.config, doubled) == 500.0).all()


def test_the_baselines_keep_the_bounds_too() -> None:
    config = replace(CONFIG, bounds=(Bounds(0.0, 0.5),))
    sequences = noisy_days(hours=150)
    for kind in (Persistence, SeasonalNaive, Autoregression):
        baseline = kind(config).fit(sequences, 100 * HOUR_US)
        assert_possible(baseline.forecasts(sequences, 0, *sequences.span(0)), Bounds(0.0, 0.5))


# --- artefacts --------------------------------------------------------------------------------------------------------


def test_a_model_is_saved_with_its_bounds(tmp_path: Path) -> None:
    made = Forecaster(replace(CONFIG, targets=("level", "other"), bounds=(Bounds(0.0, None, True), NO_BOUNDS)))
    save_artefact(made, tmp_path / "model")
    assert load_artefact(tmp_path / "model").config == made.config


def test_a_model_without_bounds_is_saved_in_the_earlier_form(tmp_path: Path) -> None:
    save_artefact(Forecaster(CONFIG), tmp_path / "model")
    assert "bounds" not in json.loads((tmp_path / "model" / CONFIG_FILE).read_text())
    assert load_artefact(tmp_path / "model").config.bounds == ()


@pytest.mark.parametrize(
    ("bounds", "told"),
    [
        ([{"minimum": 3, "maximum": 2}], "must lie below the maximum"),
        ([{"minimum": "a"}], "minimum must be a number"),
        ([{"least": 1}], "least"),
        ([{}, {}], "bounds must be those of all 1 targets, not of 2"),
        ([3], "not a model configuration"),
        (3, "not a model configuration"),
    ],
)
def test_an_artefact_with_impossible_bounds_is_refused(tmp_path: Path, bounds: object, told: str) -> None:
    save_artefact(Forecaster(CONFIG), tmp_path / "model")
    path = tmp_path / "model" / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bounds": bounds}))
    with pytest.raises(ArtefactError, match=told):
        load_artefact(tmp_path / "model")


# --- settings ---------------------------------------------------------------------------------------------------------


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text('features = ["PM2.5", "T", "cars"]\ntargets = ["T", "PM2.5"]\n' + text)
    return path


def test_a_model_gets_the_bounds_of_its_targets_from_the_settings(tmp_path: Path) -> None:
    text = '[bounds."PM2.5"]\nminimum = 0\n[bounds.cars]\ncount = true\n'
    settings = load_settings(write(tmp_path, text))
    assert model_config(settings).bounds == (NO_BOUNDS, Bounds(minimum=0.0))


def test_bounds_of_a_feature_outside_the_targets_are_not_in_the_model(tmp_path: Path) -> None:
    assert model_config(load_settings(write(tmp_path, "[bounds.cars]\ncount = true\n"))).bounds == ()


def test_bounds_are_the_models_so_they_are_not_in_the_fingerprint(tmp_path: Path) -> None:
    plain, bounded = (load_settings(write(tmp_path, text)) for text in ("", "[bounds.T]\nminimum = -90\n"))
    assert plain.fingerprint == bounded.fingerprint


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[bounds.X]\nminimum = 0", "bounds must name targets, but the features lack X"),
        ("[bounds.PM2.5]\nminimum = 0", 'a name with a dot needs quotes: [bounds."PM2.5"]'),
        ("[bounds.T]\nminimum = 4\nmaximum = 3", "bounds.T: the minimum (4) must lie below the maximum (3)"),
        ("[bounds.T]\ncount = true\nmaximum = 3.5", "bounds.T: the maximum of a count must be a whole number, not 3.5"),
        ("[bounds.T]\ncount = false", "bounds.T: set minimum, maximum or count = true, or leave the target out"),
        ("[bounds.T]\nminimum = inf", "bounds.T.minimum: Input should be a finite number"),
        ("[bounds.T]\nminimun = 0", "bounds.T.minimun in line 4 is not a setting"),
        ("bounds = 3", "bounds: Input should be a table"),
    ],
)
def test_wrong_bounds_are_named(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load_settings(write(tmp_path, text))
    assert told in str(raised.value)


def test_a_variable_can_set_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMGRU_BOUNDS", '{"value": {"minimum": 0}}')
    assert load_settings().target_bounds == (Bounds(minimum=0.0),)
    monkeypatch.setenv("STREAMGRU_BOUNDS__VALUE__MAXIMUM", "3")
    with pytest.raises(SettingsError, match="VALUE"):
        load_settings()
    monkeypatch.delenv("STREAMGRU_BOUNDS__VALUE__MAXIMUM")
    monkeypatch.setenv("STREAMGRU_BOUNDS__value__MAXIMUM", "3")
    assert load_settings().target_bounds == (Bounds(0.0, 3.0),)
