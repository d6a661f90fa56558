"""``streamgru models`` is readable in a narrow terminal, complete in a pipe, and takes any tag as text."""

import io
from datetime import UTC, datetime

import pytest
from mlflow.entities.model_registry import ModelVersion
from rich.console import Console

from deploy.commands.models import _print
from pipeline.registry.versions import ModelInfo, _info, _is_own

REASON = "declined: mean pinball on the held-out tail is 0.25, against 0.125 of the champion; it must be lower [/a] $x$"
SCORES = {"pinball": 0.123456, "pinball.champion": 0.2, "pinball.naive": 0.3, "mae": 0.4, "coverage": 0.812}


def listing(monkeypatch: pytest.MonkeyPatch, *, width: int, terminal: bool) -> str:
    monkeypatch.delenv("COLUMNS", raising=False)
    versions = [
        ModelInfo(12, ("champion",), SCORES, {"gate.reason": REASON}, datetime(2026, 3, 1, 12, tzinfo=UTC)),
        ModelInfo(11, (), {}, {"owner": "[red]me"}, datetime(2026, 2, 1, tzinfo=UTC), trouble="not made by streamgru"),
    ]
    out = io.StringIO()
    options = {"highlight": False, "no_color": True, "markup": False, "emoji": False}
    _print(Console(file=out, width=width, force_terminal=terminal, **options), "m", versions)  # type: ignore[arg-type]
    return out.getvalue()


def test_eighty_columns_show_every_number_and_wrap_sentences_at_words(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = listing(monkeypatch, width=80, terminal=True)
    assert max(map(len, shown.splitlines())) <= 80
    assert "version 12, champion, created 2026-03-01 12:00 UTC" in shown
    assert "pinball 0.1235, pinball.champion 0.2, pinball.naive 0.3, mae 0.4," in shown
    assert REASON in " ".join(shown.split())
    assert "not made by streamgru" in shown


def test_a_pipe_gets_the_whole_table_with_a_line_per_version(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = listing(monkeypatch, width=80, terminal=False)
    (row,) = [line for line in shown.splitlines() if " 12 " in line]
    assert REASON in row
    assert "0.1235" in row


def test_a_wide_terminal_gets_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "pinball.champion" in listing(monkeypatch, width=160, terminal=True)


@pytest.mark.parametrize("value", ["", "great", "nan", "inf", "1e400", "0,5", "[red]"])
def test_a_score_tag_that_is_not_a_number_is_shown_as_a_tag(value: str) -> None:
    tags = {"score.mae": value, "score.pinball": "0.5", "pinball": "theirs", "anything": "goes"}
    version = ModelVersion("m", "3", 0, source="somewhere", run_id=None)
    version.tags.update(tags)
    info = _info(version, {"champion": "3", "theirs": "2"})
    assert info.metrics == {"pinball": 0.5}
    assert info.tags == {"score.mae": value, "pinball": "theirs", "anything": "goes"}
    assert info.aliases == ("champion",)


def test_a_version_without_our_tags_is_foreign() -> None:
    foreign = ModelVersion("m", "3", 0, source=None, run_id="")
    foreign.tags.update({"stage": "prod", "score.mae": "good", "gateway": "x"})
    assert not _is_own(_info(foreign, {}))
    assert _info(foreign, {}).run_id is None
    own = ModelVersion("m", "4", 0)
    own.tags["validate_until"] = "banana"
    assert _is_own(_info(own, {}))
