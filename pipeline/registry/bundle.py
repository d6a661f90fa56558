"""The code and notes that a registered model contains, so that it runs without this project."""

import dataclasses
import hashlib
import inspect
import json
import shutil
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Final

from model.config import Adaptation, ModelConfig

# File with the name of the code's folder and the adaptation of forecasts; pipeline/registry/pyfunc_model.py reads it.
CODE_NOTE: Final = "code.json"
PACKAGES: Final = ("mlflow", "torch", "numpy", "numba", "polars", "pandas")


def bundle_artefact(artefact: Path, target: Path, adaptation: Adaptation) -> Path:
    """A copy of an artefact with a copy of this project's ``model`` package, whose name contains the code's hash.

    The name differs from any other package called ``model`` and from the code of other versions. The bundle forecasts
    with ``adaptation``, as the stream does with the settings of this retraining.
    """
    shutil.copytree(artefact, target)
    files = sorted(Path(inspect.getfile(ModelConfig)).parent.glob("*.py"))
    digest = hashlib.sha256(b"\0".join(file.name.encode() + b"\0" + file.read_bytes() for file in files)).hexdigest()
    package = f"streamgru_model_{digest[:12]}"
    (target / package).mkdir()
    for file in files:
        shutil.copy(file, target / package)
    note = {"package": package, "adaptation": dataclasses.asdict(adaptation)}
    (target / CODE_NOTE).write_text(json.dumps(note), encoding="utf-8")
    return target


def pip_requirements() -> list[str]:
    """The packages that the logged model needs, at the installed versions without local parts (``+cu126``)."""
    return [f"{package}=={installed_version(package).partition('+')[0]}" for package in PACKAGES]
