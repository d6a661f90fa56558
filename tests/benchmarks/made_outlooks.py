"""Outlooks that are made from later readings and noise, and a data set whose steps see them by the product's rule.

They stand for a weather forecast: one for all stations, issued every six hours for the next two days, with errors that
grow with the hours ahead. No real forecast is behind them.

Letters: n hours, m outlooks, C covariates, k steps ahead.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from model.sequences import Sequences
from pipeline.files.reading_table import ReadingTable
from pipeline.history.columns import column_of
from pipeline.history.outlook_join import HistoryOutlooks
from pipeline.history.outlook_rows import outlook_rows
from pipeline.outlook_messages import Outlook
from pipeline.settings import Settings
from pipeline.settings.outlooks import OutlookSettings
from pipeline.windows import sequences_from_readings

Floats = NDArray[np.float64]
Indexes = NDArray[np.int64]

GROUP: Final = "city"
COVARIATES: Final = ("TEMP", "WSPM")
STEPS: Final = 48
EVERY_STEPS: Final = 6
DAY_STEPS: Final = 24
# Deviation of the noise 24 steps ahead, in root mean squares of the covariate's change over 24 steps: an outlook for
# this time tomorrow is half as wrong as today's value. On Beijing it is 1.6 °C and 0.6 m/s.
NOISE: Final = 0.5


@dataclass(frozen=True)
class Weather:
    """The covariates of the city: means over its stations, which no single station needs to have."""

    first_us: int
    cadence_us: int
    values: Floats  # (n, C), NaN where no station has a value

    @classmethod
    def of(cls, table: ReadingTable, cadence_us: int) -> "Weather":
        """The means over the sensors of a table whose readings lie on a grid."""
        first_us = int(table.timestamp_us.min())
        hour = (table.timestamp_us - first_us) // cadence_us
        columns = []
        for name in COVARIATES:
            values = np.asarray(table.values[name], np.float64)
            known = ~np.isnan(values)
            count = np.bincount(hour[known], minlength=int(hour.max()) + 1)
            total = np.bincount(hour[known], weights=values[known], minlength=len(count))
            columns.append(np.where(count > 0, total / np.maximum(count, 1), np.nan))
        return cls(first_us, cadence_us, np.column_stack(columns))

    def daily_change(self) -> Floats:
        """(C,) the root mean square of the change over 24 steps."""
        change = self.values[DAY_STEPS:] - self.values[:-DAY_STEPS]
        return np.asarray(np.sqrt(np.nanmean(change**2, axis=0)))


@dataclass(frozen=True)
class MadeOutlooks:
    """m outlooks of the city, in order of their arrival."""

    issued_us: Indexes  # (m,)
    arrived_us: Indexes  # (m,) each comes after the readings of this time and earlier
    values: Floats  # (m, STEPS, C) for the steps after the issue, NaN where missing

    @classmethod
    def of(cls, weather: Weather, noise: float, seed: int) -> "MadeOutlooks":
        """An outlook every ``EVERY_STEPS``: the values to come, plus a random walk over the steps ahead.

        So the deviation of the noise grows with the root of the steps ahead, and neighbouring steps err alike. Each
        outlook has noise of its own.

        Args:
            noise: the deviation 24 steps ahead, in the root mean squares of ``Weather.daily_change``.
        """
        n = len(weather.values)
        at = np.arange(EVERY_STEPS - 1, n - 1, EVERY_STEPS)
        ahead = at[:, None] + np.arange(1, STEPS + 1)
        values = np.where((ahead < n)[..., None], weather.values[np.minimum(ahead, n - 1)], np.nan)
        walk = np.random.default_rng(seed).normal(size=values.shape).cumsum(axis=1)
        values += walk * (noise * weather.daily_change() / np.sqrt(DAY_STEPS))
        values[..., 1] = np.maximum(values[..., 1], 0.0)  # the speed of the wind
        issued_us = weather.first_us + at * weather.cadence_us
        return cls(issued_us, issued_us, values)

    def issue_before(self, until_us: int) -> int:
        """The time of the last issue before a moment."""
        return int(self.issued_us[self.issued_us < until_us].max())

    def revised(self, cut_us: int, cadence_us: int, seed: int) -> "MadeOutlooks":
        """Other values in the outlooks that come at the cut or later, and an outlook more in each gap between them."""
        random = np.random.default_rng(seed)
        later = self.arrived_us >= cut_us
        other = random.normal(0.0, 30.0, self.values.shape)
        changed = replace(self, values=np.where(later[:, None, None], other, self.values))
        between_us = self.issued_us[later] + cadence_us
        more = MadeOutlooks(between_us, between_us, random.normal(0.0, 30.0, other[later].shape))
        return MadeOutlooks(*(np.concatenate(pair) for pair in zip(changed._arrays(), more._arrays(), strict=True)))

    def _arrays(self) -> tuple[Indexes, Indexes, Floats]:
        return self.issued_us, self.arrived_us, self.values


def with_group(settings: Settings, sensors: tuple[str, ...]) -> Settings:
    """The settings with the covariates of the outlooks, and the sensors as one group."""
    section = OutlookSettings(covariates=COVARIATES, steps=STEPS, groups={GROUP: sensors})
    return settings.model_copy(update={"outlooks": section})


def joined(table: ReadingTable, settings: Settings, made: MadeOutlooks | None) -> Sequences:
    """The steps of readings and outlooks that came on one partition in the order of their times.

    Args:
        made: without it, the settings must name no outlooks.
    """
    n, m = len(table), 0 if made is None else len(made.issued_us)
    came_us = table.timestamp_us if made is None else np.concatenate([table.timestamp_us, made.arrived_us])
    offset = np.empty(n + m, np.int64)
    offset[np.argsort(came_us, kind="stable")] = np.arange(n + m)  # of equal times, readings come first
    frame = pl.DataFrame(
        {
            "sensor_id": pl.Series(table.sensors, dtype=pl.String).gather(pl.Series(table.sensor_codes)),
            "timestamp": pl.Series(table.timestamp_us).cast(pl.Datetime("us", "UTC")),
            "partition": pl.repeat(0, n, dtype=pl.Int32, eager=True),
            "offset": offset[:n],
            **{column_of(name): np.asarray(table.values[name], np.float64) for name in settings.features},
        }
    )
    config, history = settings.outlook_config, None
    if made is not None:
        assert config is not None
        messages = _messages(table, made, settings.cadence_us)
        rows = [(0, place, each) for place, each in zip(offset[n:].tolist(), messages, strict=True)]
        history = HistoryOutlooks(outlook_rows(rows, COVARIATES, made.arrived_us.tolist()).sort("offset"), config)
    return sequences_from_readings(
        frame.lazy(), settings.features, grace=settings.grace, max_gap_steps=settings.max_gap_steps, outlooks=history
    )


def _messages(table: ReadingTable, made: MadeOutlooks, cadence_us: int) -> list[Outlook]:
    ahead_us = np.arange(1, STEPS + 1) * cadence_us
    return [
        Outlook(GROUP, True, table.sensors, issued_us, issued_us + ahead_us, values.astype(np.float32))
        for issued_us, values in zip(made.issued_us.tolist(), made.values, strict=True)
    ]
