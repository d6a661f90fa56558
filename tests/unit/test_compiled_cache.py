"""Code that numba keeps on disk is used again, unless the options of the compiled functions have changed."""

import importlib.util
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
