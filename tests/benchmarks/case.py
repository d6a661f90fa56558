"""A trained model and its data, for the studies of ``tests.benchmarks.carrying``; models that benchmarks keep.

Letters: S sensors, N readings, M or m moments, K targets, h horizon steps.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy.commands.backtest import backtest as command
from model.artefact import load_artefact, save_artefact
from model.backtest import Persistence, SeasonalNaive, seasonal_scale
from model.config import Adaptation
from model.forecaster import Forecaster
from model.sequences import Sequences, Split
from model.state import States
from model.stepper import Stepper
from model.training import EpochReport
from pipeline.evaluation.evaluate import split_by, standard_deviations, train_on
from pipeline.evaluation.report import read_trained_model
from pipeline.files.file_layout import FileLayout
from pipeline.files.reading_table import read_readings
from pipeline.settings import Settings, load_settings
from pipeline.windows import sequences_from_table
from tests.benchmarks.panel import Floats, Indexes, Panel, Walk

if TYPE_CHECKING:
    from tests.benchmarks.quality import Run

Result = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A trained model, and the data that it was back-tested on."""

    forecaster: Forecaster
    sequences: Sequences
    split: Split
    scale: Floats  # (S, K) divisors of the errors
    seed: int

    @classmethod
    def read(cls, run: "Run", folder: Path, seed: int) -> "Case":
        """The case of a back-test that the command of ``run`` made, with its results in ``folder``."""
        given = command.make_context("backtest", [str(run.data), *run.arguments]).params
        settings = load_settings(run.settings)
        layout = FileLayout(**{name: given[name] for name in ("timezone", "sensor_column", "columns_as_sensors")})
        table = read_readings([run.data], layout, settings.features)
        sequences, split = split_by(given["split"], sequences_from_table(table, settings))
        forecaster = read_trained_model(folder).forecaster
        measure = standard_deviations if given["standardise"] else seasonal_scale
        scale = measure(sequences, forecaster.config, split.train_end_us)
        return cls(forecaster, sequences, split, scale, seed)

    @cached_property
    def panel(self) -> Panel:
        return Panel.of(self.sequences)

    @property
    def targets(self) -> list[int]:
        """Indices of the targets among the features."""
        return list(self.forecaster.config.target_indices)

    @property
    def horizon(self) -> int:
        """The horizon in steps, h."""
        return self.forecaster.config.horizon_steps

    @cached_property
    def issued(self) -> range:
        """Indices of the readings whose forecasts are scored in the test part."""
        begin = int(np.searchsorted(self.panel.timestamp_us, self.split.validation_end_us))
        return range(begin - 1, len(self.panel) - self.horizon)

    def moments(self, count: int, before: int = 0, after: int = 0) -> Indexes:
        """At most ``count`` indices drawn from ``issued``, leaving out its first ``before`` and last ``after``."""
        chosen = self.issued[before : len(self.issued) - after]
        random = np.random.default_rng(self.seed)
        return np.sort(random.choice(chosen, size=min(count, len(chosen)), replace=False))

    def errors(self, medians: Floats, labels: Floats) -> Floats:
        """(S, m, K, h) errors in units of ``scale``; NaN for missing labels."""
        found: Floats = (medians - labels) / self.scale[:, None, :, None]
        return found

    def labels(self, moments: Sequence[int] | Indexes) -> Floats:
        """(S, m, K, h) labels of the forecasts issued at these readings."""
        return self.panel.labels(moments, self.targets, self.horizon)

    def naive(self, moments: Indexes) -> dict[str, Floats]:
        """Baseline -> (S, m, K, h) errors of its forecasts at these readings."""
        labels = self.labels(moments)
        return {
            kind.name: self.errors(medians_by_rule(kind(self.forecaster.config), self.sequences, moments), labels)
            for kind in (Persistence, SeasonalNaive)
        }


def kept_model(folder: Path, settings: Settings, sequences: Sequences, split: Split) -> Forecaster:
    """The model in ``folder``, which is trained and saved there if the folder does not exist."""
    if not folder.exists():
        print(f"training {folder} on {len(sequences.sensors)} sensors", file=sys.stderr, flush=True)
        save_artefact(train_on(settings, sequences, split, report_epoch).forecaster, folder)
    return load_artefact(folder)


def report_epoch(epoch: EpochReport) -> None:
    """Print the validation loss and the seconds of an epoch to standard error."""
    text = f"epoch {epoch.epoch}: validation {epoch.validation_loss:.4f}, {epoch.seconds:.0f} s"
    print(text, file=sys.stderr, flush=True)


def medians_by_rule(rule: Persistence | SeasonalNaive, sequences: Sequences, moments: Indexes) -> Floats:
    """(S, m, K, h) medians of a baseline's forecasts at these readings of every sensor."""
    lo, hi = int(moments[0]), int(moments[-1]) + 1
    found = []
    for sensor, start in enumerate(sequences.starts[:-1].tolist()):
        points = rule.forecasts(sequences, sensor, start + lo, start + hi)[
            :, :, 0
        ]  # not fitted: all quantiles are equal
        found.append(points[moments - lo])
    return np.stack(found)


def scored(errors: Floats) -> dict[str, float]:
    """Mean squared and mean absolute error."""
    return {"mse": float(np.nanmean(errors**2)), "mae": float(np.nanmean(np.abs(errors)))}


def narrow(case: Case, adaptation: Adaptation) -> Stepper:
    """A stepper with small tiles, which few sensors fill better."""
    return Stepper(case.forecaster, adaptation)


def carried(case: Case, adaptation: Adaptation, cuts: Iterable[int]) -> dict[int, States]:
    """Cut -> the states after that reading, carried from each sensor's first reading on."""
    panel, walk = case.panel, Walk.blank(narrow(case, adaptation), case.panel.sensors)
    found, begin = {}, 0
    for cut in sorted(set(cuts)):
        walk.go(panel.timestamp_us[begin : cut + 1], panel.values[:, begin : cut + 1], [])
        found[cut], begin = walk.states.copy(), cut + 1
    return found


def side_by_side(panel: Panel, begins: Indexes, ends: Indexes) -> tuple[list[str], Indexes, Floats]:
    """Names, times and values of M·S copies: readings [begin, end) of every sensor, for M pairs of equal length."""
    index = begins[:, None] + np.arange(ends[0] - begins[0])
    values = panel.values[:, index].transpose(1, 0, 2, 3)  # (M, S, n, F)
    times = np.repeat(panel.timestamp_us[index], len(panel.sensors), axis=0)
    return list(panel.sensors) * len(begins), times, values.reshape(len(times), *values.shape[2:])


def by_sensor(found: Floats, moments: int) -> Floats:
    """(S, M, ...) from (M·S, ...), the order of ``side_by_side``."""
    return found.reshape(moments, -1, *found.shape[1:]).swapaxes(0, 1)
