"""A warm-up that ended early hands nothing over, whatever ended it."""

from typing import Any

import pytest

from pipeline.errors import BrokerUnreachable
from pipeline.forecaster import rewarm
from pipeline.forecaster.champion import Candidate
from pipeline.forecaster.rewarm import Rewarm
from pipeline.settings import Settings


class Reader:
    def close(self) -> None:
        pass


@pytest.mark.parametrize("error", [BrokerUnreachable("gone"), KeyError("sensor"), MemoryError(), RuntimeError("torch")])
def test_a_failed_warm_up_is_never_handed_over(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Rewarm, order: Any, replayer: Any) -> None:
        raise error

    def nothing(*args: Any, **options: Any) -> Any:
        return Reader()

    for name in ("make_consumer", "read_fast", "Replayer", "Serving"):
        monkeypatch.setattr(rewarm, name, nothing)
    monkeypatch.setattr(Rewarm, "_obey", fail)
    forecaster: Any = None
    warming = Rewarm(Settings(), Candidate(2, forecaster))
    warming.take(0, {}, 10)
    assert warming.finish() is None
    assert warming.failure is error
