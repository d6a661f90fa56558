"""What changes under a running forecaster: it waits or ends by a stated policy, and says so."""

import pytest
from kafka.admin import NewPartitions

from pipeline.errors import TopicError
from pipeline.forecaster.loop import StreamForecaster
from pipeline.kafka.clients import make_admin
from pipeline.kafka.topics import ensure_topics
from pipeline.settings import Settings
from tests.conftest import SettingsFactory
from tests.integration.stream_rig import FolderChampion, publish, rounds, running
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

SENSORS = [f"sensor-{number}" for number in range(5)]


@pytest.fixture
def settings(broker: Settings, fresh_settings: SettingsFactory) -> Settings:
    made = fresh_settings(features=["a"], targets=["a"], horizon_steps=1)
    ensure_topics(made)
    return made


@pytest.fixture
def champion(settings: Settings, champion: FolderChampion) -> FolderChampion:
    publish(settings, rounds(settings, SENSORS, range(3)))
    return champion


def has_ended(forecaster: StreamForecaster) -> bool:
    """Whether it ended by itself, which it does once its lookout has a reason."""
    return forecaster._lookout is not None and forecaster._lookout._closed.is_set()


@pytest.mark.parametrize("which", ["readings", "forecasts", "state"])
def test_a_topic_deleted_under_a_forecaster_ends_it(settings: Settings, champion: FolderChampion, which: str) -> None:
    name = getattr(settings.kafka.topics, which)
    with pytest.raises(TopicError, match=f"{name}|topic does not exist"), running(settings, champion) as forecaster:
        wait_until(lambda: forecaster.counters.forecasts == 3 * len(SENSORS), 30, "the readings were forecast")
        with make_admin(settings) as admin:
            admin.delete_topics([name])
        wait_until(lambda: has_ended(forecaster), 40, "it ended")


def test_partitions_added_under_a_forecaster_end_it(settings: Settings, champion: FolderChampion) -> None:
    name = settings.kafka.topics.readings
    with (
        pytest.raises(TopicError, match=f"{name}: has 3 partitions, and the settings say 2"),
        running(settings, champion) as forecaster,
    ):
        wait_until(lambda: forecaster.counters.forecasts == 3 * len(SENSORS), 30, "the readings were forecast")
        with make_admin(settings) as admin:
            admin.create_partitions({name: NewPartitions(3)})
        wait_until(lambda: has_ended(forecaster), 40, "it ended")
