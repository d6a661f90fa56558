"""Where a forecaster goes on, and which state records it believes."""

import pytest
from kafka.structs import OffsetAndMetadata

from pipeline.errors import OffsetsLost, StateError
from pipeline.forecaster.position import Committed, Noted, Position
from pipeline.forecaster.resume_point import Log, first_position, held_lost, settle_position
from pipeline.settings import Settings


def settings(start: str = "earliest") -> Settings:
    return Settings(forecaster={"start": start})


@pytest.mark.parametrize(("start", "position"), [("earliest", 10), ("latest", 90)])
def test_without_a_committed_offset_the_setting_decides(start: str, position: int) -> None:
    assert first_position(settings(start), Log(0, 10, 90, None), accept_loss=False) == Position(position)


@pytest.mark.parametrize("committed", [Position(10), Position(50), Position(90), Position(90, 10)])
def test_a_committed_offset_within_the_log_is_gone_on_from(committed: Position) -> None:
    assert first_position(settings("latest"), Log(0, 10, 90, Committed(committed)), accept_loss=False) == committed


@pytest.mark.parametrize(("committed", "why"), [(9, "1 readings were deleted"), (91, "made anew")])
def test_a_committed_offset_outside_the_log_needs_consent(committed: int, why: str) -> None:
    log = Log(3, 10, 90, Committed(Position(committed)))
    with pytest.raises(OffsetsLost, match=why) as raised:
        first_position(settings(), log, accept_loss=False)
    assert "partition 3" in str(raised.value)
    assert "--accept-loss" in str(raised.value)
    assert first_position(settings(), log, accept_loss=True) == Position(10)


def test_held_readings_that_retention_deleted_are_counted_and_said_and_the_rest_is_gone_on_with(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = Log(3, 10, 90, Committed(Position(50, 7)))
    position = first_position(settings(), log, accept_loss=False)
    assert position == Position(50, 7)
    with caplog.at_level("ERROR"):
        assert held_lost(settings(), 3, position, log.start) == 3
    assert "partition 3: retention has deleted offsets 7 to 9 of readings" in caplog.text
    assert held_lost(settings(), 3, Position(50, 10), log.start) == held_lost(settings(), 3, Position(50), 10) == 0


@pytest.mark.parametrize("position", [Position(7), Position(7, 3), Position(0)])
def test_a_position_is_committed_and_noted_and_read_back(position: Position) -> None:
    assert Committed.of(position.to_commit()) == Committed(position)
    assert Noted.decode(Noted(position, "group in topic").encode()) == Noted(position, "group in topic")


@pytest.mark.parametrize("metadata", ["", "mine", "reached=", "reached=-9", "reached=2", "reached=9x"])
def test_metadata_that_is_not_ours_says_nothing(metadata: str) -> None:
    assert Committed.of(OffsetAndMetadata(3, metadata, -1)) == Committed(Position(3), is_ours=False)


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"rubbish",
        b"{}",
        b'{"position": {"next": -1}, "owner": "ours"}',
        b'{"position": {"next": 3, "held_from": 4}, "owner": "ours"}',
        b'{"position": {"next": 3}}',
        b'{"position": {"next": "3"}, "owner": "ours"}',
    ],
)
def test_a_record_that_is_no_position_is_refused(value: bytes | None) -> None:
    with pytest.raises(StateError, match="not a position"):
        Noted.decode(value)


OURS = Committed(Position(50))
RESET = Committed(Position(50), is_ours=False)


@pytest.mark.parametrize(
    ("committed", "noted", "settled"),
    [
        (OURS, None, Position(50)),
        (OURS, Position(50), Position(50)),
        (OURS, Position(60, 55), Position(60, 55)),  # the brokers have lost an offset
        (OURS, Position(40), Position(50)),  # the newest of the changelog
        (OURS, Position(91), Position(50)),  # of a log that was longer
        (RESET, Position(60), Position(50)),
        (None, None, Position(90)),
        (None, Position(60), Position(60)),  # the group was forgotten
        (Committed(Position(5)), Position(20), Position(20)),
    ],
)
def test_the_changelog_tells_what_brokers_have_lost(
    committed: Committed | None, noted: Position | None, settled: Position
) -> None:
    log = Log(0, 10, 90, committed)
    assert settle_position(settings("latest"), log, noted, accept_loss=False) == settled
    assert log.floor <= settled.next


def test_a_group_that_was_forgotten_for_longer_than_readings_are_kept_needs_consent() -> None:
    log = Log(0, 10, 90, None)
    with pytest.raises(OffsetsLost, match="3 readings were deleted"):
        settle_position(settings("latest"), log, Position(7), accept_loss=False)
    assert settle_position(settings("latest"), log, Position(7), accept_loss=True) == Position(10)
