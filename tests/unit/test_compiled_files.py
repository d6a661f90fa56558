"""Compiled functions use no constant or function of another file of the project.

numba compiles a cached function again if its own file changes, and would miss a change in another file.
"""

import ast
from pathlib import Path

import pytest

from model import acceptance, acceptance_kernel, state, step_kernel, step_plan

ROOT = Path(__file__).parents[2]
FOLDERS = ("model", "pipeline")
DECORATORS = {"compiled", "allocating", "inner", "inlined"}  # of ``model.kernel``


def compiled_functions(tree: ast.Module) -> list[ast.FunctionDef]:
    """The compiled functions of a file."""
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [each for each in functions if names_in(*each.decorator_list) & DECORATORS]


def names_in(*nodes: ast.AST) -> set[str]:
    """The names that some code uses or assigns."""
    return {each.id for node in nodes for each in ast.walk(node) if isinstance(each, ast.Name)}


def foreign_names(tree: ast.Module) -> set[str]:
    """The names that a file imports from other files of the project, and the constants that it makes of them."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.level or str(node.module).split(".")[0] in FOLDERS):
            found |= {each.asname or each.name for each in node.names}
        elif isinstance(node, ast.Assign) and names_in(node.value) & found:
            found |= names_in(*node.targets)
        elif isinstance(node, ast.AnnAssign) and node.value is not None and names_in(node.value) & found:
            found |= names_in(node.target)
    return found


FILES = {
    str(path.relative_to(ROOT)): tree
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
    if compiled_functions(tree := ast.parse(path.read_text(encoding="utf-8")))
}


@pytest.mark.parametrize("file", FILES)
def test_compiled_functions_use_no_name_of_another_file(file: str) -> None:
    foreign = foreign_names(FILES[file])
    found = {each.name: names_in(*each.body) & foreign for each in compiled_functions(FILES[file])}
    assert {name: used for name, used in found.items() if used} == {}


def test_the_check_finds_an_imported_constant() -> None:
    tree = ast.parse(
        "from .other import LIMIT\n_LIMIT: int = int(LIMIT)\n@compiled\ndef double(x):\n    return min(2 * x, _LIMIT)\n"
    )
    (function,) = compiled_functions(tree)
    assert names_in(*function.body) & foreign_names(tree) == {"_LIMIT"}


def test_constants_that_kernels_repeat_are_those_of_their_modules() -> None:
    for name in ("ACCEPTED", "DUPLICATE", "LATE"):
        assert getattr(acceptance_kernel, name) == getattr(acceptance, name)
    assert step_plan.NEVER_US == acceptance.NEVER_US
    assert step_kernel.NO_OFFSET == state.NO_OFFSET
