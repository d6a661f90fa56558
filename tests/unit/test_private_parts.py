"""Only ``pipeline/kafka`` uses private parts of kafka-python, and each use there has a docstring with the reason."""

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import kafka
import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
KAFKA_FOLDER = ROOT / "pipeline" / "kafka"
PRODUCT = sorted(path for folder in ("deploy", "flows", "model", "pipeline") for path in (ROOT / folder).rglob("*.py"))
POINTS = ("Why", "Without it", "Tested with", "Goes when")

Scope = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def kafka_names() -> set[str]:
    """Names with one leading underscore that kafka-python's own classes define."""
    sources = (path.read_text(encoding="utf-8") for path in Path(kafka.__file__).parent.rglob("*.py"))
    found = {name for source in sources for name in re.findall(r"(?:\bself\.|\bdef )(_[a-z]\w*)", source)}
    return found - {"_asdict", "_fields", "_make", "_replace"}  # public methods of named tuples


KAFKA_NAMES = kafka_names()


def touched(tree: ast.Module) -> Iterator[tuple[ast.Attribute, list[Scope]]]:
    """Private attributes of objects other than ``self``, each with the scopes around it, from the outermost inwards."""

    def walk(node: ast.AST, scopes: list[Scope]) -> Iterator[tuple[ast.Attribute, list[Scope]]]:
        if isinstance(node, Scope):
            scopes = [*scopes, node]
        if isinstance(node, ast.Attribute) and node.attr in KAFKA_NAMES and ast.unparse(node.value) != "self":
            yield node, scopes
        for child in ast.iter_child_nodes(node):
            yield from walk(child, scopes)

    yield from walk(tree, [])


def places(source: str) -> list[str]:
    return [f"line {node.lineno}: {ast.unparse(node)}" for node, _ in touched(ast.parse(source))]


def undocumented(source: str) -> list[str]:
    """Private attributes without all four points in the docstring of a scope around them."""
    return [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node, scopes in touched(ast.parse(source))
        if not any(all(point in (ast.get_docstring(scope) or "") for point in POINTS) for scope in scopes)
    ]


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_uses_private_parts_of_the_client_only_with_a_documented_reason(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert (undocumented(source) if path.is_relative_to(KAFKA_FOLDER) else places(source)) == []


@pytest.mark.parametrize(
    "planted",
    [
        "consumer._coordinator.request_rejoin()",
        "def wake(self):\n    self._producer._sender.wakeup()",
        "producer._transaction_manager.begin_abort()",
        "consumer._fetcher.send_fetches = None",
    ],
)
def test_a_planted_access_is_found(planted: str) -> None:
    assert places(planted)
    assert undocumented(planted)


def test_own_private_attributes_are_not_taken_for_the_clients() -> None:
    assert places("class Own:\n    def run(self):\n        self._client = self._sender\n        os._exit(1)") == []


def test_the_documented_versions_are_the_pinned_and_installed_ones() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (pinned,) = re.findall(r"^kafka-python\[[\w,]+\](\S+)$", "\n".join(project["dependencies"]), re.MULTILINE)
    named = [
        found
        for path in sorted(KAFKA_FOLDER.glob("*.py"))
        for found in re.findall(r"Tested with: kafka-python (\S+?)[.,]?\s", path.read_text(encoding="utf-8"))
    ]
    assert len(named) >= 15
    assert set(named) == {pinned} == {">=3.0.12,<3.1"}
    assert version("kafka-python") in SpecifierSet(pinned)
