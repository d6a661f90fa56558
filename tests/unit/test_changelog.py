"""Where a forecaster goes on, and which state records it believes."""

import pytest
from kafka.structs import OffsetAndMetadata

from pipeline.errors import OffsetsLost
from pipeline.forecaster.changelog import Log, first_position, held_lost
from pipeline.forecaster.position import Position
from pipeline.settings import Settings


def settings(start: str = "earliest") -> Settings:
    return Settings(forecaster={"start": start})


@pytest.mark.parametrize(("start", "position"), [("earliest", 10), ("latest", 90)])
def test_without_a_committed_offset_the_setting_decides(start: str, position: int) -> None:
    assert first_position(settings(start), 0, Log(10, 90, None), accept_loss=False) == Position(position)


@pytest.mark.parametrize("committed", [Position(10), Position(50), Position(90), Position(90, 10)])
def test_a_committed_offset_within_the_log_is_gone_on_from(committed: Position) -> None:
    assert first_position(settings("latest"), 0, Log(10, 90, committed), accept_loss=False) == committed


@pytest.mark.parametrize(("committed", "why"), [(9, "1 readings were deleted"), (91, "made anew")])
def test_a_committed_offset_outside_the_log_needs_consent(committed: int, why: str) -> None:
    log = Log(10, 90, Position(committed))
    with pytest.raises(OffsetsLost, match=why) as raised:
        first_position(settings(), 3, log, accept_loss=False)
    assert "partition 3" in str(raised.value)
    assert "--accept-loss" in str(raised.value)
    assert first_position(settings(), 3, log, accept_loss=True) == Position(10)


def test_held_readings_that_retention_deleted_are_counted_and_said_and_the_rest_is_gone_on_with(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = Log(10, 90, Position(50, 7))
    position = first_position(settings(), 3, log, accept_loss=False)
    assert position == Position(50, 7)
    with caplog.at_level("ERROR"):
        assert held_lost(settings(), 3, position, log.start) == 3
    assert "partition 3: retention has deleted offsets 7 to 9 of readings" in caplog.text
    assert held_lost(settings(), 3, Position(50, 10), log.start) == held_lost(settings(), 3, Position(50), 10) == 0


@pytest.mark.parametrize("position", [Position(7), Position(7, 3)])
def test_a_position_is_committed_and_read_back(position: Position) -> None:
    assert Position.of(position.to_commit()) == position


def test_while_nothing_is_held_what_is_committed_is_an_offset_and_nothing_else() -> None:
    assert Position(7).to_commit() == OffsetAndMetadata(7, "", -1)


@pytest.mark.parametrize("metadata", ["", "mine", "reached=", "reached=-9", "reached=2", "reached=9x"])
def test_metadata_that_is_not_ours_says_nothing(metadata: str) -> None:
    assert Position.of(OffsetAndMetadata(3, metadata, -1)) == Position(3)
