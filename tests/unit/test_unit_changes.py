"""The log and the counts name the sensors whose units changed."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from kafka import TopicPartition

from model.forecaster import Forecaster
from model.state import blank_states
from model.stepper import Forecasts, Stepper
from model.unit_kernel import ACCEPTED
from pipeline.forecaster.micro_batch import MicroBatchBuilder
from pipeline.forecaster.readings import Readings
from pipeline.forecaster.states.store import ServedModel
from pipeline.forecaster.unit_changes import UnitChange, find_unit_changes, log_unit_changes
from pipeline.kafka.record_batch import FetchedRecord
from pipeline.messages import encode_reading
from pipeline.settings import Settings
from tests.integration.stream_rig import START_US, small_forecaster
from tests.series import CONFIG, HOUR_US


def readings(partition: int, sensors: list[str], offsets: list[int]) -> Readings:
    count = len(sensors)
    return Readings.of_sensors(partition, sensors, np.arange(count) * HOUR_US, np.zeros((count, 2)), np.array(offsets))


def forecasts_with(outcome: np.ndarray, factor: np.ndarray, offset: np.ndarray) -> Forecasts:
    torch.manual_seed(0)
    stepper = Stepper(Forecaster(replace(CONFIG, hidden_size=4)).eval())
    n = len(outcome)
    made = stepper.step(
        blank_states(stepper.config, n),
        [f"s{i}" for i in range(n)],
        np.arange(n),
        np.zeros(n, np.int64),
        np.zeros((n, 2)),
        np.arange(n),
    )
    return replace(made, unit_outcome=outcome, unit_factor=factor, unit_offset=offset)


def test_a_change_is_found_with_its_reading_and_feature() -> None:
    accepted = [readings(3, ["a", "b"], [10, 12]), readings(5, ["c", "a"], [7, 8])]
    outcome, factor, offset = np.zeros((4, 2), np.int8), np.zeros((4, 2)), np.zeros((4, 2))
    outcome[1, 0], factor[1, 0] = ACCEPTED, 1_000.0
    outcome[3, 1] = ACCEPTED
    found = find_unit_changes(accepted, forecasts_with(outcome, factor, offset), ["level", "other"])
    assert found == [UnitChange(3, 12, "b", "level", 1_000.0, 0.0), UnitChange(5, 8, "a", "other", 1.0, 0.0)]
    assert str(found[0]) == (
        "partition 3, offset 12: level of sensor 'b' has another unit: forecasts are 1000 times those in the unit "
        "that the state was made in, plus 0"
    )
    assert str(found[1]) == (
        "partition 5, offset 8: other of sensor 'a' is back in the unit that the state was made in"
    )


def test_many_changes_fill_few_lines_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "streamgru.unit_changes"):
        log_unit_changes([UnitChange(0, n, f"s{n}", "level", 60.0, 0.0) for n in range(40)])
    assert len(caplog.messages) == 6
    assert caplog.messages[-1] == "35 more features of sensors changed their units in this batch"


def test_a_batch_counts_withheld_values_and_changes_and_forecasts_in_the_new_unit() -> None:
    settings = Settings(features=("a",), targets=("a",), horizon_steps=1)
    serving = ServedModel(1, small_forecaster(settings), settings)
    serving.table.add_partition(0)
    builder = MicroBatchBuilder(settings, serving, "owner")
    where = TopicPartition(settings.kafka.topics.readings, 0)
    random = np.random.default_rng(1)
    values = 20.0 + 5.0 * np.sin(np.arange(330) * 2.0 * np.pi / 24.0) + random.normal(size=330)
    values[300:] *= 1_000.0
    records = []
    for offset, value in enumerate(values.tolist()):
        key, text = encode_reading("s", START_US + offset * HOUR_US, {"a": value})
        records.append(FetchedRecord(key, text, offset, [], (START_US + offset * HOUR_US) // 1_000))
    batch = builder.build({where: records})
    [change] = batch.unit_changes
    assert (change.sensor, change.feature, change.factor, change.shift) == ("s", "a", 1_000.0, 0.0)
    assert 305 <= change.offset < 330
    assert (batch.counts.unit_changes, batch.counts.withheld_values) == (1, change.offset - 300)
    assert batch.stepped is not None
    medians = batch.stepped.forecasts.quantiles[:, 0, 1, 0]
    assert (np.abs(medians[: change.offset]) < 1_000.0).all()
    assert (np.abs(medians[change.offset :]) > 1_000.0).all()
