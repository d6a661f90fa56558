"""Flat forecasts hold the numbers of the forecasts, one record per sensor, target and step."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import SettingsError
from pipeline.flat_forecasts import (
    CONNECT_RECORD_BYTES,
    FLAT_RECORD_BYTES,
    FlatForecastEncoder,
    connect_schema,
    flat_columns,
    quantile_column,
)
from pipeline.kafka.topics import plan_topics
from pipeline.messages import EARLIEST_TIMESTAMP_US, LATEST_TIMESTAMP_US, ModelId, iso_timestamp
from pipeline.settings import Settings, load_settings

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TARGETS = ("PM2.5", 'odd "name" \\ é')
LEVELS = (0.025, 0.5, 0.9)


def configured(flat_format: str) -> Settings:
    return Settings(
        features=TARGETS,
        targets=TARGETS,
        quantiles=LEVELS,
        cadence_s=900.0,
        horizon_steps=3,
        forecaster={"flat_format": flat_format},
        kafka={"topics": {"flat_forecasts": "forecasts-flat"}},
    )


@pytest.mark.parametrize(
    ("level", "column"), [(0.1, "q10"), (0.5, "q50"), (0.025, "q2_5"), (0.999, "q99_9"), (1e-7, "q0_00001")]
)
def test_a_quantile_column_is_a_name_that_databases_accept(level: float, column: str) -> None:
    assert quantile_column(level) == column


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(0, 4),
    flat_format=st.sampled_from(["json", "connect"]),
    seed=st.integers(0, 1_000_000),
    data=st.data(),
)
def test_flat_records_hold_the_numbers_of_the_forecast(count: int, flat_format: str, seed: int, data: Any) -> None:
    rng = np.random.default_rng(seed)
    made = configured(flat_format)
    quantiles = rng.normal(size=(count, 2, 3, 3)) * 10.0 ** rng.integers(-20, 20)
    sensors = data.draw(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=count, max_size=count))
    times = data.draw(
        st.lists(st.integers(EARLIEST_TIMESTAMP_US, LATEST_TIMESTAMP_US - 1), min_size=count, max_size=count)
    )
    offsets = rng.integers(0, 1 << 50, count)

    values = FlatForecastEncoder(made, ModelId("streamgru", 3), TARGETS, LEVELS).encode(
        [5] * count, sensors, np.array(times, dtype=np.int64), offsets, quantiles
    )

    decoded = [msgspec.json.decode(value) for value in values]
    if flat_format == "connect":
        assert all(record["schema"] == connect_schema(LEVELS) for record in decoded)
        decoded = [record["payload"] for record in decoded]

    def moment(time_us: int) -> Any:
        return time_us // 1_000 if flat_format == "connect" else EPOCH + timedelta(microseconds=time_us)

    if flat_format == "json":
        for record in decoded:
            for name in ("issued_at", "forecast_for"):
                assert record[name].endswith("Z")
                record[name] = datetime.fromisoformat(record[name])
    expected = [
        {
            "sensor_id": sensors[n],
            "target": target,
            "step": step + 1,
            "issued_at": moment(times[n]),
            "forecast_for": moment(times[n] + (step + 1) * 900_000_000),
            **{quantile_column(level): float(quantiles[n, k, q, step]) for q, level in enumerate(LEVELS)},
            "model_version": 3,
            "settings": made.fingerprint,
            "input_partition": 5,
            "input_offset": int(offsets[n]),
        }
        for n in range(count)
        for k, target in enumerate(TARGETS)
        for step in range(3)
    ]
    assert decoded == expected
    limit = CONNECT_RECORD_BYTES if flat_format == "connect" else FLAT_RECORD_BYTES
    assert all(len(value) - 6 * len(sensors[index // 6]) < limit for index, value in enumerate(values))


def test_the_times_of_plain_flat_records_have_the_form_of_the_forecasts() -> None:
    encoder = FlatForecastEncoder(configured("json"), ModelId("streamgru", 1), TARGETS, LEVELS)
    values = encoder.encode([0], ["a"], np.array([1_500_000]), np.array([7]), np.zeros((1, 2, 3, 3)))
    record = msgspec.json.decode(values[0])
    assert (record["issued_at"], record["forecast_for"]) == (iso_timestamp(1_500_000), iso_timestamp(901_500_000))
    assert list(record) == list(flat_columns(LEVELS))


def test_the_topic_of_flat_forecasts_is_planned_only_if_the_settings_name_it() -> None:
    assert len(plan_topics(Settings())) == 4
    assert [plan.purpose for plan in plan_topics(configured("json"))][-1] == "flat forecasts"


def test_the_topic_of_flat_forecasts_differs_from_the_other_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMGRU_KAFKA__TOPICS__FLAT_FORECASTS", "forecasts")
    with pytest.raises(SettingsError, match="must differ from each other"):
        load_settings()
