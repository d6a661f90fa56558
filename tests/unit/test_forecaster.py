"""What the forecaster's loop does around a failure, without a broker."""

import logging
from pathlib import Path
from typing import Any

import pytest

from pipeline.forecaster import FIRST_RETRY_S, LONGEST_RETRY_S, Options, StreamForecaster, retry_wait_s
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
