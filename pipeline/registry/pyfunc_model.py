"""The code that MLflow logs as the model: after ``mlflow.pyfunc.load_model`` it forecasts a frame of readings.

It runs without streamgru, even in a process with another package called ``model``: the artefact contains a copy of this
project's ``model`` package under its own name. Nothing is pickled; the weights are read with ``weights_only=True``.
"""

import contextlib
import hashlib
import importlib
import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

ARTEFACT = "forecaster"
CODE_NOTE = "code.json"  # has the name of the artefact's folder of code, and the adaptation of forecasts
# Readings per step call; bounds the memory, because each reading gets a forecast and only a sensor's last is returned.
CHUNK_READINGS = 4_096


class ForecastingModel(PythonModel):  # type: ignore[misc]  # MLflow ships no types
    """Forecasts every sensor in a frame of readings, from its last reading on."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the artefact with its own code."""
        artefact = Path(context.artifacts[ARTEFACT])
        self._code = import_code(artefact)
        forecaster = self._module("artefact").load_artefact(artefact)
        note = json.loads((artefact / CODE_NOTE).read_text(encoding="utf-8"))
        adaptation = self._module("config").Adaptation(**note["adaptation"])
        self._stepper = self._module("stepper").Stepper(forecaster, adaptation)

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Forecasts from the last reading of each sensor.

        Forecasts adapt to the readings of the frame, as in the stream, so more readings give better forecasts.

        ``model_input`` has the columns ``sensor_id``, ``timestamp`` (ISO 8601 or a date-time, UTC if it has no zone)
        and the features, in any order of rows; a feature that is absent or null is missing. A feature that is itself
        called ``sensor_id`` or ``timestamp`` has the column ``feature:sensor_id`` or ``feature:timestamp``. A sensor's
        second reading with the same timestamp is ignored, as in the stream.

        Returns a row per sensor, target and step: ``sensor_id``, ``issued_at``, ``target``, ``step`` (from 1),
        ``timestamp`` and a column per quantile level.
        """
        config = self._stepper.config
        sensors, codes, timestamp_us, values = self._readings(model_input, config.features)
        states = self._module("state").blank_states(config, len(sensors), self._stepper.adaptation)
        last = np.full((len(sensors), len(config.targets), len(config.quantiles), config.horizon_steps), np.nan)
        for start in range(0, len(codes), CHUNK_READINGS):
            part = slice(start, start + CHUNK_READINGS)
            offsets = np.arange(start, start + len(codes[part]), dtype=np.int64)
            forecasts = self._stepper.step(states, sensors, codes[part], timestamp_us[part], values[part], offsets)
            last[codes[part]] = forecasts.quantiles  # a sensor's readings are in order, so its last forecast stays
        return forecast_frame(sensors, states["last_us"], last, config)

    def _module(self, name: str) -> Any:
        return importlib.import_module(f"{self._code}.{name}")

    def _readings(
        self, frame: pd.DataFrame, features: tuple[str, ...]
    ) -> tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """The accepted readings by time: sensor ids, sensor codes (n,), microseconds (n,) and values (n,F)."""
        for column in ("sensor_id", "timestamp"):
            if column not in frame:
                raise ValueError(f"the frame of readings has no column {column}; it has {', '.join(map(str, frame))}")
        columns = [self._module("feature_columns").input_column(feature) for feature in features]
        if not any(column in frame for column in columns):
            raise ValueError(f"the frame of readings has none of the model's features: {', '.join(columns)}")
        moments = pd.to_datetime(frame["timestamp"], utc=True, format="ISO8601")
        timestamp_us = moments.dt.as_unit("us").astype("int64").to_numpy(dtype=np.int64)
        if moments.isna().any() or frame["sensor_id"].isna().any():
            raise ValueError("the frame of readings has a row without sensor_id or timestamp")
        codes, names = pd.factorize(frame["sensor_id"].astype(str), sort=True)
        values = np.full((len(frame), len(features)), np.nan)
        for index, column in enumerate(columns):
            if column in frame:
                values[:, index] = pd.to_numeric(frame[column]).to_numpy(dtype=np.float64, na_value=np.nan)
        order = np.argsort(timestamp_us, kind="stable")
        codes = codes.astype(np.int64)[order]
        kept = self._module("acceptance").accepted_mask(codes, timestamp_us[order])
        return list(names), codes[kept], timestamp_us[order][kept], values[order][kept]


def import_code(artefact: Path) -> str:
    """Import the artefact's copy of the ``model`` package under its own name, and return that name.

    The name holds a hash of the code, so that artefacts of different versions can be loaded side by side.
    """
    name: str = json.loads((artefact / CODE_NOTE).read_text(encoding="utf-8"))["package"]
    if name not in sys.modules:
        folder = lasting_copy(artefact / name)
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        package = importlib.util.module_from_spec(spec)
        sys.modules[name] = package
        spec.loader.exec_module(package)
    return name


def lasting_copy(code: Path) -> Path:
    """A copy of the folder ``code`` in the user's cache, or ``code`` itself if the cache cannot be written.

    MLflow downloads an artefact into a new folder for each process. numba finds compiled functions by the path of their
    file, so it would compile them in each process, which takes most of a minute. The name of the copy has a hash of the
    files, and each file is compared and restored if it differs, so the copy always runs the artefact's own code.
    """
    files = {file.name: file.read_bytes() for file in sorted(code.glob("*.py"))}
    digest = hashlib.sha256(code.name.encode())
    for name, content in files.items():
        digest.update(f"\0{name}\0{len(content)}\0".encode() + content)
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        copy = cache / "streamgru" / f"{code.name}-{digest.hexdigest()[:12]}"
        copy.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            _write(copy / name, content)
    except (OSError, RuntimeError):  # RuntimeError: the user has no home folder
        return code
    return copy


def _write(file: Path, content: bytes) -> None:
    """Write ``file`` unless it has this content; other processes see the old file or the new one, never a part."""
    with contextlib.suppress(FileNotFoundError):
        if file.read_bytes() == content:
            return
    with tempfile.TemporaryDirectory(dir=file.parent, ignore_cleanup_errors=True) as folder:
        new = Path(folder) / file.name
        new.write_bytes(content)
        new.replace(file)


def forecast_frame(
    sensors: list[str], issued_us: npt.NDArray[np.int64], quantiles: npt.NDArray[np.float64], config: Any
) -> pd.DataFrame:
    """A row per sensor, target and step from ``quantiles`` (S,K,Q,h)."""
    sensor_count, target_count, _, horizon = quantiles.shape
    steps = np.arange(1, horizon + 1)
    issued = np.repeat(issued_us, target_count * horizon)
    step = np.tile(steps, sensor_count * target_count)
    columns: dict[str, Any] = {
        "sensor_id": np.repeat(np.asarray(sensors, dtype=object), target_count * horizon),
        "issued_at": pd.to_datetime(issued, unit="us", utc=True),
        "target": np.tile(np.repeat(np.asarray(config.targets, dtype=object), horizon), sensor_count),
        "step": step,
        "timestamp": pd.to_datetime(issued + step * config.cadence_us, unit="us", utc=True),
    }
    for index, level in enumerate(config.quantiles):
        columns[str(level)] = quantiles[:, :, index, :].reshape(-1)
    return pd.DataFrame(columns)


set_model(ForecastingModel())
