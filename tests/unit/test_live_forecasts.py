"""The table of live forecasts on terminals of several widths, and counts with their noun."""

import io
from datetime import UTC, datetime

import pytest
from rich.console import Console

from deploy.live_forecasts import LatestForecasts, LiveForecast
from pipeline.messages import Forecast, InputPosition, ModelId, StateAge
from pipeline.text.plural import counted

TARGETS = ("PM2.5", "O3")
ALL = ["sensor", "time (UTC)", "target", "reading", "+1", "+6", "+24", "model", "state", "delay"]


def live_forecast(sensor: str) -> LiveForecast:
    by_level = {level: [value] * 24 for level, value in (("0.1", 101.25), ("0.5", 123.45), ("0.9", 145.2))}
    forecast = Forecast(
        sensor_id=sensor,
        issued_at=datetime(2017, 2, 28, 13, tzinfo=UTC),
        cadence_s=3_600.0,
        quantiles=dict.fromkeys(TARGETS, by_level),
        model=ModelId("streamgru", 12),
        settings="0123",
        input=InputPosition("readings", 0, 1),
        state=StateAge(origin=1, steps=100, warm=True),
    )
    return LiveForecast(forecast, dict.fromkeys(TARGETS, 117.5), 100.0, 100.25, live=True)


def rows(width: int, *sensors: str) -> list[list[str]]:
    """The cells of the rendered table: the header, then a row per line."""
    latest = LatestForecasts()
    latest.update(map(live_forecast, sensors))
    output = io.StringIO()
    Console(file=output, width=width).print(latest.table("", width=width))
    lines = output.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    return [
        [cell.strip() for cell in line.strip("┃│").replace("┃", "│").split("│")] for line in lines if line[:1] in "┃│"
    ]


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (80, ["sensor", "time (UTC)", "target", "reading", "+1", "model"]),
        (100, ["sensor", "time (UTC)", "target", "reading", "+1", "model", "state", "delay"]),
        (120, ["sensor", "time (UTC)", "target", "reading", "+1", "+6", "model", "state", "delay"]),
        (140, ALL),
    ],
)
def test_a_narrow_terminal_shows_fewer_columns_and_no_cut_cell(width: int, columns: list[str]) -> None:
    header, first, second = rows(width, "Wanliu")
    assert header == columns
    shown = {
        "sensor": "Wanliu",
        "time (UTC)": "2017-02-28 13:00",
        "target": "PM2.5",
        "reading": "117.5",
        **dict.fromkeys(("+1", "+6", "+24"), "123.5 (101 … 145)"),
        "model": "v12",
        "state": "warm",
        "delay": "250 ms",
    }
    assert first == [shown[name] for name in columns]
    assert second[columns.index("target") : columns.index("+1") + 1] == ["O3", "117.5", "123.5 (101 … 145)"]


def test_only_a_long_sensor_id_is_cut() -> None:
    header, first, _ = rows(80, "sensor-" + "x" * 200)
    assert header == ["sensor", "target", "reading", "+1"]
    assert first[0].startswith("sensor-xxx")
    assert first[0].endswith("…")
    assert first[1:] == ["PM2.5", "117.5", "123.5 (101 … 145)"]


def test_a_count_of_one_has_its_noun_in_the_singular() -> None:
    assert [counted(count, "sensor") for count in (0, 1, 1_200)] == ["0 sensors", "1 sensor", "1,200 sensors"]
