"""A failed warm-up returns no model, for any error."""

from typing import Any

import pytest

from pipeline.errors import BrokerUnreachable
from pipeline.forecaster import model_swap
from pipeline.forecaster.champion import Candidate
from pipeline.forecaster.model_swap import WarmUp
from pipeline.settings import Settings


class Reader:
    def close(self) -> None:
        pass


@pytest.mark.parametrize("error", [BrokerUnreachable("gone"), KeyError("sensor"), MemoryError(), RuntimeError("torch")])
def test_a_failed_warm_up_returns_no_model_and_keeps_its_error(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: WarmUp, *arguments: Any) -> None:
        raise error

    def make_reader(*args: Any, **options: Any) -> Any:
        return Reader()

    for name in ("make_consumer", "read_fast", "StateRebuilder", "ServedModel"):
        monkeypatch.setattr(model_swap, name, make_reader)
    monkeypatch.setattr(WarmUp, "_rebuild", fail)
    forecaster: Any = None
    warming = WarmUp(Settings(), Candidate(2, forecaster))
    warming.add_partition(0, {}, 10)
    assert warming.finish() is None
    assert warming.failure is error
