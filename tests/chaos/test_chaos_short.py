"""A chaos run of a minute and a half: a few faults of every kind, and a kill at every fault point."""

from pathlib import Path

import pytest

from tests.chaos.harness import Harness
from tests.chaos.plan import Size
from tests.chaos.report import shortfalls

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

SHORT = Size(
    readings=6_000,
    sensors=40,
    partitions=6,
    kills=10,
    stalls=1,
    broker_kills=1,
    broker_stalls=0,
    promotions=1,
    pause_s=0.5,
    settle_every=100,
    rate=100.0,
)


@pytest.mark.long(105)
def test_no_forecast_is_missing_duplicated_or_different_after_faults_of_every_kind(tmp_path: Path) -> None:
    record = Harness(tmp_path, SHORT, seed=1).run()
    assert shortfalls(record) == []
    assert record.wrong_transitions == []
    assert sum(record.transitions.values()) > 10 * SHORT.partitions, "the logs show every partition's lifecycle"
