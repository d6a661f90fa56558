"""``walk`` finds transitions in a chaos run's log that the lifecycle does not allow."""

from tests.chaos.transitions import walk

START = "2026-01-02 03:04:05,678 {process} streamgru.partitions: partition {number}: {transition}"


def log(*lines: tuple[int, int, str]) -> str:
    formatted = [START.format(process=process, number=number, transition=each) for process, number, each in lines]
    return "\n".join(["2026-01-02 03:04:05,000 7 streamgru.forecaster: stopped", *formatted, "2026-01-02 torn"])


def test_allowed_transitions_are_counted() -> None:
    life = [(7, 0, "ASSIGNED -> RESTORING"), (7, 0, "RESTORING -> RUNNING"), (7, 1, "ASSIGNED -> RESTORING")]
    assert walk(log(*life)) == ({"ASSIGNED -> RESTORING": 2, "RESTORING -> RUNNING": 1}, [])


def test_a_transition_that_the_table_lacks_is_found() -> None:
    life = [(7, 0, "ASSIGNED -> RESTORING"), (7, 0, "RESTORING -> RUNNING"), (7, 0, "RUNNING -> WRITING")]
    assert walk(log(*life))[1] == ["partition 0: RUNNING -> WRITING"]


def test_a_transition_that_does_not_begin_in_the_partitions_state_is_found() -> None:
    life = [(7, 0, "ASSIGNED -> RESTORING"), (7, 0, "WRITING -> RUNNING")]
    assert walk(log(*life))[1] == ["partition 0: WRITING -> RUNNING"]


def test_a_restarted_forecaster_begins_with_assigned_partitions() -> None:
    life = [(7, 0, "ASSIGNED -> RESTORING"), (8, 0, "ASSIGNED -> RESTORING"), (9, 0, "RUNNING -> LOST")]
    assert walk(log(*life))[1] == ["partition 0: RUNNING -> LOST"]
