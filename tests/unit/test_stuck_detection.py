"""What a look tells of a forecaster: idle, behind, stuck, or waiting."""

import pytest

from pipeline.forecaster.stuck_detection import ForecasterState, Heartbeat, StuckDetector, lag_of

LIMIT_S = 10.0
POLL_INTERVAL_S = 60.0


def heartbeat(
    position: int = 0, *, progressed: float = 0.0, polled: float | None = 0.0, restoring: bool = False
) -> Heartbeat:
    return Heartbeat(progressed, polled, None, {0: position}, restoring)


def judge() -> StuckDetector:
    return StuckDetector(LIMIT_S, POLL_INTERVAL_S)


def test_nothing_polled_yet_is_starting() -> None:
    assert judge().state(heartbeat(polled=None), {0: 5}, 100.0) is ForecasterState.STARTING


def test_nothing_to_do_is_serving_for_ever() -> None:
    looking = judge()
    assert {looking.state(heartbeat(5, polled=now), {0: 5}, now) for now in (0.0, 50.0, 5_000.0)} == {
        ForecasterState.SERVING
    }


def test_one_look_that_finds_work_after_a_long_silence_is_not_enough() -> None:
    """The reading has only just arrived: the forecaster had nothing to do before."""
    looking = judge()
    assert looking.state(heartbeat(5, polled=990.0), {0: 5}, 990.0) is ForecasterState.SERVING
    assert looking.state(heartbeat(5, polled=1_000.0), {0: 6}, 1_000.0) is ForecasterState.SERVING
    assert looking.state(heartbeat(5, polled=1_009.0), {0: 6}, 1_009.0) is ForecasterState.SERVING
    assert looking.state(heartbeat(5, polled=1_010.0), {0: 6}, 1_010.0) is ForecasterState.STUCK


def test_work_that_was_done_in_between_begins_the_count_anew() -> None:
    looking = judge()
    assert looking.state(heartbeat(5, polled=0.0), {0: 6}, 0.0) is ForecasterState.SERVING
    assert looking.state(heartbeat(6, polled=8.0), {0: 6}, 8.0) is ForecasterState.SERVING
    assert looking.state(heartbeat(6, polled=12.0), {0: 7}, 12.0) is ForecasterState.SERVING
    assert looking.state(heartbeat(6, polled=21.0), {0: 7}, 21.0) is ForecasterState.SERVING


@pytest.mark.parametrize("restoring", [False, True])
def test_who_gets_on_is_not_stuck_however_far_behind(restoring: bool) -> None:
    looking = judge()
    expected = ForecasterState.RESTORING if restoring else ForecasterState.SERVING
    for now in (0.0, 8.0, 16.0, 24.0, 32.0, 40.0):
        assert (
            looking.state(heartbeat(5, progressed=now - 1, polled=now, restoring=restoring), {0: 10**6}, now)
            is expected
        )
    assert (
        looking.state(heartbeat(5, progressed=39.0, polled=49.0, restoring=restoring), {0: 10**6}, 49.0)
        is ForecasterState.STUCK
    )


def test_a_process_that_was_stopped_gets_time_to_go_on() -> None:
    looking = judge()
    assert looking.state(heartbeat(5, polled=0.0), {0: 6}, 0.0) is ForecasterState.SERVING
    assert (
        looking.state(heartbeat(5, polled=0.0), {0: 9}, 300.0) is ForecasterState.SERVING
    )  # SIGCONT, before the loop's first poll
    assert looking.state(heartbeat(9, polled=302.0), {0: 9}, 302.0) is ForecasterState.SERVING
    assert looking.state(heartbeat(9, polled=302.0), {0: 10}, 304.0) is ForecasterState.SERVING
    assert looking.state(heartbeat(9, polled=312.0), {0: 10}, 312.0) is ForecasterState.SERVING
    assert looking.state(heartbeat(9, polled=314.0), {0: 10}, 314.0) is ForecasterState.STUCK


def test_a_broker_that_is_away_is_waited_for() -> None:
    looking = judge()
    assert looking.state(heartbeat(5), {0: 6}, 0.0) is ForecasterState.SERVING
    assert looking.state(heartbeat(5), None, 500.0) is ForecasterState.WAITING
    assert looking.state(heartbeat(5, polled=501.0), {0: 6}, 501.0) is ForecasterState.SERVING


def test_a_loop_that_waited_for_a_broker_within_a_commit_gets_time_to_poll() -> None:
    looking = judge()
    for now in range(0, 501, 2):
        looking.state(heartbeat(5, polled=0.0), None, float(now))
    assert looking.state(heartbeat(5, polled=0.0), {0: 5}, 502.0) is ForecasterState.SERVING
    for now in range(504, 560, 2):
        assert looking.state(heartbeat(5, polled=0.0), {0: 5}, float(now)) is ForecasterState.SERVING
    assert looking.state(heartbeat(5, polled=0.0), {0: 5}, 561.0) is ForecasterState.STUCK


def test_a_loop_that_does_not_turn_is_stuck_whatever_there_is_to_do() -> None:
    looking = judge()
    assert looking.state(heartbeat(5, polled=0.0), {0: 5}, POLL_INTERVAL_S - 2) is ForecasterState.SERVING
    assert looking.state(heartbeat(5, polled=0.0), {0: 5}, POLL_INTERVAL_S + 1) is ForecasterState.STUCK


def test_the_lag_is_of_what_is_served_here() -> None:
    assert lag_of(Heartbeat(positions={3: 10, 1: 7, 5: 1}), {0: 99, 1: 7, 3: 12}) == {1: 0, 3: 2}
