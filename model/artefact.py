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

from .artefact_size import size_faults, weights_file_fault
from .config import ModelConfig
from .forecaster import Forecaster

# Number of the file format; increase it when this program can no longer serve a model of the previous format.
FORMAT_VERSION: Final = 1
CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "weights.pt"
MOST_CONFIG_BYTES: Final = 64 << 20  # of config.json, which names every sensor of the training


class ArtefactError(ValueError):
    """The directory holds no model, a damaged model or a model of another format."""


def save_artefact(forecaster: Forecaster, directory: Path) -> None:
    """Write the model into ``directory``, which appears whole or not at all.

    An existing directory is replaced. A process killed between the two renames leaves the old one next to it, as
    ``.NAME-replaced-…``, and no ``directory``.

    Raises:
        OSError: the files could not be written; an existing directory is unchanged.
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
        draft.chmod(0o755)  # mkdtemp lets only the owner read
        _put_in_place(draft, directory)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _put_in_place(draft: Path, directory: Path) -> None:
    if not directory.exists():
        draft.rename(directory)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{directory.name}-replaced-", dir=directory.parent))
    directory.rename(aside)  # a rename may replace an empty directory
    try:
        draft.rename(directory)
    except OSError:
        aside.rename(directory)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def load_artefact(directory: Path) -> Forecaster:
    """The model in ``directory``, ready to forecast on the CPU.

    Raises:
        ArtefactError: a file is missing, damaged, or of another format; the message names it and the next step.
        OSError: the disk could not be read.
    """
    config = _read_config(directory / CONFIG_FILE)
    _check_sizes(config, directory)
    try:
        forecaster = Forecaster(config)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:  # for example hidden_size 1.5
        raise ArtefactError(f"{directory / CONFIG_FILE} is invalid ({error}); register the model again") from error
    weights = _read_weights(directory / WEIGHTS_FILE)
    try:
        forecaster.load_stored_weights(weights)
    except (RuntimeError, AttributeError) as error:
        raise ArtefactError(
            f"{directory / WEIGHTS_FILE} does not hold the weights of the model in {CONFIG_FILE} beside it; "
            "register the model again"
        ) from error
    if not all(bool(torch.isfinite(tensor).all()) for tensor in forecaster.state_dict().values()):
        raise ArtefactError(f"{directory / WEIGHTS_FILE} holds non-finite weights; train and register the model again")
    return forecaster.eval()


def _check_sizes(config: ModelConfig, directory: Path) -> None:
    """Refuse a model that takes absurdly much memory, before any of it is allocated."""
    try:
        faults = size_faults(config)
        damage = None if faults else weights_file_fault(directory / WEIGHTS_FILE, config)
    except FileNotFoundError:
        return  # reading the file reports it
    except (TypeError, ValueError, OverflowError) as error:  # for example profile_slots "a"
        raise ArtefactError(f"{directory / CONFIG_FILE} is invalid ({error}); register the model again") from error
    if faults:
        raise ArtefactError(
            f"{directory / CONFIG_FILE} describes a model that is too large: {'; '.join(faults)}. Train a smaller model"
        )
    if damage:
        raise ArtefactError(f"{directory / WEIGHTS_FILE} is damaged: {damage}; register the model again")


def _read_config(path: Path) -> ModelConfig:
    try:
        if path.stat().st_size > MOST_CONFIG_BYTES:
            raise ArtefactError(
                f"{path} has {path.stat().st_size:,} bytes, and the limit is {MOST_CONFIG_BYTES:,}; register the model "
                "again"
            )
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtefactError(f"{path} is missing, so {path.parent} holds no model; register the model again") from error
    except ArtefactError:
        raise
    except (IsADirectoryError, NotADirectoryError, ValueError, RecursionError) as error:
        raise ArtefactError(f"{path} cannot be read ({error}); register the model again") from error
    if not isinstance(content, dict) or "format_version" not in content:
        raise ArtefactError(f"{path} does not describe a model of streamgru: it names no format_version")
    version = content.pop("format_version")
    if version != FORMAT_VERSION:
        raise ArtefactError(
            f"{path} has format {version!r}, and this program reads format {FORMAT_VERSION}; "
            "train the model again, or use the version of streamgru that wrote it"
        )
    try:
        return ModelConfig.from_dict(content)
    except ValueError as error:
        raise ArtefactError(f"{path} is invalid ({error}); register the model again") from error


def _read_weights(path: Path) -> dict[str, Any]:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ArtefactError(f"{path} is missing; register the model again") from error
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, UnpicklingError, zipfile.BadZipFile) as error:
        # torch reports a truncated file as EINVAL; any other OSError is a fault of the disk, not of the file.
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
    outlook_covariates: Sequence[str],
) -> list[str]:
    """A sentence for each setting that a model was not made for; empty if the model fits the settings.

    A model with outlooks needs their covariates in the settings; any other model ignores those of the settings.
    """
    wanted = {
        "features": tuple(features),
        "targets": tuple(targets),
        "cadence_us": cadence_us,
        "horizon_steps": horizon_steps,
        "quantiles": tuple(quantiles),
        "max_gap_steps": max_gap_steps,
    }
    differences = [
        f"the model was made for {name} {_formatted(getattr(config, name))}, and the settings say {_formatted(value)}"
        for name, value in wanted.items()
        if getattr(config, name) != value
    ]
    if config.outlook is not None and config.outlook.covariates != tuple(outlook_covariates):
        made, said = _formatted(config.outlook.covariates), ", ".join(outlook_covariates) or "none"
        differences.append(f"the model was made for the outlook covariates {made}, and outlooks.covariates says {said}")
    return differences


def _formatted(value: object) -> str:
    return ", ".join(str(part) for part in value) if isinstance(value, tuple) else str(value)
