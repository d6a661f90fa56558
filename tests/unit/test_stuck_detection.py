"""Checks of a forecaster find whether it is starting, serving, restoring, waiting or stuck."""

import pytest

from pipeline.forecaster.stuck_detection import ForecasterState, Heartbeat, StuckDetector, lag_of

LIMIT_S = 10.0
POLL_INTERVAL_S = 60.0


def heartbeat(
    position: int = 0, *, progressed: float = 0.0, polled: float | None = 0.0, restoring: bool = False
) -> Heartbeat:
    return Heartbeat(progressed, polled, None, {0: position}, restoring)


def new_detector() -> StuckDetector:
    return StuckDetector(LIMIT_S, POLL_INTERVAL_S)


def test_a_forecaster_before_its_first_poll_is_starting() -> None:
    assert new_detector().state(heartbeat(polled=None), {0: 5}, 100.0) is ForecasterState.STARTING


def test_an_idle_forecaster_is_serving_for_any_time() -> None:
    detector = new_detector()
    assert {detector.state(heartbeat(5, polled=now), {0: 5}, now) for now in (0.0, 50.0, 5_000.0)} == {
        ForecasterState.SERVING
    }


def test_one_check_that_finds_work_after_a_long_idle_time_is_not_stuck() -> None:
    """The reading has just arrived, and the forecaster was idle before."""
    detector = new_detector()
    assert detector.state(heartbeat(5, polled=990.0), {0: 5}, 990.0) is ForecasterState.SERVING
    assert detector.state(heartbeat(5, polled=1_000.0), {0: 6}, 1_000.0) is ForecasterState.SERVING
    assert detector.state(heartbeat(5, polled=1_009.0), {0: 6}, 1_009.0) is ForecasterState.SERVING
    assert detector.state(heartbeat(5, polled=1_010.0), {0: 6}, 1_010.0) is ForecasterState.STUCK


def test_progress_between_checks_restarts_the_count() -> None:
    detector = new_detector()
    assert detector.state(heartbeat(5, polled=0.0), {0: 6}, 0.0) is ForecasterState.SERVING
    assert detector.state(heartbeat(6, polled=8.0), {0: 6}, 8.0) is ForecasterState.SERVING
    assert detector.state(heartbeat(6, polled=12.0), {0: 7}, 12.0) is ForecasterState.SERVING
    assert detector.state(heartbeat(6, polled=21.0), {0: 7}, 21.0) is ForecasterState.SERVING


@pytest.mark.parametrize("restoring", [False, True])
def test_a_forecaster_that_progresses_is_not_stuck_at_any_lag(restoring: bool) -> None:
    detector = new_detector()
    expected = ForecasterState.RESTORING if restoring else ForecasterState.SERVING
    for now in (0.0, 8.0, 16.0, 24.0, 32.0, 40.0):
        assert (
            detector.state(heartbeat(5, progressed=now - 1, polled=now, restoring=restoring), {0: 10**6}, now)
            is expected
        )
    assert (
        detector.state(heartbeat(5, progressed=39.0, polled=49.0, restoring=restoring), {0: 10**6}, 49.0)
        is ForecasterState.STUCK
    )


def test_a_process_that_was_suspended_gets_time_to_progress() -> None:
    detector = new_detector()
    assert detector.state(heartbeat(5, polled=0.0), {0: 6}, 0.0) is ForecasterState.SERVING
    assert (
        detector.state(heartbeat(5, polled=0.0), {0: 9}, 300.0) is ForecasterState.SERVING
    )  # SIGCONT, before the loop's first poll
    assert detector.state(heartbeat(9, polled=302.0), {0: 9}, 302.0) is ForecasterState.SERVING
    assert detector.state(heartbeat(9, polled=302.0), {0: 10}, 304.0) is ForecasterState.SERVING
    assert detector.state(heartbeat(9, polled=312.0), {0: 10}, 312.0) is ForecasterState.SERVING
    assert detector.state(heartbeat(9, polled=314.0), {0: 10}, 314.0) is ForecasterState.STUCK


def test_a_forecaster_without_a_reachable_broker_is_waiting() -> None:
    detector = new_detector()
    assert detector.state(heartbeat(5), {0: 6}, 0.0) is ForecasterState.SERVING
    assert detector.state(heartbeat(5), None, 500.0) is ForecasterState.WAITING
    assert detector.state(heartbeat(5, polled=501.0), {0: 6}, 501.0) is ForecasterState.SERVING


def test_a_loop_that_waited_for_a_broker_during_a_commit_gets_time_to_poll() -> None:
    detector = new_detector()
    for now in range(0, 501, 2):
        detector.state(heartbeat(5, polled=0.0), None, float(now))
    assert detector.state(heartbeat(5, polled=0.0), {0: 5}, 502.0) is ForecasterState.SERVING
    for now in range(504, 560, 2):
        assert detector.state(heartbeat(5, polled=0.0), {0: 5}, float(now)) is ForecasterState.SERVING
    assert detector.state(heartbeat(5, polled=0.0), {0: 5}, 561.0) is ForecasterState.STUCK


def test_a_loop_that_does_not_poll_is_stuck_even_without_work() -> None:
    detector = new_detector()
    assert detector.state(heartbeat(5, polled=0.0), {0: 5}, POLL_INTERVAL_S - 2) is ForecasterState.SERVING
    assert detector.state(heartbeat(5, polled=0.0), {0: 5}, POLL_INTERVAL_S + 1) is ForecasterState.STUCK


def test_the_lag_covers_only_partitions_of_this_forecaster() -> None:
    assert lag_of(Heartbeat(positions={3: 10, 1: 7, 5: 1}), {0: 99, 1: 7, 3: 12}) == {1: 0, 3: 2}
