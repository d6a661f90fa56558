"""The offset at which a forecaster resumes, from the group's offsets and the changelog."""

import pytest
from kafka.structs import OffsetAndMetadata

from pipeline.errors import OffsetsLost, StateError
from pipeline.forecaster.positions import (
    CommittedPosition,
    PartitionLog,
    Position,
    PositionRecord,
    lost_buffered_offsets,
    position_from_group,
    resume_position,
)
from pipeline.settings import Settings


def settings(start: str = "earliest") -> Settings:
    return Settings(forecaster={"start": start})


@pytest.mark.parametrize(("start", "position"), [("earliest", 10), ("latest", 90)])
def test_a_group_without_a_committed_offset_starts_as_the_setting_says(start: str, position: int) -> None:
    assert position_from_group(settings(start), PartitionLog(0, 10, 90, None), accept_loss=False) == Position(position)


@pytest.mark.parametrize("committed", [Position(10), Position(50), Position(90), Position(90, 10)])
def test_a_committed_offset_within_the_log_is_resumed_from(committed: Position) -> None:
    assert (
        position_from_group(
            settings("latest"), PartitionLog(0, 10, 90, CommittedPosition(committed)), accept_loss=False
        )
        == committed
    )


@pytest.mark.parametrize(("committed", "why"), [(9, "1 readings were deleted"), (91, "deleted and recreated")])
def test_a_committed_offset_outside_the_log_needs_accept_loss(committed: int, why: str) -> None:
    log = PartitionLog(3, 10, 90, CommittedPosition(Position(committed)))
    with pytest.raises(OffsetsLost, match=why) as raised:
        position_from_group(settings(), log, accept_loss=False)
    assert "partition 3" in str(raised.value)
    assert "--accept-loss" in str(raised.value)
    assert position_from_group(settings(), log, accept_loss=True) == Position(10)


def test_buffered_readings_deleted_by_retention_are_counted_and_logged_and_the_position_is_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = PartitionLog(3, 10, 90, CommittedPosition(Position(50, 7)))
    position = position_from_group(settings(), log, accept_loss=False)
    assert position == Position(50, 7)
    with caplog.at_level("ERROR"):
        assert lost_buffered_offsets(settings(), 3, position, log.start) == 3
    assert "partition 3: retention has deleted offsets 7 to 9 of readings" in caplog.text
    assert (
        lost_buffered_offsets(settings(), 3, Position(50, 10), log.start)
        == lost_buffered_offsets(settings(), 3, Position(50), 10)
        == 0
    )


@pytest.mark.parametrize("position", [Position(7), Position(7, 3), Position(0)])
def test_a_position_survives_a_commit_and_a_position_record(position: Position) -> None:
    assert CommittedPosition.of(position.to_commit()) == CommittedPosition(position)
    assert PositionRecord.decode(PositionRecord(position, "group in topic").encode()) == PositionRecord(
        position, "group in topic"
    )


@pytest.mark.parametrize("metadata", ["", "mine", "reached=", "reached=-9", "reached=2", "reached=9x"])
def test_metadata_of_another_program_is_ignored(metadata: str) -> None:
    assert CommittedPosition.of(OffsetAndMetadata(3, metadata, -1)) == CommittedPosition(Position(3), is_ours=False)


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
def test_an_invalid_position_record_is_refused(value: bytes | None) -> None:
    with pytest.raises(StateError, match="not a position"):
        PositionRecord.decode(value)


OURS = CommittedPosition(Position(50))
RESET = CommittedPosition(Position(50), is_ours=False)


@pytest.mark.parametrize(
    ("committed", "recorded", "resumed"),
    [
        (OURS, None, Position(50)),
        (OURS, Position(50), Position(50)),
        (OURS, Position(60, 55), Position(60, 55)),  # brokers lost the group's newest offset
        (OURS, Position(40), Position(50)),  # the changelog lost its newest record
        (OURS, Position(91), Position(50)),  # recorded in a longer log
        (RESET, Position(60), Position(50)),
        (None, None, Position(90)),
        (None, Position(60), Position(60)),  # the brokers deleted the group's offsets
        (CommittedPosition(Position(5)), Position(20), Position(20)),
    ],
)
def test_the_changelog_replaces_offsets_that_brokers_have_lost(
    committed: CommittedPosition | None, recorded: Position | None, resumed: Position
) -> None:
    log = PartitionLog(0, 10, 90, committed)
    assert resume_position(settings("latest"), log, recorded, accept_loss=False) == resumed
    assert log.floor <= resumed.next


def test_a_group_without_offsets_whose_readings_were_deleted_needs_accept_loss() -> None:
    log = PartitionLog(0, 10, 90, None)
    with pytest.raises(OffsetsLost, match="3 readings were deleted"):
        resume_position(settings("latest"), log, Position(7), accept_loss=False)
    assert resume_position(settings("latest"), log, Position(7), accept_loss=True) == Position(10)
