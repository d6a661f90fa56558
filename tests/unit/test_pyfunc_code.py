"""The code of a registered model: imported from the user's cache, so that numba compiles it once for each user."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.registry.pyfunc_model import CODE_NOTE, import_code

PACKAGE = "streamgru_model_of_a_test"
SOURCE = "import numba\n\n\n@numba.njit(cache=True)\ndef double(value):\n    return {factor} * value\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's cache, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    forget()


def forget() -> None:
    """Let the next import read the files, as in a new process."""
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]


def downloaded(folder: Path, factor: int = 2) -> Path:
    """An artefact in a folder of its own, as MLflow downloads it."""
    (folder / PACKAGE).mkdir(parents=True)
    (folder / PACKAGE / "__init__.py").write_text("")
    (folder / PACKAGE / "numbers.py").write_text(SOURCE.format(factor=factor))
    (folder / CODE_NOTE).write_text(json.dumps({"package": PACKAGE}))
    return folder


def loaded(artefact: Path) -> Any:
    """The function of the artefact, as a new process imports it."""
    forget()
    return importlib.import_module(f"{import_code(artefact)}.numbers").double


def file_of(function: Any) -> Path:
    return Path(function.py_func.__code__.co_filename)


def test_a_second_download_of_the_same_code_is_not_compiled_again(tmp_path: Path) -> None:
    first = loaded(downloaded(tmp_path / "first"))
    assert first(2) == 4
    assert sum(first.stats.cache_hits.values()) == 0
    second = loaded(downloaded(tmp_path / "second"))
    assert second(2) == 4
    assert sum(second.stats.cache_hits.values()) == 1


def test_other_code_of_the_same_name_and_a_changed_copy_do_not_run(tmp_path: Path) -> None:
    function = loaded(downloaded(tmp_path / "first"))
    assert loaded(downloaded(tmp_path / "second", factor=5)).py_func(2) == 10
    copy = file_of(function)
    copy.write_text("raise SystemExit\n")
    again = loaded(tmp_path / "first")
    assert file_of(again) == copy
    assert again.py_func(2) == 4


@pytest.mark.parametrize("home", ["a file", "no home"])
def test_without_a_writable_cache_the_code_of_the_artefact_itself_runs(
    home: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if home == "a file":
        cache.touch()
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError))
    artefact = downloaded(tmp_path / "first")
    function = loaded(artefact)
    assert function.py_func(2) == 4
    assert file_of(function).is_relative_to(artefact)
