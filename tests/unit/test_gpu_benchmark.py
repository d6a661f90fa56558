"""The benchmark of GPUs: all of its steps on a CPU, with few sensors, and its refusal without a GPU."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.benchmarks import gpu
from tests.documents import ROOT

# The only packages of a machine that is lent for the benchmark, beside the standard library.
ALLOWED = {"torch", "numpy", "numba"}
# A finder refuses other packages of the environment, unless one of the three asks for them.
PROGRAM = f"""
import sys
from importlib.metadata import packages_distributions, requires
import re
known = packages_distributions()
def needed(name, found):
    if name not in found:
        found.add(name)
        try:
            lines = requires(name) or []
        except Exception:
            return found
        for line in lines:
            if "extra ==" not in line:
                needed(re.match(r"[\\w.-]+", line).group().lower().replace("_", "-"), found)
    return found
kept = set().union(*(needed(name, set()) for name in {sorted(ALLOWED)!r}))
class Refusal:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        owners = {{owner.lower().replace("_", "-") for owner in known.get(top, [])}}
        if owners and not owners & kept and top not in ("model", "tests"):
            raise ModuleNotFoundError(name)
        return None
sys.meta_path.insert(0, Refusal())
from tests.benchmarks.gpu import main
main()
"""


def test_all_steps_run_on_a_cpu_with_torch_numpy_and_numba_alone_and_write_the_page(tmp_path: Path) -> None:
    page = tmp_path / "GPU.md"
    command = [sys.executable, "-c", PROGRAM, "--device", "cpu", "--small", "--out", str(page)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    text = page.read_text(encoding="utf-8")
    assert "| loss of equal weights, GPU against CPU: relative difference | 0.0e+00 | ≤ 2e-03 | yes |" in text
    assert "| epochs trained after the restart | 2 | 2 | yes |" in text
    assert "**no**" not in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_command_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    assert "PyTorch finds no CUDA device" in capsys.readouterr().err
