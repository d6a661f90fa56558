"""The stepper: forecasts from states and readings, with the same bits however the stream is cut.

Each sensor's new readings become steps by the gap rule (``model.step_plan``), and the engine takes them
(``model.engine``).

Letters: B sensors, n readings, F features, K targets, Q quantiles, h horizon steps, E experts, m outlooks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config import NO_ADAPTATION, Adaptation
from .engine import Engine
from .forecaster import Forecaster
from .normaliser import Floats
from .outlooks import NO_ISSUE_US, Arrivals, StepOutlooks, step_outlooks, store_outlooks
from .state import States
from .step_kernel import Readings
from .step_plan import StepPlan
from .unit_change import Followed

Indexes = NDArray[np.int64]


@dataclass(frozen=True)
class Forecasts:
    """A forecast for each reading, in the order of the readings."""

    quantiles: Floats  # (n, K, Q, h) in the sensor's unit
    scale: Floats  # (n, K) the normaliser's scale after the reading; 0 while the sensor has been constant
    origin: Indexes  # (n,) offset of the first reading stepped into the forecast's state
    steps: Indexes  # (n,) steps of that state
    warm: NDArray[np.bool_]  # (n,) whether these reach the model's warm-up length
    weights: Floats  # (n, K, E) of the experts in the mixture; E is 0 if adaptation is off
    limits: Floats  # (n, K, 2) least and largest possible value in the sensor's unit; (n, 0, 2) without bounds
    # By feature, of the state after the reading (`model.unit_change`); F is 0 without adaptation and calibration.
    unit_outcome: NDArray[np.int8]  # (n, F) `model.unit_kernel.COUNTED` to `GAVE_UP`
    unit_factor: Floats  # (n, F) 0 where there is no map
    unit_offset: Floats  # (n, F)
    outlook_issued_us: Indexes  # (n,) of the outlook behind each forecast; ``outlooks.NO_ISSUE_US`` for none
    outlook_verdict: NDArray[np.int8]  # (m,) ``outlooks.ACCEPTED``, ``OUTDATED`` or ``WITHOUT_STATE``, by arrival


class Stepper:
    """Steps the states of one model's sensors. Several threads may use it, each for states of its own.

    Args:
        forecaster: on the CPU; its weights must not change afterwards.
        adaptation: of its forecasts.
        whole: whether forecasts of counts are rounded to whole numbers. A comparison of two implementations does not
            round, because rounding can turn a difference in the last bits into a difference of 1.
    """

    def __init__(self, forecaster: Forecaster, adaptation: Adaptation = NO_ADAPTATION, *, whole: bool = True) -> None:
        self.forecaster = forecaster.eval()
        self.config = forecaster.config
        self.adaptation = adaptation
        self._engine = Engine(forecaster, adaptation, whole=whole)
        self.dtype = self._engine.dtype
        self._known_ahead = forecaster.ahead_inputs()
        self._anchor_spacing = adaptation.anchor_spacing

    def step(
        self,
        states: States,
        sensors: Sequence[str],
        slots: Indexes,
        timestamp_us: Indexes,
        values: Floats,
        offsets: Indexes,
        may_anchor: NDArray[np.bool_] | None = None,
        arrivals: Arrivals | None = None,
    ) -> Forecasts:
        """Forecasts after each of n accepted readings. Steps ``states`` in place; outlooks may come without readings.

        Args:
            states: (B,) of ``state_dtype``, contiguous; sensors: their B ids.
            slots: (n,) index in ``states`` for each reading. Sensors may interleave. Each sensor's readings are in
                order of time, and later than its state's last reading.
            timestamp_us: (n,); values: (n, F), NaN where missing; offsets: (n,).
            may_anchor: (n,) whether a rebuild may begin with each reading (``model.reorder_buffer``); by default with
                any.
            arrivals: outlooks that come between the readings, for a model with outlooks.

        Raises:
            ValueError: the arrays have different lengths, a slot is not an index of ``states``, or the states or
                values belong to a model of another shape.
        """
        n = len(slots)
        if not n == len(timestamp_us) == len(values) == len(offsets) or len(sensors) != len(states):
            raise ValueError(
                f"{n} slots, {len(timestamp_us)} times, {len(values)} rows of values and {len(offsets)} offsets must be"
                f" as many as the readings, and {len(sensors)} sensor ids as many as the {len(states)} states"
            )
        if may_anchor is not None and len(may_anchor) != n:
            raise ValueError(f"may_anchor has {len(may_anchor)} entries for {n} readings")
        config = self.config
        time = _compilable(timestamp_us, np.int64)
        plan = StepPlan.of_readings(
            states["last_us"].copy(),
            _compilable(slots, np.int64),
            time,
            _compilable(values, np.float64),
            config.cadence_us,
            config.max_gap_steps,
        )
        known = self._outlooks(states, slots, plan.reset[plan.step], offsets, arrivals)
        ahead = None
        if self._known_ahead is not None:
            outlooks, row = (known.outlooks, known.row) if known is not None else (None, None)
            ahead = self._known_ahead.of_arrays(time, outlooks, row).numpy()
        anchors = np.empty(0, bool) if may_anchor is None else _compilable(may_anchor, np.bool_)
        readings = Readings(time, _compilable(offsets, np.int64), anchors, self._anchor_spacing)
        names = [sensors[slot] for slot in plan.slots.tolist()]
        made = self._engine.step(states, names, plan, plan.step, ahead, readings)
        if known is not None:
            store_outlooks(states, known)
        return Forecasts(
            made.quantiles,
            made.scale,
            made.origin,
            made.steps,
            made.steps >= config.warmup_steps,
            made.weights,
            made.limits,
            *_unit_maps(made.followed, plan),
            *_by_outlook(known, len(slots)),
        )

    def _outlooks(
        self,
        states: States,
        slots: Indexes,
        reset: NDArray[np.bool_],
        offsets: Indexes,
        arrivals: Arrivals | None,
    ) -> StepOutlooks | None:
        """The outlooks of the readings; None if the model has none."""
        if self.config.outlook is None:
            return None
        return step_outlooks(states, slots, reset, offsets, arrivals)


def _compilable(array: NDArray[Any], kind: type[np.generic]) -> NDArray[Any]:
    """The array itself, or a copy if numba would compile the kernel again for its type, layout or read-only memory."""
    if array.dtype == kind and array.flags.c_contiguous and array.flags.writeable:
        return array
    return np.array(array, kind, order="C")


def _unit_maps(followed: Followed | None, plan: StepPlan) -> tuple[NDArray[np.int8], Floats, Floats]:
    """The ``unit_`` fields of the forecasts."""
    if followed is None:
        none = np.empty((len(plan.step), 0))
        return none.astype(np.int8), none, none
    return followed.outcome[plan.step], followed.factor[plan.step], followed.offset[plan.step]


def _by_outlook(known: StepOutlooks | None, n: int) -> tuple[Indexes, NDArray[np.int8]]:
    """The ``outlook_`` fields of the forecasts."""
    if known is None:
        return np.full(n, NO_ISSUE_US), np.empty(0, np.int8)
    return known.issued_us, known.verdict
