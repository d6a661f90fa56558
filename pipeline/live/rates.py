"""Readings, forecasts and delays per step of time: a series of the last minutes, and rates of the last seconds."""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from numpy.typing import ArrayLike

from pipeline.live.delays import DelayCounts

STEP_S: Final = 5
STEPS: Final = 120  # ten minutes
_RATE_STEPS: Final = 2  # finished steps that a rate covers: ten seconds
_DELAY_STEPS: Final = 12  # steps that the present delays cover: a minute


@dataclass
class RateStep:
    """The counts of one step."""

    begin_s: float
    readings: int = 0
    forecasts: int = 0
    delays: DelayCounts = field(default_factory=DelayCounts)
    lag: int | None = None  # at the end of the step


class RateSeries:
    """The counts of the last ``STEPS`` steps. Not thread-safe."""

    def __init__(self) -> None:
        self._steps: deque[RateStep] = deque(maxlen=STEPS + 1)

    def count(
        self, now_s: float, *, readings: int = 0, forecasts: int = 0, delays_ms: ArrayLike = (), lag: int | None = None
    ) -> None:
        """Add to the present step."""
        step = self._present(now_s)
        step.readings += readings
        step.forecasts += forecasts
        step.delays.add(delays_ms)
        if lag is not None:
            step.lag = lag

    def finished(self, now_s: float) -> list[RateStep]:
        """The finished steps, oldest first, without gaps from the first count on."""
        self._present(now_s)
        return list(self._steps)[:-1]

    def rates(self, now_s: float) -> tuple[float, float]:
        """Readings and forecasts a second in the last finished steps."""
        steps = self.finished(now_s)[-_RATE_STEPS:]
        seconds = max(1, len(steps)) * STEP_S
        return sum(step.readings for step in steps) / seconds, sum(step.forecasts for step in steps) / seconds

    def delays(self, now_s: float) -> DelayCounts:
        """The delays of the last minute."""
        self._present(now_s)
        total = DelayCounts()
        for step in list(self._steps)[-_DELAY_STEPS:]:
            total += step.delays
        return total

    def _present(self, now_s: float) -> RateStep:
        begin = now_s // STEP_S * STEP_S
        ahead = begin - self._steps[-1].begin_s if self._steps else 0
        # After a clock change; threads that count at the same time differ by one step.
        if ahead > STEP_S * STEPS or ahead < -STEP_S:
            self._steps.clear()
        if not self._steps:
            self._steps.append(RateStep(begin))
        while self._steps[-1].begin_s < begin:
            last = self._steps[-1]
            self._steps.append(RateStep(last.begin_s + STEP_S, lag=last.lag))
        return self._steps[-1]
