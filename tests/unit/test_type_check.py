import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OVERRIDES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["overrides"]
# Skipped modules that exist with their types; the other override is for modules without types.
UNREAD = [
    name.removesuffix(".*")
    for override in OVERRIDES
    if override["follow_imports"] == "skip" and not override.get("ignore_missing_imports")
    for name in override["module"]
]


def imported(file: Path) -> Iterator[str]:
    """The modules that a file imports, and the names that may be modules."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("folder", ["deploy", "flows", "model", "pipeline"])
def test_no_module_imports_a_library_whose_types_mypy_does_not_read(folder: str) -> None:
    assert len(UNREAD) > 40
    found = {
        f"{file}: {module}"
        for file in (ROOT / folder).rglob("*.py")
        for module in imported(file)
        for unread in UNREAD
        if module == unread or module.startswith(f"{unread}.")
    }
    assert not found, "delete these modules from the overrides in pyproject.toml, so that mypy checks their use"
