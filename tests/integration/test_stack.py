"""The local stack, on real servers."""
import pytest
pytestmark = pytest.mark.integration
def test_broker(broker, fresh_settings):
    s = fresh_settings(kafka={"partitions": 3})
    assert s.kafka.partitions == 3 and s.kafka.bootstrap_servers == broker.kafka.bootstrap_servers
