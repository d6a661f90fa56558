"""Covariates known ahead enter forecasts: alike in stream, batch and training, and never before they are known."""

import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.artefact import CONFIG_FILE, WEIGHTS_FILE, load_artefact, save_artefact
from model.artefact_size import size_faults, weight_bytes
from model.attributes import Attribute
from model.backtest import Leak, Predictor, assert_causal, model_predictor
from model.batches import LanePool, chunks
from model.carrying_predictor import ForecastRequest
from model.config import Adaptation, ModelConfig
from model.device_data import DeviceData
from model.forecaster import Forecaster
from model.known_ahead import CalendarCovariate, OutlookConfig
from model.normaliser import Floats
from model.outlooks import (
    ACCEPTED,
    NO_ISSUE_US,
    OUTDATED,
    WITHOUT_STATE,
    Arrivals,
    AsOf,
    Outlooks,
    Records,
    as_of,
    lay_on_grid,
)
from model.sequences import Sequences, split_by_time
from model.state import blank_states, state_dtype
from model.stepper import Forecasts, Stepper
from model.training import EpochReport, train
from model.training_options import TrainingOptions
from tests.random_models import random_forecaster, step_by_step
from tests.series import CONFIG, HOUR_US, joined

DAY_S = 86_400
DAYS_OFF = CalendarCovariate("holiday", (2 * DAY_S, 3 * DAY_S, 7 * DAY_S, 9 * DAY_S))
FAIR = CalendarCovariate("fair", (5 * DAY_S, 5 * DAY_S + DAY_S // 2))
WEATHER = OutlookConfig(("TEMP", "WSPM"), 8)
PLAIN = replace(CONFIG, max_gap_steps=24)
CALENDAR = replace(PLAIN, calendar=(DAYS_OFF, FAIR))
OUTLOOKS = replace(PLAIN, outlook=WEATHER)
BOTH = replace(CALENDAR, outlook=WEATHER)
ADAPTATIONS = [Adaptation(), Adaptation("light", True)]


APART = 16  # positions from one reading to the next


@dataclass(frozen=True)
class Data:
    """A data set, and the outlooks that come between its readings."""

    sequences: Sequences
    sensor: np.ndarray  # (m,) of each outlook
    after: np.ndarray  # (m,) offset of the reading that the outlook follows
    position: np.ndarray  # (m,) between those of the readings, which are their offsets times ``APART``
    row: np.ndarray  # (m,)
    outlooks: Outlooks


def weather_data(hours: int = 260, seed: int = 3) -> Data:
    """Three sensors, each with missing readings and a gap that resets its state; some outlooks come late."""
    random = np.random.default_rng(seed)
    moments, values = [], []
    for _ in range(3):
        kept = np.sort(random.choice(np.r_[0 : hours // 2, hours // 2 + 40 : hours], hours - 70, replace=False))
        moments.append(kept * HOUR_US)
        values.append(np.column_stack([np.sin(kept / 4.0), np.zeros(len(kept))]) + random.normal(size=(len(kept), 2)))
    sequences = joined(moments, values, CONFIG.features, HOUR_US, max_gap_steps=24)
    read = np.flatnonzero(sequences.observed)
    chosen = np.sort(random.choice(read, len(read) // 5, replace=False))
    issued_us = sequences.timestamp_us[chosen] - random.integers(0, 12, len(chosen)) * HOUR_US
    grids = []
    for issue in issued_us.tolist():
        times = issue + np.arange(1, 10) * HOUR_US
        cells = random.normal(10.0, 5.0, (9, 2))
        cells[random.random(cells.shape) < 0.1] = np.nan
        grids.append(lay_on_grid(WEATHER, HOUR_US, times, cells))
    outlooks = Outlooks(issued_us, np.array([g.first_us for g in grids]), np.stack([g.values for g in grids]))
    sensor = np.searchsorted(sequences.starts, chosen, side="right") - 1
    # Every second outlook is a group's: the next sensor gets it, too, after its own reading of about that time.
    twice = np.arange(0, len(chosen), 2)
    other = (sensor[twice] + 1) % 3
    theirs = [
        read[np.searchsorted(read, sequences.span(s, None, at + 1)[1]) - 1]
        for s, at in zip(other.tolist(), sequences.timestamp_us[chosen[twice]].tolist(), strict=True)
    ]
    whose = np.concatenate([sensor, other])
    after = np.concatenate([sequences.offset[chosen], sequences.offset[theirs]]).astype(np.int64)
    row = np.concatenate([np.arange(len(chosen)), twice])
    slots = np.searchsorted(sequences.starts, read, side="right") - 1
    order = np.argsort(after, kind="stable")
    whose, after, row = whose[order], after[order], row[order]
    # Outlooks that follow the same reading have different positions, as records have different offsets.
    position = APART * after + 1 + np.arange(len(after)) - np.searchsorted(after, after)
    found = as_of(
        Records(slots, APART * sequences.offset[read].astype(np.int64)),
        sequences.reset[read],
        Records(whose, position),
        issued_us[row],
        np.zeros(3, bool),
    )
    seen = AsOf(np.where(found.row >= 0, row[found.row], -1).astype(np.int32), found.verdict, found.last)
    return Data(sequences.with_outlooks(outlooks, seen), whose, after, position, row, outlooks)


DATA = weather_data()


def streamed(
    forecaster: Forecaster, data: Data, adaptation: Adaptation, cuts: int = 0, seed: int = 0
) -> tuple[Forecasts, np.ndarray]:
    """Forecasts in the order of the steps, and the last states; the stream is cut into ``cuts`` + 1 micro-batches."""
    steps = data.sequences
    random = np.random.default_rng(seed)
    read = np.flatnonzero(steps.observed)
    read = read[np.argsort(steps.timestamp_us[read], kind="stable")]
    rank = np.empty(len(read), int)
    rank[steps.offset[read]] = np.arange(len(read))
    # Events in order: each outlook comes directly after the reading that it follows.
    events = [(rank[steps.offset[at]], 0, at) for at in read]
    events += [(rank[after], 1, entry) for entry, after in enumerate(data.after.tolist())]
    events.sort()
    bounds = [0, *np.sort(random.integers(0, len(events), cuts)).tolist(), len(events)]
    states = blank_states(forecaster.config, 3, adaptation)
    stepper = Stepper(forecaster, adaptation)
    made: list[Forecasts] = []
    order: list[int] = []
    for begin, end in itertools.pairwise(bounds):
        here = np.array([at for _, kind, at in events[begin:end] if kind == 0], int)
        came = np.array([at for _, kind, at in events[begin:end] if kind == 1], int)
        arrivals = Arrivals(
            data.sensor[came],
            data.position[came],
            data.row[came],
            data.outlooks,
            APART * steps.offset[here].astype(np.int64),
        )
        made.append(
            stepper.step(
                states,
                steps.sensors,
                np.searchsorted(steps.starts, here, side="right") - 1,
                steps.timestamp_us[here],
                steps.values[here],
                steps.offset[here],
                arrivals=arrivals if forecaster.config.outlook is not None else None,
            )
        )
        order += here.tolist()
    in_order = np.argsort(order)
    by_reading = ("quantiles", "scale", "origin", "steps", "warm", "outlook_issued_us")
    joined_up = {name: np.concatenate([getattr(each, name) for each in made])[in_order] for name in by_reading}
    verdict = np.concatenate([each.outlook_verdict for each in made])
    return replace(made[0], **joined_up, outlook_verdict=verdict), states


def batched(forecaster: Forecaster, sequences: Sequences, adaptation: Adaptation) -> np.ndarray:
    predictor = model_predictor(forecaster, adaptation=adaptation)
    requests = [ForecastRequest(sequences.past(s, sequences.span(s)[1]), 0) for s in range(3)]
    return np.concatenate(predictor.forecasts_together(requests))[sequences.observed]


def random_model(config: ModelConfig) -> Forecaster:
    """Random weights, so large that every input changes the forecasts, and a standard of the data's outlooks."""
    made = random_forecaster(config)
    made.fit_outlooks(DATA.sequences, 2**62)
    if made.ahead is not None:
        with torch.no_grad():
            made.ahead.give_out.weight.mul_(0.3)  # otherwise the term is larger than the rest, and so is its rounding
    return made


@pytest.mark.parametrize("config", [CALENDAR, OUTLOOKS, BOTH], ids=["calendar", "outlooks", "both"])
@pytest.mark.parametrize("adaptation", ADAPTATIONS, ids=["off", "light"])
def test_the_stream_forecasts_like_a_back_test(config: ModelConfig, adaptation: Adaptation) -> None:
    forecaster = random_model(config)
    stream, _ = streamed(forecaster, DATA, adaptation)
    batch = batched(forecaster, DATA.sequences, adaptation)
    np.testing.assert_array_equal(batch, stream.quantiles)
    if config.outlook is not None:
        assert set(np.unique(stream.outlook_verdict)) == {ACCEPTED, OUTDATED}
        row = DATA.sequences.outlook[DATA.sequences.observed]  # type: ignore[index]
        seen = np.append(DATA.outlooks.issued_us, NO_ISSUE_US)[row]
        np.testing.assert_array_equal(stream.outlook_issued_us, seen)


@pytest.mark.parametrize("config", [CALENDAR, BOTH], ids=["calendar", "both"])
def test_forecasts_of_two_targets_and_attributes_equal_single_steps_of_the_network(config: ModelConfig) -> None:
    site = Attribute("site", (("s0", "urban"), ("s1", "rural")))
    forecaster = random_model(replace(config, targets=("level", "other"), attributes=(site,)))
    steps = DATA.sequences
    found = batched(forecaster, steps, Adaptation())
    expected = np.concatenate([step_by_step(forecaster, steps, sensor) for sensor in range(3)])[steps.observed]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("cuts", [1, 7, 300])
def test_bits_do_not_depend_on_how_the_stream_is_cut(cuts: int) -> None:
    forecaster = random_model(BOTH)
    whole, states = streamed(forecaster, DATA, ADAPTATIONS[1])
    cut, cut_states = streamed(forecaster, DATA, ADAPTATIONS[1], cuts, seed=cuts)
    assert cut.quantiles.tobytes() == whole.quantiles.tobytes()
    assert cut_states.tobytes() == states.tobytes()
    np.testing.assert_array_equal(np.sort(cut.outlook_verdict), np.sort(whole.outlook_verdict))


def test_every_covariate_changes_forecasts() -> None:
    base, _ = streamed(random_model(BOTH), DATA, ADAPTATIONS[0])
    other_days = replace(BOTH, calendar=(replace(DAYS_OFF, changes_s=()), FAIR))
    without, _ = streamed(random_model(other_days), DATA, ADAPTATIONS[0])
    assert (without.quantiles != base.quantiles).any()
    cells = DATA.outlooks.values.copy()
    cells[:, :, 1] += 1.0
    windier, _ = streamed(
        random_model(BOTH), replace(DATA, outlooks=replace(DATA.outlooks, values=cells)), ADAPTATIONS[0]
    )
    assert (windier.quantiles != base.quantiles).any()


def test_an_outlook_before_the_first_reading_is_not_used() -> None:
    stepper = Stepper(random_model(OUTLOOKS))
    states = blank_states(stepper.config, 1)
    early = Outlooks(np.array([0]), np.array([0]), np.ones((1, 8, 2), np.float32))
    only = Arrivals(np.array([0]), np.array([4]), np.array([0]), early, np.empty(0, np.int64))
    none = np.empty(0, np.int64)
    made = stepper.step(states, ["s0"], none, none, np.empty((0, 2)), none, arrivals=only)
    assert made.outlook_verdict.tolist() == [WITHOUT_STATE]
    assert states.tobytes() == blank_states(stepper.config, 1).tobytes()


def test_an_outlook_without_readings_is_stored_and_a_reset_clears_it() -> None:
    stepper = Stepper(random_model(OUTLOOKS))
    states = blank_states(stepper.config, 1)
    none = np.empty(0, np.int64)
    zero = np.zeros(1, np.int64)
    stepper.step(states, ["s0"], zero, zero, np.ones((1, 2)), zero)
    ahead = Outlooks(np.array([HOUR_US]), np.array([HOUR_US]), np.ones((1, 8, 2), np.float32))
    came = Arrivals(zero, zero + 1, zero, ahead, none)
    stepper.step(states, ["s0"], none, none, np.empty((0, 2)), none, arrivals=came)
    assert states["outlook_issued_us"].tolist() == [HOUR_US]
    made = stepper.step(states, ["s0"], zero, zero + HOUR_US, np.ones((1, 2)), zero + 2)
    assert made.outlook_issued_us.tolist() == [HOUR_US]
    made = stepper.step(states, ["s0"], zero, zero + 99 * HOUR_US, np.ones((1, 2)), zero + 3)
    assert made.outlook_issued_us.tolist() == [NO_ISSUE_US]
    assert states["outlook_issued_us"].tolist() == [NO_ISSUE_US]


def test_records_that_are_read_again_count_no_outlook_twice() -> None:
    """After a restore the forecaster may read records that a state contains already."""
    stepper = Stepper(random_model(OUTLOOKS))
    states = blank_states(stepper.config, 1)
    none, zero = np.empty(0, np.int64), np.zeros(1, np.int64)

    def read(offset: int, hour: int) -> None:
        stepper.step(states, ["s0"], zero, zero + hour * HOUR_US, np.ones((1, 2)), zero + offset)

    def come(offset: int, hour: int) -> int:
        outlook = Outlooks(zero + hour * HOUR_US, zero + hour * HOUR_US, np.ones((1, 8, 2), np.float32))
        came = Arrivals(zero, zero + offset, zero, outlook, none)
        return int(stepper.step(states, ["s0"], none, none, np.empty((0, 2)), none, arrivals=came).outlook_verdict[0])

    read(0, 0)
    assert states["outlook_from"].tolist() == [0]
    assert come(1, 1) == ACCEPTED
    assert states["outlook_from"].tolist() == [2]
    assert come(1, 1) == OUTDATED
    read(2, 200)  # after a reset
    assert (states["outlook_from"].tolist(), states["outlook_issued_us"].tolist()) == ([2], [NO_ISSUE_US])
    assert come(1, 1) == OUTDATED
    assert states["outlook_issued_us"].tolist() == [NO_ISSUE_US]
    assert come(3, 1) == ACCEPTED


def test_a_reading_does_not_see_the_outlook_at_whose_offset_it_was_released() -> None:
    stepper = Stepper(random_model(OUTLOOKS))
    states = blank_states(stepper.config, 1)
    zero = np.zeros(2, np.int64)
    outlook = Outlooks(zero[:1], zero[:1], np.ones((1, 8, 2), np.float32))
    came = Arrivals(zero[:1], zero[:1] + 9, zero[:1], outlook, np.array([0, 9]))
    made = stepper.step(states, ["s0"], zero, np.array([0, HOUR_US]), np.ones((2, 2)), np.array([0, 1]), arrivals=came)
    assert made.outlook_issued_us.tolist() == [NO_ISSUE_US] * 2
    assert states["outlook_issued_us"].tolist() == [0]


# --- never before it is known -----------------------------------------------------------------------------------------


def test_later_outlooks_change_no_earlier_forecast() -> None:
    forecaster = random_model(BOTH)
    cuts_us = [60 * HOUR_US, 100 * HOUR_US, 200 * HOUR_US]
    assert_causal(lambda _: model_predictor(forecaster), DATA.sequences, BOTH, cuts_us)
    before, _ = streamed(forecaster, DATA, ADAPTATIONS[1])
    at = 100 * HOUR_US
    came = DATA.sequences.timestamp_us[np.flatnonzero(DATA.sequences.observed)][DATA.after]
    first_known = np.full(len(DATA.outlooks), np.iinfo(np.int64).max)
    np.minimum.at(first_known, DATA.row, came)
    cells = DATA.outlooks.values.copy()
    cells[first_known >= at] = 77.0
    after, _ = streamed(forecaster, replace(DATA, outlooks=replace(DATA.outlooks, values=cells)), ADAPTATIONS[1])
    earlier = DATA.sequences.timestamp_us[DATA.sequences.observed] <= at
    assert before.quantiles[earlier].tobytes() == after.quantiles[earlier].tobytes()
    assert (before.quantiles[~earlier] != after.quantiles[~earlier]).any()


class _Peeking:
    """Gives each step the outlook of the next step, known or not."""

    name = "peeking"

    def __init__(self, forecaster: Forecaster, sequences: Sequences) -> None:
        self._inner = model_predictor(forecaster)
        assert sequences.outlook is not None
        self._moved = replace(sequences, outlook=np.append(sequences.outlook[1:], sequences.outlook[-1]))

    def forecasts(self, sequences: Sequences, sensor: int, lo: int, hi: int) -> Floats:
        index = sequences.sensors[sensor]
        return self._inner.forecasts(self._moved, self._moved.sensors.index(index), lo, hi)


def test_a_predictor_that_sees_an_outlook_too_early_is_caught() -> None:
    forecaster = random_model(OUTLOOKS)
    one = DATA.sequences.past(0, DATA.sequences.span(0)[1])
    assert one.outlook is not None
    came = np.flatnonzero(np.diff(one.outlook) > 0) + 1
    cuts_us = one.timestamp_us[came[len(came) // 2 : len(came) // 2 + 3]].tolist()

    def build(sequences: Sequences) -> Predictor:
        return _Peeking(forecaster, sequences)

    assert_causal(lambda _: model_predictor(forecaster), one, OUTLOOKS, cuts_us)
    with pytest.raises(Leak):
        assert_causal(build, one, OUTLOOKS, cuts_us)


def test_a_step_whose_outlook_was_issued_after_it_is_caught() -> None:
    """The leak is in the data, not in the predictor: a record of an outlook at an earlier offset than it had."""
    forecaster = random_model(OUTLOOKS)
    one = DATA.sequences.past(0, DATA.sequences.span(0)[1])
    assert one.outlook is not None
    came = np.flatnonzero(np.diff(one.outlook) > 0) + 1
    step = int(came[len(came) // 2])
    row = int(one.outlook[step])
    outlooks = replace(DATA.outlooks, issued_us=DATA.outlooks.issued_us.copy())
    outlooks.issued_us[row] = one.timestamp_us[step]
    cuts_us = [int(one.timestamp_us[step])]
    honest = replace(one, outlooks=outlooks)
    assert_causal(lambda _: model_predictor(forecaster), honest, OUTLOOKS, cuts_us)
    moved = one.outlook.copy()
    moved[step - 1] = row
    with pytest.raises(Leak, match=f"issued at {one.timestamp_us[step - 1]} µs depends on readings or outlooks"):
        assert_causal(lambda _: model_predictor(forecaster), replace(honest, outlook=moved), OUTLOOKS, cuts_us)


# --- weights, artefacts, warm starts ----------------------------------------------------------------------------------


def test_an_untrained_model_forecasts_like_one_without_covariates() -> None:
    models = []
    for config in (PLAIN, BOTH):
        torch.manual_seed(1)
        models.append(Forecaster(config))
    plain, both = (batched(each, DATA.sequences, ADAPTATIONS[0]) for each in models)
    np.testing.assert_array_equal(plain, both)


def test_models_without_covariates_keep_their_state_and_weights() -> None:
    assert not {"outlook", "outlook_issued_us"} & set(state_dtype(PLAIN).names or ())
    assert state_dtype(CALENDAR) == state_dtype(PLAIN)
    assert not [name for name in Forecaster(PLAIN).stored_weights() if "ahead" in name or "outlook" in name]


@pytest.mark.parametrize("config", [CALENDAR, OUTLOOKS, BOTH], ids=["calendar", "outlooks", "both"])
def test_an_artefact_keeps_covariates_and_its_size_is_known(config: ModelConfig, tmp_path: Path) -> None:
    forecaster = random_model(config)
    save_artefact(forecaster, tmp_path / "model")
    loaded = load_artefact(tmp_path / "model")
    assert loaded.config == forecaster.config
    np.testing.assert_array_equal(loaded.standard, forecaster.standard)
    tensors = forecaster.stored_weights().values()
    assert weight_bytes(forecaster.config) == sum(each.numel() * each.element_size() for each in tensors)
    first, again = (batched(each, DATA.sequences, ADAPTATIONS[0]) for each in (forecaster, loaded))
    np.testing.assert_array_equal(first, again)
    assert not size_faults(config)
    assert (tmp_path / "model" / WEIGHTS_FILE).stat().st_size >= weight_bytes(forecaster.config)
    assert "calendar" in json.loads((tmp_path / "model" / CONFIG_FILE).read_text()) or not config.calendar


def test_outlooks_too_long_for_a_state_are_refused() -> None:
    faults = size_faults(replace(PLAIN, outlook=OutlookConfig(("TEMP",), 1 << 22)))
    assert len(faults) == 1
    assert "state of a sensor" in faults[0]


@pytest.mark.parametrize(
    ("before", "after"), [(PLAIN, BOTH), (CALENDAR, OUTLOOKS), (BOTH, PLAIN), (BOTH, CALENDAR)], ids=str
)
def test_a_warm_start_with_other_covariates_begins_without_the_term(before: ModelConfig, after: ModelConfig) -> None:
    initial = random_model(before)
    torch.manual_seed(5)
    begun = Forecaster(replace(initial.config, calendar=after.calendar, outlook=after.outlook))
    begun.adopt(initial)
    if initial.ahead is not None:
        torch.nn.init.zeros_(initial.ahead.give_out.weight)
    found, expected = (batched(each.eval(), DATA.sequences, ADAPTATIONS[0]) for each in (begun, initial))
    np.testing.assert_array_equal(found, expected)


def test_a_warm_start_with_other_days_keeps_the_term() -> None:
    initial = random_model(BOTH)
    begun = Forecaster(replace(initial.config, calendar=(replace(DAYS_OFF, changes_s=()), FAIR)))
    begun.adopt(initial)
    assert begun.ahead is not None
    assert initial.ahead is not None
    assert torch.equal(begun.ahead.give_out.weight, initial.ahead.give_out.weight)
    np.testing.assert_array_equal(begun.standard, initial.standard)


# --- training ---------------------------------------------------------------------------------------------------------


def test_training_gathers_the_inputs_of_a_back_test() -> None:
    forecaster = random_model(BOTH)
    prepared = forecaster.prepare(DATA.sequences)
    pool = LanePool(forecaster, prepared, 2**62, np.random.default_rng(0))
    data = DeviceData(torch.device("cpu"))
    inputs = forecaster.ahead_inputs()
    assert inputs is not None
    compared = 0
    lanes = next(pool.passes(8, 16, 0.0))
    for number, chunk in enumerate(chunks(lanes, 32, 4, data=data)):
        assert chunk.ahead is not None
        by_set: dict[int, list[int]] = {}
        for lane in range(len(lanes)):
            by_set.setdefault(id(lanes[lane].prepared), []).append(lane)
        for place, lane in enumerate(lane for found in by_set.values() for lane in found):
            one = lanes[lane]
            index = np.arange(one.lo + 32 * number, min(one.lo + 32 * (number + 1), one.hi))[chunk.scored]
            steps = one.prepared.sequences
            assert steps.outlook is not None
            expected = inputs.of_arrays(steps.timestamp_us[index], steps.outlooks, steps.outlook[index])
            assert torch.equal(chunk.ahead[place, : len(index)], expected)
            compared += len(index)
    assert compared > 100


class Killed(Exception):
    """Ends training as a kill of its process would."""


@pytest.mark.parametrize("preset", ["stateful", "plain"])
def test_training_is_repeatable_and_continues_after_a_kill(preset: str, tmp_path: Path) -> None:
    options = TrainingOptions(preset=preset, epochs=2, updates_per_epoch=5, hidden_size=8, window_steps=24, threads=1)  # type: ignore[arg-type]
    split = split_by_time(DATA.sequences, 0.2, 0.2)
    whole = train(BOTH, options, DATA.sequences, split)

    def kill_in_the_second(epoch: EpochReport) -> None:
        if epoch.epoch == 2:
            raise Killed  # the checkpoint does not contain this epoch yet

    with pytest.raises(Killed):
        train(BOTH, options, DATA.sequences, split, report=kill_in_the_second, checkpoint=tmp_path / "checkpoint")
    again = train(BOTH, options, DATA.sequences, split, checkpoint=tmp_path / "checkpoint")
    for name, tensor in whole.forecaster.state_dict().items():
        assert torch.equal(tensor, again.forecaster.state_dict()[name]), name
    assert whole.forecaster.ahead is not None
    assert (whole.forecaster.ahead.give_out.weight != 0.0).any()
    assert (whole.forecaster.standard[0] != 0.0).all()
