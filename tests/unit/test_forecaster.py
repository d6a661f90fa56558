"""The forecaster retries after a failure and closes its clients; its code keeps to rules on clocks and attributes."""

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.errors import BrokerUnreachable
from pipeline.forecaster import loop, session
from pipeline.forecaster.champion import Candidate
from pipeline.forecaster.loop import StreamForecaster
from pipeline.forecaster.session import FIRST_RETRY_S, LONGEST_RETRY_S, retry_wait_s
from pipeline.settings import Settings


@pytest.mark.parametrize(
    ("failures", "wait_s"),
    [
        (1, FIRST_RETRY_S),
        (2, 2 * FIRST_RETRY_S),
        (3, 4 * FIRST_RETRY_S),
        (100, LONGEST_RETRY_S),
        (10**6, LONGEST_RETRY_S),
    ],
)
def test_the_wait_after_a_failure_doubles_up_to_a_limit(failures: int, wait_s: float) -> None:
    assert retry_wait_s(failures) == pytest.approx(wait_s)


def test_clients_opened_before_a_failed_connection_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    unused: Any = None

    class Reader:
        def close(self) -> None:
            closed.append("reader")

    class Watcher:
        def __init__(self, *args: Any) -> None:
            pass

        def first(self, is_stopping: Any) -> Candidate:
            return Candidate(1, unused)

        def close(self) -> None:
            closed.append("watcher")

    def unreachable(settings: Settings) -> None:
        raise BrokerUnreachable("no Kafka broker answers")

    def same(what: Any, *args: Any, **options: Any) -> Any:
        return what

    instance: Any = SimpleNamespace(exclusive=False)
    monkeypatch.setattr(loop, "check_topics", same)
    monkeypatch.setattr(loop, "find_topic_id", same)
    monkeypatch.setattr(loop, "ChampionWatcher", Watcher)
    monkeypatch.setattr(loop, "ServedModel", same)
    monkeypatch.setattr(session, "make_consumer", lambda *args, **options: Reader())
    monkeypatch.setattr(session, "read_fast", same)
    monkeypatch.setattr(session, "make_admin", unreachable)
    with pytest.raises(BrokerUnreachable):
        StreamForecaster(Settings(), unused, instance).run()
    assert closed == ["reader", "watcher"]


# These uses need the time of day: the loop compares it with the records' Kafka timestamps, and the metrics report
# monotonic times as Unix times.
TIME_OF_DAY = {
    "loop.py": "self._timings.add_batch(batch.step_s, time.monotonic() - began, batch.sent_ms, time.time())",
    "metrics.py": "offset_s = time.time() - time.monotonic()",
}


def test_intervals_are_not_measured_with_the_wall_clock() -> None:
    for source in Path(loop.__file__).parent.glob("*.py"):
        text = source.read_text(encoding="utf-8").replace(TIME_OF_DAY.get(source.name, "\0"), "")
        assert "time.time()" not in text, source.name
        assert "default_factory=time.time)" not in text, source.name


def attributes_set(function: ast.FunctionDef) -> set[str]:
    nodes = [node for node in ast.walk(function) if isinstance(node, ast.Attribute)]
    return {
        node.attr
        for node in nodes
        if isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }


@pytest.mark.parametrize("source", sorted(Path(loop.__file__).parent.glob("*.py")), ids=lambda source: source.stem)
def test_every_attribute_is_first_set_in_the_constructor(source: Path) -> None:
    for kind in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(kind, ast.ClassDef):
            methods = [node for node in kind.body if isinstance(node, ast.FunctionDef)]
            first = {node.target.id for node in kind.body if isinstance(node, ast.AnnAssign)}  # fields of a dataclass
            first = first.union(*(attributes_set(method) for method in methods if method.name == "__init__"))
            for method in methods:
                assert attributes_set(method) <= first, f"{kind.name}.{method.name}"
