"""The memory that a model takes, computed from its configuration before any of it is allocated."""

import zipfile
from pathlib import Path
from typing import Final

from .ahead_inputs import AHEAD_WIDTH, ahead_size
from .attributes import attribute_values
from .config import (
    BYTES_PER_NUMBER,
    MOST_FORECAST_NUMBERS,
    MOST_RECORD_BYTES,
    NO_ADAPTATION,
    Adaptation,
    ModelConfig,
)
from .inputs import input_size, past_size
from .state import state_dtype

# The settings of a training allow 0.6 GB at most; a forecaster holds two versions during a swap.
MOST_WEIGHT_BYTES: Final = 1 << 30
MOST_LAYERS: Final = 64  # each layer is several Python objects, regardless of its size
_FLOAT32_BYTES: Final = 4
_GATES: Final = 3
_SLACK_BYTES: Final = 16 << 20  # of a weights file, for names and padding


def weight_bytes(config: ModelConfig) -> int:
    """The bytes of a model's weights."""
    hidden, outputs, inputs = config.hidden_size, output_count(config), input_size(config)
    first_layer = _GATES * hidden * (inputs + config.embedding_size + hidden + 2)
    other_layers = (config.num_layers - 1) * _GATES * hidden * (2 * hidden + 2)
    head = outputs * (hidden + 1)
    skip = outputs * (inputs + past_size(config)) if config.preset == "stateful" else 0
    embedding = (len(config.sensors) + 1 + len(attribute_values(config.attributes))) * config.embedding_size
    ahead = AHEAD_WIDTH * (hidden + ahead_size(config) + 1 + outputs) if config.knows_ahead else 0
    standard = 2 * config.outlook.covariate_count if config.outlook is not None else 0
    float32 = first_layer + other_layers + head + skip + embedding + ahead
    return _FLOAT32_BYTES * float32 + 8 * (config.feature_count + standard)


def output_count(config: ModelConfig) -> int:
    """The numbers in a forecast: targets, quantiles and steps."""
    return config.target_count * len(config.quantiles) * config.horizon_steps


def state_bytes(config: ModelConfig, adaptation: Adaptation) -> int | None:
    """The bytes of a sensor's state; None if numpy cannot describe so large a record."""
    try:
        return state_dtype(config, adaptation).itemsize
    except (ValueError, OverflowError, MemoryError):
        return None


def size_faults(config: ModelConfig, adaptation: Adaptation = NO_ADAPTATION) -> list[str]:
    """A sentence for each size beyond its limit; empty if the model can be loaded and served."""
    faults = []
    if config.num_layers > MOST_LAYERS:
        faults.append(f"num_layers is {config.num_layers:,}, and the limit is {MOST_LAYERS}")
    weights = weight_bytes(config)
    if weights > MOST_WEIGHT_BYTES:
        faults.append(
            f"its weights would take {weights:,} bytes, and the limit is {MOST_WEIGHT_BYTES:,} "
            f"(hidden_size {config.hidden_size:,}, num_layers {config.num_layers:,}, {output_count(config):,} outputs)"
        )
    if output_count(config) > MOST_FORECAST_NUMBERS:
        faults.append(
            f"a forecast would take some {BYTES_PER_NUMBER * output_count(config):,} bytes, and the limit is "
            f"{MOST_RECORD_BYTES:,} "
            f"({config.target_count:,} targets, {len(config.quantiles):,} quantiles, {config.horizon_steps:,} steps)"
        )
    if not faults:  # otherwise numpy may not be able to describe the state
        state = state_bytes(config, adaptation)
        if state is None or state > MOST_RECORD_BYTES:
            size = "more than 2 GB" if state is None else f"{state:,} bytes"
            faults.append(
                f"the state of a sensor would take {size}, and the limit is {MOST_RECORD_BYTES:,} (hidden_size "
                f"{config.hidden_size:,}, lag_steps {config.lag_steps:,}, profile_slots {config.profile_slots:,}, "
                f"season_steps {config.season_steps:,}, adaptation {adaptation.level!r})"
            )
    return faults


def weights_file_fault(path: Path, config: ModelConfig) -> str | None:
    """Why a file cannot hold the weights of a configuration, by its size alone; None if it can."""
    needed, size = weight_bytes(config), path.stat().st_size
    if size < needed:
        return f"it has {size:,} bytes, and the weights of this model take {needed:,}"
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except zipfile.BadZipFile:
        return None  # the reader of the file reports it
    if unpacked > needed + _SLACK_BYTES:
        return f"it unpacks to {unpacked:,} bytes, and the weights of this model take {needed:,}"
    return None
