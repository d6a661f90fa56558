"""A training in two processes has the losses and weights of a training in one."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model import distributed
from model.training import train
from tests.documents import ROOT
from tests.series import CONFIG, noisy_days
from tests.torchrun_training import OPTIONS, SPLIT

TIMEOUT_S = 120.0


def output(*module_and_arguments: str, processes: int) -> tuple[int, str]:
    """Run a module; return the exit code and the text on both streams."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", *module_and_arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        text, _ = process.communicate(timeout=TIMEOUT_S)
        return process.returncode, text
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def results(folder: Path) -> tuple[list[list[float]], dict[str, Any]]:
    return json.loads((folder / "losses.json").read_text()), torch.load(folder / "weights.pt")


@pytest.mark.long(15)
def test_two_processes_train_as_one_does_and_resume(tmp_path: Path) -> None:
    (two := tmp_path / "two").mkdir()
    (resumed := tmp_path / "resumed").mkdir()
    code, text = output("tests.torchrun_training", str(two), "--too-short", "--stopped", str(resumed), processes=2)
    assert code != 0
    assert "validation part" in (two / "refusal").read_text(), text  # the followers then train again
    assert "torch._dynamo" not in (two / "modules").read_text().splitlines()  # 150 MB and two seconds
    losses_of_two, weights_of_two = results(two)
    one = train(CONFIG, OPTIONS, noisy_days(), SPLIT)
    losses = [[epoch.train_loss, epoch.validation_loss] for epoch in one.epochs]
    torch.testing.assert_close(torch.tensor(losses_of_two), torch.tensor(losses), rtol=1e-4, atol=1e-5)
    for name, expected in one.forecaster.state_dict().items():
        torch.testing.assert_close(weights_of_two[name], expected, rtol=1e-2, atol=1e-4, msg=name)

    assert [file.name for file in resumed.iterdir()] == ["checkpoint.pt"]
    code, text = output("tests.torchrun_training", str(resumed), processes=2)
    assert code == 0, text
    losses_of_resumed, weights_of_resumed = results(resumed)
    assert losses_of_resumed == losses_of_two
    for name, expected in weights_of_two.items():
        assert torch.equal(weights_of_resumed[name], expected)


def test_without_torchrun_a_training_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")  # of another launcher
    assert not distributed.started_by_torchrun()
    assert not distributed.follows()
    assert distributed.local_device(torch.device("cuda:1")) == torch.device("cuda:1")


def test_processes_get_the_gpus_of_their_machine_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "RANK": "5", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert distributed.follows()
    assert distributed.local_device(torch.device("cuda")) == torch.device("cuda:1")
    assert distributed.local_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(ValueError, match="names one GPU"):
        distributed.local_device(torch.device("cuda:0"))
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="set --nproc-per-node 2"):
        distributed.local_device(torch.device("cuda"))


@pytest.mark.long(20)
def test_torchrun_spreads_the_training_of_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hours = np.arange(400) * np.timedelta64(1, "h") + np.datetime64("2024-01-01")
    rows = [f"{hour},{np.sin(number / 4.0):.3f},{np.cos(number / 4.0):.3f}" for number, hour in enumerate(hours)]
    (tmp_path / "my.csv").write_text("\n".join(["time,a,b", *rows]) + "\n")
    words = ["--columns-as-sensors", "--timezone", "UTC", "--horizon", "2", "--epochs", "1", "--out"]
    words = [str(tmp_path / "my.csv"), *words, str(tmp_path / "scores")]
    monkeypatch.setenv("STREAMGRU_TRAINING__HIDDEN_SIZE", "4")
    code, text = output("deploy.cli", "backtest", *words, processes=2)
    assert code == 0, text
    assert text.count("epoch 1: training loss") == 1  # the leader alone prints
    assert (tmp_path / "scores" / "scores.json").exists()


def test_torchrun_is_refused_for_a_command_that_does_not_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """That `torchrun` sets this variable is shown by the command that it spreads."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    code, text = output("deploy.cli", "models", processes=1)
    assert code != 0
    assert "run `streamgru models` without it" in " ".join(text.split())
