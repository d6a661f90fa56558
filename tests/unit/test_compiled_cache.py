"""Code that numba keeps on disk is used again, unless the options of the compiled functions have changed."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from deploy import compile_kernels
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


class OneTaskPool(Executor):
    """A pool whose processes end after the first task."""

    def __init__(self, *_: object) -> None:
        self._tasks = 0

    def submit(self, task: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        if self._tasks:
            done.set_exception(BrokenProcessPool("a process ended"))
        else:
            done.set_result(task(*args, **named))
        self._tasks += 1
        return done


def no_pool(*_: object) -> Executor:
    raise FileNotFoundError("no semaphores")


@pytest.mark.parametrize("pool", [OneTaskPool, no_pool])
def test_set_up_compiles_alone_where_a_pool_of_processes_fails(
    pool: Callable[..., Executor], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    kernels = {name: lambda name=name: compiled.append(name) for name in ("first", "second", "third")}
    monkeypatch.setattr(compile_kernels, "KERNELS", kernels)
    monkeypatch.setattr(compile_kernels, "ProcessPoolExecutor", pool)
    compile_kernels.main()
    assert set(compiled) == set(kernels)
