"""Code that numba keeps on disk is used again, unless the options of the compiled functions have changed."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

from model import kernel


def compiled_in(file: Path, options: dict[str, Any]) -> Any:
    """The function of the file, compiled as if in a new process, and called once."""
    spec = importlib.util.spec_from_file_location("functions", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: Any = kernel._cached(module.double, options)
    assert made(2) == 4
    return made


def test_other_options_compile_a_function_again(tmp_path: Path) -> None:
    file = tmp_path / "functions.py"
    file.write_text("def double(value):\n    return 2 * value\n")
    other = kernel.OPTIONS | {"boundscheck": True}
    for options, is_stored in (
        (kernel.OPTIONS, False),
        (kernel.OPTIONS, True),
        (other, False),
        (other, True),
        (kernel.OPTIONS, False),
    ):
        made = compiled_in(file, options)
        assert bool(made.stats.cache_hits) == is_stored
        assert bool(made.stats.cache_misses) != is_stored


def test_set_up_compiles_the_adaptation_for_the_types_that_the_engine_passes() -> None:
    """Otherwise the first forecaster would compile it once more."""
    code = (
        "from deploy.compile_kernels import compile_adaptation, compile_step\n"
        "from model import kernel, unit_kernel\n"
        "compile_adaptation(), compile_step()\n"
        "print(len(kernel.run.signatures), len(unit_kernel.run.signatures))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]
