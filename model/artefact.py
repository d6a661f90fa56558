"""A model on disk: ``config.json`` and ``weights.pt`` in one directory. Nothing in it is pickled code."""

import errno
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final

import torch

from .config import ModelConfig
from .forecaster import Forecaster

# Raised whenever a model of the version before could not be served the same way.
FORMAT_VERSION: Final = 1
CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "weights.pt"


class ArtefactError(ValueError):
    """The directory holds no model, a damaged one, or one of another format."""


def save_artefact(forecaster: Forecaster, directory: Path) -> None:
    """Writes the model into ``directory``, which appears whole or not at all.

    One that is there is replaced. A process killed in between leaves it beside the place, as ``.NAME-replaced-…``, and
    nothing in it.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        content = {"format_version": FORMAT_VERSION, **json.loads(forecaster.config.to_json())}
        weights = {name: tensor.detach().cpu() for name, tensor in forecaster.stored_weights().items()}
        with (draft / WEIGHTS_FILE).open("wb") as file:
            torch.save(weights, file)
            file.flush()
            os.fsync(file.fileno())
        (draft / CONFIG_FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
        draft.chmod(0o755)  # what mkdtemp made is for its owner alone
        _put_in_place(draft, directory)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _put_in_place(draft: Path, directory: Path) -> None:
    if not directory.exists():
        draft.rename(directory)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{directory.name}-replaced-", dir=directory.parent))
    directory.rename(aside)  # onto an empty directory
    try:
        draft.rename(directory)
    except OSError:
        aside.rename(directory)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def load_artefact(directory: Path, device: str = "cpu") -> Forecaster:
    """The model in ``directory``, ready to forecast.

    Raises:
        ArtefactError: saying which file is missing or damaged, and what to do.
        OSError: the disk could not be read.
    """
    config = _read_config(directory / CONFIG_FILE)
    try:
        forecaster = Forecaster(config)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:  # such as a size that is no integer
        raise ArtefactError(f"{directory / CONFIG_FILE} describes no model that can be built: {error}") from error
    weights = _read_weights(directory / WEIGHTS_FILE)
    try:
        forecaster.load_stored_weights(weights)
    except (RuntimeError, AttributeError) as error:
        raise ArtefactError(
            f"{directory / WEIGHTS_FILE} does not hold the weights of the model described beside it in {CONFIG_FILE}; "
            "register the model again"
        ) from error
    if not all(bool(torch.isfinite(tensor).all()) for tensor in forecaster.state_dict().values()):
        raise ArtefactError(
            f"{directory / WEIGHTS_FILE} holds weights that are not finite; train and register it again"
        )
    return forecaster.to(device).eval()


def _read_config(path: Path) -> ModelConfig:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtefactError(f"{path} is missing: {path.parent} holds no model") from error
    except (IsADirectoryError, NotADirectoryError, ValueError, RecursionError) as error:
        raise ArtefactError(f"{path} cannot be read ({error}); register the model again") from error
    if not isinstance(content, dict) or "format_version" not in content:
        raise ArtefactError(f"{path} does not describe a model of streamgru")
    version = content.pop("format_version")
    if version != FORMAT_VERSION:
        raise ArtefactError(
            f"{path} has format {version!r}, and this program reads {FORMAT_VERSION}; "
            "train the model again, or use the program that wrote it"
        )
    try:
        return ModelConfig.from_dict(content)
    except ValueError as error:
        raise ArtefactError(f"{path} is not valid: {error}") from error


def _read_weights(path: Path) -> dict[str, Any]:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ArtefactError(f"{path} is missing; register the model again") from error
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, UnpicklingError, zipfile.BadZipFile) as error:
        # A file cut short is an invalid argument to torch; what else the system says is no fault of the file.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise ArtefactError(f"{path} is damaged; register the model again") from error
    if not isinstance(weights, dict):
        raise ArtefactError(f"{path} does not hold a model's weights; register the model again")
    return weights


def config_differences(
    config: ModelConfig,
    *,
    features: Sequence[str],
    targets: Sequence[str],
    cadence_us: int,
    horizon_steps: int,
    quantiles: Sequence[float],
    max_gap_steps: int,
) -> list[str]:
    """A sentence for each thing in which a model differs from what is to be served; empty if it fits."""
    wanted = {
        "features": tuple(features),
        "targets": tuple(targets),
        "cadence_us": cadence_us,
        "horizon_steps": horizon_steps,
        "quantiles": tuple(quantiles),
        "max_gap_steps": max_gap_steps,
    }
    return [
        f"the model was made for {name} {_formatted(getattr(config, name))}, and the settings say {_formatted(value)}"
        for name, value in wanted.items()
        if getattr(config, name) != value
    ]


def _formatted(value: object) -> str:
    return ", ".join(str(part) for part in value) if isinstance(value, tuple) else str(value)
