"""The plan of a chaos run depends on its seed and size alone, and contains every fault that the size demands."""

from collections import Counter

import pytest

from tests.chaos.gauge import POINTS
from tests.chaos.plan import Size, draw


def test_a_seed_gives_the_same_plan_and_another_seed_another() -> None:
    assert draw(Size(), 1) == draw(Size(), 1)
    assert draw(Size(), 1) != draw(Size(), 2)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("size", [Size(), Size(kills=10, stalls=1, broker_kills=1, broker_stalls=0, promotions=1)])
def test_every_fault_of_the_size_is_planned_at_a_time_when_it_can_happen(size: Size, seed: int) -> None:
    plan = draw(size, seed)
    counts = Counter(fault.kind for fault in plan)
    assert counts["kill"] + counts["promotion"] >= size.kills  # each promotion comes with a kill
    assert counts["stall"] == size.stalls
    assert counts["broker kill"] == size.broker_kills
    assert counts["broker stall"] == size.broker_stalls
    assert counts["promotion"] == size.promotions
    assert {fault.point for fault in plan if fault.kind == "kill"} >= {*POINTS} - {"swapping"}
    forecasters = 1
    most = 1
    for fault in plan:
        forecasters = fault.count or forecasters
        most = max(most, forecasters)
        assert fault.point != "revoked" or forecasters > 1
    assert (most, forecasters) == (3, 1)
