"""The profile of the forecaster: its stages exist, and a stage's time is its own."""

import time

import pytest

from tests.benchmarks.stages import STAGES, Clock, find


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_a_function_in_this_tree(stage: str) -> None:
    assert [place for place in STAGES[stage] if find(place) is not None]


def burn(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_the_time_of_an_inner_stage_is_not_counted_for_the_outer_one() -> None:
    clock = Clock()
    inner = clock.wrap("inner", lambda: burn(0.05))

    def work() -> None:
        burn(0.02)
        inner()

    clock.wrap("outer", work)()
    assert clock.seconds["inner"] == pytest.approx(0.05, abs=0.01)
    assert clock.seconds["outer"] == pytest.approx(0.02, abs=0.01)
