"""Training learns, repeats bit for bit, chooses its epoch on the validation part and never reads the test part."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model import distributed, training_loop
from model.attributes import UNKNOWN_SENSOR
from model.batches import LARGEST_LABEL, LanePool, chunks, evaluation_lanes, scaled_labels
from model.config import ModelConfig
from model.distributed import Ranks
from model.forecaster import Forecaster
from model.sequences import Sequences, Split, build_sequences
from model.training import DeviceError, EpochReport, TrainingOptions, TrainingResult, choose_device, train

HOUR_US = 3_600_000_000
STEPS = 1_500
SPLIT = Split(1_100 * HOUR_US, 1_300 * HOUR_US)
QUICK = TrainingOptions(
    hidden_size=12, epochs=3, updates_per_epoch=20, batch_lanes=8, chunk_steps=24, learning_rate=5e-3, threads=1
)


PLAIN = replace(QUICK, preset="plain", batch_lanes=64, window_steps=24)


def config(**changes: object) -> ModelConfig:
    fields: dict[str, object] = {
        "features": ("load", "heat"),
        "targets": ("load",),
        "cadence_us": HOUR_US,
        "horizon_steps": 4,
        "season_steps": 12,
        "warmup_steps": 24,
        "lag_steps": 6,
        "profile_slots": 12,
    }
    return ModelConfig(**{**fields, **changes})  # type: ignore[arg-type]


def sequences(sensors: int = 3, keep: float = 1.0, steps: int = STEPS) -> Sequences:
    """Loads that follow the heat two steps before: neither persistence nor a season forecasts them."""
    rng = np.random.default_rng(0)
    names = [f"s{number}" for number in range(sensors)]
    moments, values, lengths = [], [], []
    for number in range(sensors):
        heat = rng.normal(size=steps)
        load = 100 * number + 10 * (np.roll(heat, 2) + 0.1 * rng.normal(size=steps))
        kept = rng.random(steps) < keep
        kept[[0, -1]] = True
        moments.append(np.flatnonzero(kept) * HOUR_US)
        values.append(np.stack([load, heat], axis=1)[kept])
        lengths.append(int(kept.sum()))
    return build_sequences(
        names,
        np.concatenate([[0], np.cumsum(lengths)]),
        np.concatenate(moments),
        np.concatenate(values),
        np.concatenate([np.arange(length) for length in lengths]),
        features=("load", "heat"),
        cadence_us=HOUR_US,
        max_gap_steps=100,
    )


@pytest.fixture(scope="module")
def result() -> TrainingResult:
    return train(config(), QUICK, sequences(), SPLIT)


def weights(forecaster: Forecaster) -> bytes:
    return b"".join(tensor.numpy().tobytes() for tensor in forecaster.state_dict().values())


def test_training_lowers_the_loss_on_a_series_that_baselines_cannot_forecast(result: TrainingResult) -> None:
    losses = [report.validation_loss for report in result.epochs]
    untrained = train(config(), replace(QUICK, epochs=1, updates_per_epoch=1), sequences(), SPLIT).epochs[0]
    assert min(losses) < 0.8 * untrained.validation_loss


def test_every_epoch_is_reported(result: TrainingResult) -> None:
    assert [report.epoch for report in result.epochs] == [1, 2, 3]
    assert all(math.isfinite(report.train_loss) for report in result.epochs)
    assert result.epochs[-1].learning_rate < result.epochs[0].learning_rate
    assert result.sensor_steps_per_s > 0
    assert result.device == "cpu" or result.device.startswith("cuda")


def test_seeded_runs_repeat_bit_for_bit(result: TrainingResult) -> None:
    cpu = replace(QUICK, device="cpu")
    first = train(config(), cpu, sequences(), SPLIT)
    again = train(config(), cpu, sequences(), SPLIT)
    assert weights(first.forecaster) == weights(again.forecaster)
    other = train(config(), replace(cpu, seed=1), sequences(), SPLIT)
    assert weights(other.forecaster) != weights(first.forecaster)


class Killed(Exception):
    """Ends training as a kill of its process would."""


@pytest.mark.long(25)  # with the other tests of this file
@pytest.mark.parametrize("chosen", [QUICK, PLAIN], ids=["stateful", "plain"])
def test_a_killed_training_resumes_to_the_same_weights(chosen: TrainingOptions, tmp_path: Path) -> None:
    options = replace(chosen, device="cpu")
    data = sequences(sensors=1)
    whole = train(config(), options, data, SPLIT)
    checkpoint = tmp_path / "new" / "training.pt"

    def kill_in_the_second(epoch: EpochReport) -> None:
        if epoch.epoch == 2:
            raise Killed  # the checkpoint does not contain this epoch yet

    with pytest.raises(Killed):
        train(config(), options, data, SPLIT, report=kill_in_the_second, checkpoint=checkpoint)
    told: list[int] = []
    rest = train(config(), options, data, SPLIT, report=lambda epoch: told.append(epoch.epoch), checkpoint=checkpoint)
    assert told == [2, 3]
    assert weights(rest.forecaster) == weights(whole.forecaster)
    assert [epoch.validation_loss for epoch in rest.epochs] == [epoch.validation_loss for epoch in whole.epochs]
    assert list(checkpoint.parent.iterdir()) == [checkpoint]
    told.clear()  # the checkpoint holds a finished training: no epoch is trained again
    done = train(config(), options, data, SPLIT, report=lambda epoch: told.append(1), checkpoint=checkpoint)
    assert weights(done.forecaster) == weights(whole.forecaster)
    assert told == []


def test_a_checkpoint_keeps_the_names_that_weights_have_on_disk(tmp_path: Path) -> None:
    train(config(), replace(QUICK, device="cpu", epochs=1), sequences(), SPLIT, checkpoint=tmp_path / "training.pt")
    content = torch.load(tmp_path / "training.pt", weights_only=True)["content"]
    for part in ("forecaster", "averaged", "best"):
        assert {"gru.rnn.weight_ih_l0", "gru.head.weight"} <= content[part].keys()
        assert not [name for name in content[part] if name.startswith(("gru.gru", "gru.fc"))]


@pytest.mark.parametrize("damage", ["other data", "cut off", "no format", "no such folder"])
def test_an_unusable_checkpoint_is_ignored(damage: str, tmp_path: Path) -> None:
    options = replace(QUICK, device="cpu", epochs=1)
    checkpoint = tmp_path / "training.pt"
    train(config(), options, sequences(), SPLIT, checkpoint=checkpoint)
    data = sequences()
    if damage == "other data":
        data = sequences(sensors=2)
    elif damage == "cut off":
        checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    elif damage == "no format":
        content = torch.load(checkpoint, weights_only=True)
        del content["format"]
        torch.save(content, checkpoint)
    else:
        (tmp_path / "file").touch()
        checkpoint = tmp_path / "file" / "training.pt"
    told: list[int] = []
    train(config(), options, data, SPLIT, report=lambda epoch: told.append(epoch.epoch), checkpoint=checkpoint)
    assert told == [1]


def test_training_leaves_the_callers_randomness_and_threads_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    train(config(), replace(QUICK, epochs=1, updates_per_epoch=1, device="cpu"), sequences(), SPLIT)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("preset", ["stateful", "plain"])
def test_weights_do_not_depend_on_values_after_the_validation_part(preset: str) -> None:
    options = replace(PLAIN if preset == "plain" else QUICK, epochs=2, device="cpu")
    data = sequences()
    spoilt = replace(data, values=data.values.copy())
    spoilt.values[data.timestamp_us >= SPLIT.validation_end_us] = 1e9
    expected, got = (train(config(), options, each, SPLIT).forecaster for each in (data, spoilt))
    assert weights(expected) == weights(got)


def test_weights_after_one_epoch_do_not_depend_on_the_validation_part() -> None:
    """The validation part only chooses the best epoch, and this training has a single epoch."""
    options = replace(QUICK, epochs=1, device="cpu")
    data = sequences()
    spoilt = replace(data, values=data.values.copy())
    spoilt.values[data.timestamp_us >= SPLIT.train_end_us] *= -3.0
    expected, got = (train(config(), options, each, SPLIT).forecaster for each in (data, spoilt))
    assert weights(expected) == weights(got)


def test_the_best_epoch_is_kept() -> None:
    reports: list[EpochReport] = []
    hot = replace(QUICK, epochs=6, learning_rate=0.2, device="cpu", patience_epochs=2)
    result = train(config(), hot, sequences(), SPLIT, report=reports.append)
    best = min(reports, key=lambda report: report.validation_loss).epoch
    assert len(reports) <= best + 2
    shorter = train(config(), replace(hot, epochs=6), sequences(), SPLIT)
    assert weights(shorter.forecaster) == weights(result.forecaster)


def test_an_epoch_whose_loss_is_nan_does_not_keep_later_ones_from_being_best(monkeypatch: pytest.MonkeyPatch) -> None:
    options = replace(QUICK, epochs=5, device="cpu", patience_epochs=2)
    losses = iter([math.nan, 3.0, 2.0, math.nan, 2.5])
    monkeypatch.setattr(training_loop, "pinball_of", lambda *arguments: next(losses))
    result = train(config(), options, sequences(), SPLIT)
    assert len(result.epochs) == 5  # the third is the best; patience begins there
    monkeypatch.setattr(training_loop, "pinball_of", lambda *arguments: 1.0 if len(seen) == 2 else 2.0)
    seen: list[EpochReport] = []
    third_is_best = train(config(), options, sequences(), SPLIT, report=seen.append)
    assert weights(result.forecaster) == weights(third_is_best.forecaster)


def test_the_budget_ends_training_at_an_epoch() -> None:
    result = train(config(), replace(QUICK, epochs=500, budget_s=1e-3), sequences(), SPLIT)
    assert len(result.epochs) == 1


def test_a_huge_budget_ends_training_after_the_last_epoch() -> None:
    assert len(train(config(), replace(QUICK, epochs=2, budget_s=1e308), sequences(), SPLIT).epochs) == 2


def test_a_warm_start_begins_with_the_given_weights(result: TrainingResult) -> None:
    barely = replace(QUICK, epochs=1, updates_per_epoch=1, learning_rate=1e-6)
    going_on = train(config(), barely, sequences(sensors=4), SPLIT, initial=result.forecaster)
    assert going_on.forecaster.config.sensors == ("s0", "s1", "s2", "s3")
    assert going_on.epochs[0].train_loss < 0.9 * result.epochs[0].train_loss
    carried = going_on.forecaster.embedding.weight
    torch.testing.assert_close(carried[1:4], result.forecaster.embedding.weight[1:4], atol=1e-4, rtol=0)
    torch.testing.assert_close(carried[4], result.forecaster.embedding.weight[0], atol=1e-4, rtol=0)


def test_a_warm_start_from_another_shape_is_refused(result: TrainingResult) -> None:
    with pytest.raises(ValueError, match="another shape"):
        train(config(horizon_steps=9), QUICK, sequences(), SPLIT, initial=result.forecaster)


def test_the_plain_preset_learns_and_has_intervals_from_its_residuals() -> None:
    data = sequences()
    result = train(config(), replace(PLAIN, epochs=4), data, SPLIT)
    assert result.forecaster.skip is None
    assert [epoch.learning_rate for epoch in result.epochs] == [1e-3] * 4
    prepared = result.forecaster.prepare(data)
    lo, hi = data.span(0, SPLIT.train_end_us, SPLIT.validation_end_us)
    with torch.no_grad():
        past = torch.from_numpy(prepared.past_inputs(np.arange(lo, hi)))[None]
        rows = torch.tensor([[1]])
        hidden = result.forecaster.gru.zeros(1)
        predicted, _ = result.forecaster.unroll(torch.from_numpy(prepared.x[lo:hi])[None], past, rows, hidden)
    labels = scaled_labels(prepared, lo, hi, SPLIT.validation_end_us)
    inside = (labels >= predicted[0, :, :, 0].numpy()) & (labels <= predicted[0, :, :, 2].numpy())
    assert inside[~np.isnan(labels)].mean() == pytest.approx(0.8, abs=0.08)


@pytest.mark.parametrize("preset", ["stateful", "plain"])
def test_too_little_data_is_an_error(preset: str) -> None:
    options = replace(QUICK, preset=preset, chunk_steps=5_000, window_steps=5_000)  # type: ignore[arg-type]
    data = sequences()
    with pytest.raises(ValueError, match="validation part"):
        train(config(), options, data, Split(SPLIT.train_end_us, SPLIT.train_end_us))
    if preset == "plain":
        with pytest.raises(ValueError, match="no sensor has more than 5000 steps"):
            train(config(), options, data, SPLIT)


def test_an_epoch_of_the_plain_preset_takes_every_labelled_window_once() -> None:
    data = sequences(sensors=2)
    data.values[data.starts[1] :, 0] = np.nan
    result = train(config(), replace(PLAIN, epochs=3, device="cpu", patience_epochs=0), data, SPLIT)
    assert len(result.epochs) == 3  # 0 patience epochs: training does not stop early
    forecaster = Forecaster(replace(config(), sensors=data.sensors))
    pool = LanePool(forecaster, forecaster.prepare(data), SPLIT.train_end_us, np.random.default_rng(0))
    ends = np.concatenate(list(pool.labelled(23)))
    np.testing.assert_array_equal(ends, np.arange(23, 1_099))  # the labels of step 1,099 lie after the training part
    groups = pool.windows(ends, 64, 24)
    for _ in range(2):
        windows = [lane for _ in range(-(-len(ends) // 64)) for lane in next(groups)]
        assert sorted(lane.loss_from for lane in windows) == ends.tolist()
        assert all(lane.hi - lane.lo == 24 and lane.loss_from == lane.hi - 1 and lane.rows == (1,) for lane in windows)


def test_the_budget_ends_a_long_epoch_of_the_plain_preset() -> None:
    result = train(config(), replace(PLAIN, batch_lanes=1, budget_s=1e-3), sequences(), SPLIT)
    assert len(result.epochs) == 1


@pytest.mark.parametrize("options", [QUICK, PLAIN], ids=["stateful", "plain"])
@pytest.mark.parametrize("value", [math.nan, 3.0], ids=["missing", "constant"])
def test_missing_or_constant_targets_are_refused_at_once(options: TrainingOptions, value: float) -> None:
    data = sequences()
    data.values[data.timestamp_us < SPLIT.train_end_us, 0] = value
    with pytest.raises(ValueError, match=r"targets \(load\) are all missing or constant in the training part"):
        train(config(), options, data, SPLIT)


@pytest.mark.parametrize("options", [QUICK, PLAIN], ids=["stateful", "plain"])
def test_a_target_without_values_does_not_spoil_the_training_of_another(options: TrainingOptions) -> None:
    data = sequences()
    data.values[:, 0] = np.nan
    result = train(config(targets=("load", "heat")), replace(options, epochs=1), data, SPLIT)
    assert math.isfinite(result.epochs[0].train_loss)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in result.forecaster.state_dict().values())


def test_an_unavailable_device_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be used here"):
        choose_device("cuda:99")
    with pytest.raises(ValueError, match="cannot be used here"):
        choose_device("abacus")


def test_a_process_makes_its_own_gpu_current_before_it_takes_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    calls: list[tuple[str, torch.device]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("current", device)))
    monkeypatch.setattr(torch, "zeros", lambda size, device: calls.append(("memory", device)))
    own = torch.device("cuda:1")
    assert choose_device("cuda", shared=True) == own
    assert calls == [("current", own), ("memory", own)]
    assert choose_device("auto", shared=True) == own
    with pytest.raises(DeviceError, match="names one GPU"):
        choose_device("cuda:0", shared=True)


class _OfTwo(Ranks):
    """The first of two processes, the second of which has a GPU, or an error."""

    def __init__(self, error: str | None = None) -> None:
        super().__init__(rank=0, size=2)
        self._error = error

    def agree(self, value: Any) -> Any:
        return value

    def collect(self, value: Any) -> list[Any]:
        return [value, self._error if value is None else "cuda"]


def test_processes_with_different_kinds_of_device_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "join", _OfTwo)
    with pytest.raises(DeviceError, match=r"different devices \(cpu in process 0, cuda in process 1\)"):
        train(config(), replace(QUICK, device="cpu"), sequences(), SPLIT)


def test_an_unusable_device_of_another_process_is_an_error_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "join", lambda: _OfTwo("set --nproc-per-node 1"))
    with pytest.raises(DeviceError, match="set --nproc-per-node 1"):
        train(config(), replace(QUICK, device="cpu"), sequences(), SPLIT)


@pytest.mark.parametrize("keep", [1.0, 0.8])
def test_labels_of_lanes_equal_those_of_the_sequences_and_end_with_the_training_part(keep: float) -> None:
    data = sequences(keep=keep)
    forecaster = Forecaster(replace(config(), sensors=data.sensors))
    prepared = forecaster.prepare(data)
    pool = LanePool(forecaster, prepared, SPLIT.train_end_us, np.random.default_rng(0))
    lanes = [lane for lane in next(pool.passes(8, 24, 0.1)) if lane.prepared is prepared]
    for number, chunk in enumerate(chunks(lanes, 48)):
        for row, lane in enumerate(lanes):
            lo, hi = lane.lo + 48 * number, min(lane.lo + 48 * (number + 1), lane.hi)
            if lo >= hi:
                continue
            expected = data.labels(lo, hi, np.arange(1, 5), [0], SPLIT.train_end_us)
            scale = prepared.scale[lo:hi, :, None]
            there = ~np.isnan(expected) & (np.arange(lo, hi) >= lane.loss_from)[:, None, None] & (scale > 0)
            scaled = (expected - prepared.level[lo:hi, :, None]) / np.where(scale > 0, scale, 1.0)
            np.testing.assert_array_equal(chunk.valid[row, : hi - lo].numpy() > 0, there)
            found = chunk.labels[row, : hi - lo].numpy()
            np.testing.assert_allclose(found, np.where(there, scaled, 0.0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("keep", [1.0, 0.8])
def test_a_stride_scores_fewer_steps_and_carries_the_same_state(keep: float) -> None:
    data = sequences(keep=keep)
    forecaster = Forecaster(replace(config(), sensors=data.sensors)).eval()
    pool = LanePool(forecaster, forecaster.prepare(data), SPLIT.train_end_us, np.random.default_rng(0))
    lanes = next(pool.passes(8, 24, 0.1))
    h = forecaster.gru.zeros(len(lanes))
    h_all = h
    for few, every in zip(chunks(lanes, 48, 5), chunks(lanes, 48), strict=True):
        assert torch.equal(few.labels, every.labels[:, few.scored])
        assert torch.equal(few.valid, every.valid[:, few.scored])
        with torch.no_grad():
            some, h = forecaster.unroll(few.x, few.past, few.rows, h, few.scored)
            full, h_all = forecaster.unroll(every.x, every.past, every.rows, h_all)
        torch.testing.assert_close(some, full[:, few.scored])
        assert torch.equal(h, h_all)


def test_the_cold_start_lanes_are_the_nearest_number_to_a_tenth_of_the_steps() -> None:
    data = sequences(sensors=2, steps=8_638)
    forecaster = Forecaster(replace(config(), sensors=data.sensors))
    pool = LanePool(forecaster, forecaster.prepare(data), 2**62, np.random.default_rng(0))
    assert pool.steps == 17_276
    lanes = next(pool.passes(100, 24, 0.0))
    # A tenth of the steps is 1.4997 lanes. Rounded first, it would be 1.5 lanes, and then 2.
    assert len([lane for lane in lanes if lane.prepared.sequences is not data]) == 1


def test_some_lanes_start_cold_and_some_hide_their_sensor() -> None:
    data = sequences()
    forecaster = Forecaster(replace(config(), sensors=data.sensors))
    prepared = forecaster.prepare(data)
    pool = LanePool(forecaster, prepared, SPLIT.train_end_us, np.random.default_rng(0))
    groups = pool.passes(100, 24, 0.5)
    lanes = [lane for _ in range(20) for lane in next(groups)]
    cold = [lane for lane in lanes if lane.prepared is not prepared]
    assert cold
    assert all(lane.prepared.past.steps[lane.lo] == 1 and lane.rows == (0,) for lane in cold)
    assert {lane.rows for lane in lanes if lane.prepared is prepared} == {(0,), (1,), (2,), (3,)}


def paused(sequences: Sequences) -> Sequences:
    """The same steps with three resets per sensor, two of them 16 steps apart."""
    reset = sequences.reset.copy()
    for first in sequences.starts[:-1]:
        reset[first + np.array([300, 420, 436])] = True
    return replace(sequences, reset=reset)


def test_no_lane_carries_a_state_over_a_reset() -> None:
    data = paused(sequences())
    forecaster = Forecaster(replace(config(), sensors=data.sensors))
    prepared = forecaster.prepare(data)
    pool = LanePool(forecaster, prepared, SPLIT.train_end_us, np.random.default_rng(0))
    groups = pool.passes(100, 24, 0.0)
    lanes = [lane for _ in range(10) for lane in next(groups)]
    lanes += evaluation_lanes(forecaster, prepared, 310 * HOUR_US, 500 * HOUR_US, 10**9)
    for lane in lanes:
        assert not lane.prepared.sequences.reset[lane.lo + 1 : lane.hi].any()
        assert lane.lo < lane.hi
        assert lane.lo <= lane.loss_from < lane.hi
    starts = set(data.starts[:-1].tolist())
    short = {lane.lo for lane in lanes if lane.prepared is prepared and lane.hi - lane.lo == 16}
    assert short == {start + 420 for start in starts}  # a stretch between resets may be shorter than the warm-up


def test_validation_scores_every_step_of_its_part_once_despite_resets() -> None:
    forecaster = Forecaster(config())
    for data in (sequences(), paused(sequences())):
        lanes = evaluation_lanes(forecaster, forecaster.prepare(data), 310 * HOUR_US, 500 * HOUR_US, 10**9)
        scored = np.sort(np.concatenate([np.arange(lane.loss_from, lane.hi) for lane in lanes]))
        wanted = [np.arange(*data.span(sensor, 310 * HOUR_US, 500 * HOUR_US)) for sensor in range(3)]
        np.testing.assert_array_equal(scored, np.concatenate(wanted))


def test_thinned_validation_keeps_sensors_that_have_the_target() -> None:
    data = sequences(4)
    values = data.values.copy()
    for sensor in (0, 2):
        values[slice(*data.starts[sensor : sensor + 2]), 0] = np.nan
    data = replace(data, values=values)
    forecaster = Forecaster(config())
    lanes = evaluation_lanes(forecaster, forecaster.prepare(data), 310 * HOUR_US, 500 * HOUR_US, 200)
    assert lanes
    assert all(data.starts[1] <= lane.lo < data.starts[2] for lane in lanes)


def test_validation_on_one_long_sensor_is_thinned_in_time() -> None:
    rng = np.random.default_rng(0)
    steps = 40_000
    values = rng.normal(size=(steps, 2))
    values[20_000:30_000, 0] = np.nan  # no lane covers steps without labels
    data = build_sequences(
        ["long"],
        np.array([0, steps]),
        np.arange(steps) * HOUR_US,
        values,
        np.arange(steps),
        features=("load", "heat"),
        cadence_us=HOUR_US,
        max_gap_steps=100,
    )
    forecaster = Forecaster(config())
    lanes = evaluation_lanes(forecaster, forecaster.prepare(data), 1_000 * HOUR_US, steps * HOUR_US, 8_000)
    assert 4_000 < sum(lane.hi - lane.lo for lane in lanes) <= 8_000 + 2_048 + 48
    for lane in lanes:
        assert lane.loss_from - lane.lo == 48  # twice the warm-up steps
        assert np.isfinite(data.values[lane.loss_from : lane.hi, 0]).any()
    assert {lane.loss_from > 20_000 for lane in lanes} == {True, False}  # lanes lie on both sides of the gap


def fleet(sensors: int, steps: int) -> Sequences:
    return build_sequences(
        [f"s{number}" for number in range(sensors)],
        np.arange(sensors + 1) * steps,
        np.tile(np.arange(steps) * HOUR_US, sensors),
        np.random.default_rng(0).normal(size=(sensors * steps, 2)),
        np.arange(sensors * steps),
        features=("load", "heat"),
        cadence_us=HOUR_US,
        max_gap_steps=100,
    )


def test_validation_that_fits_scores_every_step_despite_its_warm_ups() -> None:
    """A warm-up for each of the shortest pieces would take more steps than validation has."""
    sensors, before, scored = 40, 400, 1_100
    data = fleet(sensors, before + scored)
    forecaster = Forecaster(config(warmup_steps=168))
    end_us = (before + scored) * HOUR_US
    lanes = evaluation_lanes(forecaster, forecaster.prepare(data), before * HOUR_US, end_us, 60_000)
    assert sum(lane.hi - lane.lo for lane in lanes) <= 60_000
    found = np.sort(np.concatenate([np.arange(lane.loss_from, lane.hi) for lane in lanes]))
    wanted = [np.arange(start + before, start + before + scored) for start in data.starts[:-1]]
    np.testing.assert_array_equal(found, np.concatenate(wanted))


@pytest.mark.parametrize(("warmup_steps", "most_steps"), [(24, 1_000), (24, 1_900), (24, 2_900), (150, 2_660)])
def test_thinned_validation_scores_the_oldest_and_the_newest_part(warmup_steps: int, most_steps: int) -> None:
    data = fleet(4, 1_500)
    forecaster = Forecaster(config(warmup_steps=warmup_steps))
    lanes = evaluation_lanes(forecaster, forecaster.prepare(data), 400 * HOUR_US, 1_500 * HOUR_US, most_steps)
    scored = {step % 1_500 for lane in lanes for step in (lane.loss_from, lane.hi - 1)}
    assert max(scored) == 1_499
    assert min(scored) < 400 + 1_100 // 2


def test_labels_are_clipped_at_the_largest_allowed() -> None:
    """Without a season, an idle sensor's scale falls to almost 0 within minutes: its restart jumps by 1e8 scales."""
    rng = np.random.default_rng(0)
    on = 50.0 + np.cumsum(rng.normal(size=3_600))
    values = np.concatenate([on, np.full(3_600, 20.0), on, np.full(3_600, 20.0), on])
    second = 1_000_000
    chosen = config(features=("load",), cadence_us=second, season_steps=1, horizon_steps=30)
    data = build_sequences(
        ["machine"],
        np.array([0, len(values)]),
        np.arange(len(values)) * second,
        values[:, None],
        np.arange(len(values)),
        features=("load",),
        cadence_us=second,
        max_gap_steps=100,
    )
    labels = np.abs(scaled_labels(Forecaster(chosen).prepare(data), 0, len(values), len(values) * second))
    assert np.nanmax(labels) == LARGEST_LABEL
    assert 0.0 < np.nanmedian(labels) < 10.0


def test_a_sensor_without_training_readings_is_served_as_unknown() -> None:
    data = sequences()
    late = sequences(1).slice_time(SPLIT.train_end_us)
    both = replace(
        data,
        sensors=(*data.sensors, "late"),
        starts=np.append(data.starts, data.starts[-1] + len(late.timestamp_us)),
        **{
            name: np.concatenate([getattr(data, name), getattr(late, name)])
            for name in ("timestamp_us", "values", "elapsed", "reset", "observed", "offset")
        },
    )
    trained = train(config(), replace(QUICK, epochs=1, updates_per_epoch=2), both, SPLIT).forecaster
    assert trained.config.sensors == data.sensors
    assert trained.sensor_rows(["s0", "late"]).tolist() == [[1], [UNKNOWN_SENSOR]]
