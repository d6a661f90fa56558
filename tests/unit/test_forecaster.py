"""What the forecaster's loop does around a failure, without a broker."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.errors import BrokerUnreachable
from pipeline.forecaster import loop as module
from pipeline.forecaster.champion import Candidate
from pipeline.forecaster.loop import FIRST_RETRY_S, LONGEST_RETRY_S, Options, StreamForecaster, retry_wait_s
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


def test_a_stats_file_that_cannot_be_written_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    unused: Any = None
    stats = tmp_path / "missing" / "stats.json"
    forecaster = StreamForecaster(Settings(), unused, unused, Options(stats=stats))
    with caplog.at_level(logging.WARNING, "streamgru.forecaster"):
        forecaster._report()
        forecaster._report()
        assert [str(stats) in message for message in caplog.messages] == [True]
        stats.parent.mkdir()
        forecaster._report()
    assert stats.is_file()
    assert len(caplog.messages) == 1


def test_what_was_opened_before_connecting_failed_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []

    class Reader:
        def close(self) -> None:
            closed.append("reader")

    def unreachable(settings: Settings) -> None:
        raise BrokerUnreachable("no Kafka broker answers")

    def same(what: Any, *args: Any, **options: Any) -> Any:
        return what

    class Instance:
        exclusive = None

    class Source:
        def remembered(self) -> Candidate:
            return Candidate(1, unused)

        def remember(self, version: int) -> None:
            pass

    class Watcher:
        def __init__(self, *args: Any) -> None:
            pass

        def start(self, champion: Candidate) -> None:
            pass

        def close(self) -> None:
            closed.append("watcher")

    unused: Any = None
    source: Any = Source()
    instance: Any = Instance()
    monkeypatch.setattr(module, "check_topics", same)
    monkeypatch.setattr(module, "find_topic_id", same)
    monkeypatch.setattr(module, "ChampionWatcher", Watcher)
    monkeypatch.setattr(module, "Serving", lambda *args: SimpleNamespace(bytes_per_reading=1_000))
    monkeypatch.setattr(module, "MicroBatchMaker", lambda *args: None)
    monkeypatch.setattr(module, "make_consumer", lambda *args, **options: Reader())
    monkeypatch.setattr(module, "read_fast", same)
    monkeypatch.setattr(module, "make_admin", unreachable)
    with pytest.raises(BrokerUnreachable):
        StreamForecaster(Settings(), source, instance).run()
    assert closed == ["reader", "watcher"]


def test_the_stream_measures_no_interval_by_a_clock_that_jumps() -> None:
    for source in Path(module.__file__).parent.glob("*.py"):
        assert "time.time()" not in source.read_text(encoding="utf-8"), source.name
        assert "default_factory=time.time)" not in source.read_text(encoding="utf-8"), source.name
