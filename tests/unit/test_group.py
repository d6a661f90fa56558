"""Group metadata shows a forecaster whether it missed a generation of its group."""

from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from pipeline.kafka.rebalances import GenerationTracker, is_member


def metadata(generation: int, member: str = "me") -> SimpleNamespace:
    return SimpleNamespace(generation_id=generation, member_id=member)


def test_metadata_without_a_generation_or_a_member_id_is_of_a_non_member() -> None:
    assert is_member(metadata(0))
    assert not is_member(metadata(-1))
    assert not is_member(metadata(3, ""))


@pytest.mark.parametrize(
    ("seen", "continuous"),
    [
        ([metadata(4)], True),  # the first generation that this process sees
        ([metadata(4), metadata(4), metadata(5), metadata(6)], True),
        ([metadata(4), metadata(6)], False),  # in generation 5 another member may have owned the partitions
        ([metadata(4), metadata(5, "me again")], False),  # removed from the group, and joined again
        ([metadata(4), metadata(-1, ""), metadata(5, "me again")], False),
        ([metadata(4), metadata(-1, ""), metadata(5)], True),  # during a rebalance, and after it
    ],
)
def test_a_generation_that_the_member_may_have_missed_is_reported_once(
    seen: Sequence[SimpleNamespace], continuous: bool
) -> None:
    generations = GenerationTracker()
    *before, last = seen
    assert all(generations.is_continuous(one) for one in before)
    assert generations.is_continuous(last) is continuous
    assert generations.is_continuous(last)  # reported once
