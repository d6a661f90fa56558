"""What group metadata tells a forecaster about its own past."""

from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from pipeline.forecaster.group import GenerationTracker, is_member


def metadata(generation: int, member: str = "me") -> SimpleNamespace:
    return SimpleNamespace(generation_id=generation, member_id=member)


def test_only_a_member_of_a_generation_is_a_member() -> None:
    assert is_member(metadata(0))
    assert not is_member(metadata(-1))
    assert not is_member(metadata(3, ""))


@pytest.mark.parametrize(
    ("seen", "unbroken"),
    [
        ([metadata(4)], True),  # whatever was before it, this process was not there
        ([metadata(4), metadata(4), metadata(5), metadata(6)], True),
        ([metadata(4), metadata(6)], False),  # generation 5 may have been a successor's
        ([metadata(4), metadata(5, "me again")], False),  # put out, and let in once more
        ([metadata(4), metadata(-1, ""), metadata(5, "me again")], False),
        ([metadata(4), metadata(-1, ""), metadata(5)], True),  # a rebalance under way, and through
    ],
)
def test_a_generation_that_may_have_passed_without_the_member_is_told(
    seen: Sequence[SimpleNamespace], unbroken: bool
) -> None:
    generations = GenerationTracker()
    *before, last = seen
    assert all(generations.is_continuous(one) for one in before)
    assert generations.is_continuous(last) is unbroken
    assert generations.is_continuous(last)  # it is told once
