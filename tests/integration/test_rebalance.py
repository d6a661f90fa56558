"""Rebalances during restores and revocations, and forecasters without partitions."""

import threading

import pytest

from pipeline.kafka.topics import ensure_topics
from pipeline.settings import Settings
from tests.conftest import SettingsFactory
from tests.integration.stream_rig import (
    FolderChampion,
    assert_same,
    expected_forecasts,
    publish,
    rounds,
    running,
    session_of,
    small_forecaster,
    wait_for_forecasts,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

SENSORS = [f"sensor-{number}" for number in range(10)]
POLL_INTERVAL_S = 7.0


@pytest.fixture(params=[False, True], ids=["dynamic", "static"])
def settings(broker: Settings, fresh_settings: SettingsFactory, request: pytest.FixtureRequest) -> Settings:
    made = fresh_settings(
        features=["a"],
        targets=["a"],
        horizon_steps=1,
        forecaster={
            "poll_alias_s": 0.2,
            "static_membership": request.param,
            "transaction_timeout_s": 6.5,
            "poll_interval_s": POLL_INTERVAL_S,
        },
    )
    ensure_topics(made)
    return made


class Blocker:
    """Blocks a forecaster once, at a point of its loop."""

    def __init__(self, point: str) -> None:
        self._point = point
        self.is_blocked = threading.Event()
        self.release = threading.Event()

    def reached(self, point: str) -> None:
        if point == self._point and not self.is_blocked.is_set():
            self.is_blocked.set()
            assert self.release.wait(60)


def test_a_forecaster_without_partitions_waits_and_takes_over_later(
    settings: Settings, champion: FolderChampion
) -> None:
    count = publish(settings, rounds(settings, SENSORS, range(5)))
    with running(settings, champion, "last") as last:
        wait_until(lambda: last.counters.forecasts == count, 60, "the last processed all readings alone")
        with running(settings, champion, "first") as first, running(settings, champion, "second") as second:
            members = (first, second, last)

            def shares() -> list[int]:
                return sorted(
                    len(session_of(member).partitions.positions) for member in members if member._loop is not None
                )

            wait_until(lambda: shares() == [0, 1, 1], 60, "two forecasters have one partition each")
            count += publish(settings, rounds(settings, SENSORS, range(5, 10)))
            wait_for_forecasts(settings, count)
            monitors = [member._monitor for member in members]
            wait_until(lambda: {one.state for one in monitors if one} == {"serving"}, 30, "all count as serving")
        count += publish(settings, rounds(settings, SENSORS, range(10, 15)))
        found = wait_for_forecasts(settings, count)
    assert_same(found, expected_forecasts(settings, small_forecaster(settings)))


def test_partitions_revoked_during_their_restore_lose_and_repeat_no_forecast(
    settings: Settings, champion: FolderChampion
) -> None:
    count = publish(settings, rounds(settings, SENSORS, range(5)))
    with running(settings, champion, "before") as before:
        wait_until(lambda: before.counters.forecasts == count, 60, "there are states to restore")
    blocker = Blocker("restoring")
    with running(settings, champion, "first", reached=blocker.reached):
        assert blocker.is_blocked.wait(60)
        with running(settings, champion, "second") as second:
            # The group waits for the next poll of the first, which is in the middle of its restore then.
            wait_until(lambda: second._loop is not None, 30, "the second joins")
            blocker.release.set()
            wait_until(lambda: second.counters.restored_sensors > 0, 60, "the second has a partition")
            count += publish(settings, rounds(settings, SENSORS, range(5, 10)))
            found = wait_for_forecasts(settings, count)
    assert_same(found, expected_forecasts(settings, small_forecaster(settings)))


def test_a_forecaster_whose_revocation_outlasts_the_poll_interval_joins_again(
    settings: Settings, champion: FolderChampion
) -> None:
    """The group drops the slow forecaster, the quick one gets all partitions, and the slow one rejoins."""
    count = publish(settings, rounds(settings, SENSORS, range(5)))
    blocker = Blocker("revoked")
    with running(settings, champion, "slow", reached=blocker.reached) as slow:
        wait_until(lambda: slow.counters.forecasts == count, 60, "the slow one forecast all readings")
        with running(settings, champion, "quick") as quick:
            assert blocker.is_blocked.wait(60)
            count += publish(settings, rounds(settings, SENSORS, range(5, 10)))
            wait_until(lambda: len(session_of(quick).partitions.positions) == 2, 60, "the quick one has all partitions")
            wait_for_forecasts(settings, count)
            blocker.release.set()
            count += publish(settings, rounds(settings, SENSORS, range(10, 15)))
            found = wait_for_forecasts(settings, count)
    assert_same(found, expected_forecasts(settings, small_forecaster(settings)))
