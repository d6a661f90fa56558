"""Parameters of the retrain flow: invalid ones are refused before the run, or name the setting."""

import importlib
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.exceptions import ParameterTypeError
from prefect.logging import disable_run_logger

from flows.retrain import retrain
from model.config import ModelConfig
from model.training import DeviceError, TrainingOptions
from pipeline.errors import SettingsError


@pytest.mark.parametrize(
    ("name", "value"),
    [("budget_s", math.inf), ("budget_s", math.nan), ("budget_s", 0.0), ("seed", -1), ("seed", 2**63)],
)
def test_a_retraining_refuses_an_invalid_budget_or_seed(name: str, value: float) -> None:
    with pytest.raises(ParameterTypeError, match=name):
        retrain.validate_parameters({name: value})


def test_a_retraining_takes_the_largest_seed() -> None:
    assert retrain.validate_parameters({"seed": 2**63 - 1})["seed"] == 2**63 - 1


def test_a_device_that_another_process_cannot_use_is_an_error_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = importlib.import_module("flows.retrain")

    def refuse(*arguments: object, **named: object) -> None:
        raise DeviceError("set --nproc-per-node 2")

    monkeypatch.setattr(module, "train", refuse)
    data = SimpleNamespace(training_set=None, trained=None, split=None)
    config = ModelConfig(("load",), ("load",), 3_600_000_000, 4)
    with disable_run_logger(), pytest.raises(SettingsError, match=r"^training.device: set --nproc-per-node 2$"):
        module._train(config, TrainingOptions(), data, None, Path("unused"))
