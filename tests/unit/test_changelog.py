"""Where a forecaster goes on, and which state records it believes."""

import pytest

from pipeline.errors import OffsetsLost
from pipeline.forecaster.changelog import Log, first_position
from pipeline.settings import Settings


def settings(start: str = "earliest") -> Settings:
    return Settings(forecaster={"start": start})


@pytest.mark.parametrize(("start", "position"), [("earliest", 10), ("latest", 90)])
def test_without_a_committed_offset_the_setting_decides(start: str, position: int) -> None:
    assert first_position(settings(start), 0, Log(10, 90, None), accept_loss=False) == position


@pytest.mark.parametrize("committed", [10, 50, 90])
def test_a_committed_offset_within_the_log_is_gone_on_from(committed: int) -> None:
    assert first_position(settings("latest"), 0, Log(10, 90, committed), accept_loss=False) == committed


@pytest.mark.parametrize(("committed", "why"), [(9, "1 readings were deleted"), (91, "made anew")])
def test_a_committed_offset_outside_the_log_needs_consent(committed: int, why: str) -> None:
    log = Log(10, 90, committed)
    with pytest.raises(OffsetsLost, match=why) as raised:
        first_position(settings(), 3, log, accept_loss=False)
    assert "partition 3" in str(raised.value)
    assert "--accept-loss" in str(raised.value)
    assert first_position(settings(), 3, log, accept_loss=True) == 10
