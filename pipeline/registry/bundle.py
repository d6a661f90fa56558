"""What goes into the registry beside the weights, so that a registered model needs nothing of this project."""

import dataclasses
import hashlib
import inspect
import json
import shutil
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Final

from model.config import Adaptation, ModelConfig

# Names the folder of code, and says how forecasts adapt; pipeline/registry/pyfunc_model.py reads it.
CODE_NOTE: Final = "code.json"
PACKAGES: Final = ("mlflow", "torch", "numpy", "numba", "polars", "pandas")


def bundle_artefact(artefact: Path, target: Path, adaptation: Adaptation) -> Path:
    """A copy of an artefact with this project's ``model`` package beside it, under a name that holds the code's hash.

    The name keeps it apart from any other package called ``model``, and from the code of other versions. The bundle
    forecasts with ``adaptation``, as the stream does under the settings of this retraining.
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
    """What the logged model needs, at the versions it was made with, without their local parts (``+cu126``)."""
    return [f"{package}=={installed_version(package).partition('+')[0]}" for package in PACKAGES]
