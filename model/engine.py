"""The engine that stream and evaluator share: it takes states through planned steps, with equal bits in both.

The network's step is compiled (``model.step_kernel``), and so are changes of unit and adaptation. ``Forecaster`` is the
definition of the network and trains it; the engine keeps the weights in the layout of the kernel.

Letters: B states, A sensors with steps, n forecasts, r readings, M steps, F features, K targets, Q quantiles, h horizon
steps, H hidden, E experts, C inputs known ahead.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from . import step_kernel
from .adaptation import AdaptedSteps, Adapter
from .ahead_inputs import ahead_size
from .config import Adaptation
from .experts import AdaptationConfig
from .forecaster import Forecaster
from .inputs import CALENDAR, input_size
from .normaliser import NORMALISER_FIELDS, Floats, profile_slots
from .published_unit import to_published_unit
from .state import States, non_finite, record_bytes, state_dtype
from .step_plan import StepPlan
from .target_scale import scale_in_unit, to_model_scale
from .unit_change import Followed, follow

Indexes = NDArray[np.int64]

_NONE: Final = np.empty(0, np.int64)
_NO_READINGS: Final = step_kernel.Readings(_NONE, _NONE, np.empty(0, bool), 1)


class Stepped(NamedTuple):
    """The forecasts after some of M steps."""

    quantiles: Floats  # (n, K, Q, h) in the sensor's unit
    scale: Floats  # (n, K) the normaliser's scale in the sensor's unit; 0 while the sensor has been constant
    steps: Indexes  # (n,) of the state
    origin: Indexes  # (r,) offset of the first reading stepped into each reading's state
    weights: Floats  # (n, K, E) of the experts in the mixture; E is 0 if adaptation is off
    limits: Floats  # (n, K, 2) of ``published_unit.to_published_unit``
    followed: Followed | None  # of the M steps; None if no change of unit is followed


class Engine:
    """Steps the states of one model's sensors. One thread at a time may use it.

    Args:
        forecaster: on the CPU; its weights must not change afterwards.
        adaptation: of its forecasts.
        whole: whether forecasts of counts are rounded to whole numbers.
    """

    def __init__(self, forecaster: Forecaster, adaptation: Adaptation, *, whole: bool = True) -> None:
        config = forecaster.config
        self.config = config
        self.adaptation = adaptation
        self.dtype = state_dtype(config, adaptation)
        self._adapting = AdaptationConfig.of(config, adaptation)
        self._forecaster = forecaster
        self._whole = whole
        self._ahead_size = ahead_size(config)
        self._targets = list(config.target_indices)
        self._forecast_shape = (config.target_count, len(config.quantiles), config.horizon_steps)
        self._is_hidden_seen = self._adapting.hidden_regressors > 0
        # E: the experts in the mixture, 0 if adaptation is off.
        self.expert_count = 0 if adaptation.level == "off" else len(self._adapting.experts)
        weights = _packed(forecaster)
        self._embedding: NDArray[np.float32] = forecaster.embedding.weight.detach().cpu().numpy()
        given = forecaster.attributes
        self._attributes = np.empty((0, 0), np.float32) if given is None else given.detach().cpu().numpy()
        shape = step_kernel.Shape(
            features=config.feature_count,
            targets=config.target_count,
            lags=config.lag_steps,
            slots=profile_slots(config),
            layers=config.num_layers,
            hidden=config.hidden_size,
            inputs=input_size(config),
            given=len(weights.head),
            quantiles=len(config.quantiles),
            median=config.median_index,
            horizon=config.horizon_steps,
        )
        fields, names = self.dtype.fields, self.dtype.names
        assert fields is not None
        assert names is not None
        first = names.index(NORMALISER_FIELDS[0])
        assert names[first : first + 8] == (*NORMALISER_FIELDS, "lags")
        places = step_kernel.Places(hidden=fields["hidden"][1], numbers=fields[names[first]][1])
        self._constant = (tuple(shape), tuple(places), tuple(forecaster.normaliser().rates))
        self._weights = weights
        self._adapter = None
        if adaptation.active:
            assert names[-3:] == ("units", "unit_evidence", "adaptation")
            self._units_begin = fields["units"][1]
            self._adapter = Adapter(self._adapting, self._targets, fields["adaptation"][1])
        self._compile()

    def _compile(self) -> None:
        """Compile the kernels, or read them from disk, so that the first step does not wait for them."""
        values = np.empty((0, self.config.feature_count))
        plan = StepPlan.of_readings(_NONE, _NONE, _NONE, values, cadence_us=1, max_gap_steps=0)
        ahead = np.empty((0, self._ahead_size), np.float32)
        states = np.empty(0, self.dtype)
        self.step(states, [], plan, plan.step, ahead)
        non_finite(states)

    def step(
        self,
        states: States,
        sensors: Sequence[str],
        plan: StepPlan,
        wanted: Indexes,
        ahead: NDArray[np.float32] | None,
        readings: step_kernel.Readings = _NO_READINGS,
    ) -> Stepped:
        """Take the planned steps. Steps ``states`` in place.

        Args:
            states: (B,) of ``dtype``, contiguous.
            sensors: (A,) ids of the plan's sensors.
            wanted: (n,) the steps after which to forecast, each once.
            ahead: (n, C) inputs known ahead; None if the model has none.
            readings: of the plan. Without them, the states note neither offsets nor times.

        Raises:
            ValueError: an array does not fit the model, the plan or ``states``. The compiled code checks no index, so
                it would write beyond the array.
        """
        config = self.config
        if ahead is None:
            ahead = np.empty((len(wanted), 0), np.float32)
        self._check(states, sensors, plan, ahead, len(wanted))
        records = record_bytes(states)
        followed = None if self._adapter is None else self._follow(records, plan)
        values = to_model_scale(config, plan.values if followed is None else followed.values)
        if wanted is plan.step:  # in the stream: a forecast after each reading
            forecast = plan.reading
        else:
            forecast = np.full(len(plan.reading), -1)
            forecast[wanted] = np.arange(len(wanted))
        made = self._run(records, sensors, plan, values, forecast, ahead, readings)
        if self._adapter is None:
            quantiles, weights = made.quantiles, np.empty((*made.level.shape, 0))
        else:
            quantiles, weights = self._adapt(self._adapter, records, plan, values, wanted, forecast, made)
        scale = scale_in_unit(config, made.level, made.scale)
        quantiles, limits = to_published_unit(config, quantiles, followed, wanted, whole=self._whole)
        if followed is not None and followed.has_maps:
            scale = followed.in_present_unit(wanted, self._targets, scale, sizes=True)
        return Stepped(quantiles, scale, made.steps, made.origin, weights, limits, followed)

    def _check(
        self, states: States, sensors: Sequence[str], plan: StepPlan, ahead: NDArray[np.float32], forecasts: int
    ) -> None:
        """Refuse arrays that do not fit together."""
        if states.dtype != self.dtype or not states.flags.c_contiguous:
            raise ValueError("the states belong to another model or adaptation, or are not contiguous in memory")
        if len(sensors) != len(plan.slots) or len(sensors) > len(states):
            raise ValueError(
                f"the plan has steps of {len(plan.slots)} sensors, but there are {len(sensors)} sensor ids and"
                f" {len(states)} states"
            )
        F = self.config.feature_count
        if plan.values.shape[1] != F:
            raise ValueError(f"the readings have {plan.values.shape[1]} features, but the model has {F}")
        if ahead.shape != (forecasts, self._ahead_size):
            raise ValueError(
                f"the model needs {self._ahead_size} inputs known ahead for each of {forecasts} forecasts, but their"
                f" array has the shape {ahead.shape}"
            )

    def _run(
        self,
        records: NDArray[np.uint8],
        sensors: Sequence[str],
        plan: StepPlan,
        values: Floats,
        forecast: Indexes,
        ahead: NDArray[np.float32],
        readings: step_kernel.Readings,
    ) -> step_kernel.Made:
        """The network's forecasts, by the row ``forecast`` (M,) of each step; -1 for none.

        Steps every part of the states except adaptation.
        """
        n, K = len(ahead), len(self._targets)
        made = step_kernel.Made(
            hidden=np.empty((len(forecast) if self._is_hidden_seen else 0, self.config.hidden_size), np.float32),
            origin=np.empty(len(readings.offset), np.int64),
            steps=np.empty(n, np.int64),
            level=np.empty((n, K)),
            scale=np.empty((n, K)),
            quantiles=np.empty((n, *self._forecast_shape)),
        )
        steps = step_kernel.Steps(
            slots=plan.slots,
            starts=plan.starts,
            timestamp_us=plan.timestamp_us,
            elapsed=plan.elapsed,
            reset=plan.reset,
            reading=plan.reading,
            forecast=forecast,
        )
        vectors = self._vectors(sensors)
        step_kernel.run(*self._constant, records, vectors, values, ahead, *self._weights, *steps, *readings, *made)
        return made

    def _vectors(self, sensors: Sequence[str]) -> NDArray[np.float32]:
        """(A, numbers) the vector of each sensor, as ``Forecaster.sensor_vectors`` gives it."""
        rows = self._forecaster.sensor_rows(sensors)
        vectors = self._embedding[rows[:, 0]]
        for column in range(1, rows.shape[1]):
            vectors += self._attributes[rows[:, column]]
        return vectors

    def _follow(self, records: NDArray[np.uint8], plan: StepPlan) -> Followed:
        """The steps' values in the states' own units. Steps the units in the records."""
        return follow(records, self._units_begin, plan.slots, plan.starts, plan.reset, plan.values)

    def _adapt(
        self,
        adapter: Adapter,
        records: NDArray[np.uint8],
        plan: StepPlan,
        values: Floats,
        wanted: Indexes,
        forecast: Indexes,
        made: step_kernel.Made,
    ) -> tuple[Floats, Floats]:
        """The forecasts (n, K, Q, h) and weights (n, K, E), adapted. Steps the adaptation in the records.

        The forecasts after missing steps stay as they are.
        """
        rows: Any = slice(None)  # the forecasts after readings
        if wanted is not plan.step:
            observed = plan.reading[wanted] >= 0
            rows = np.flatnonzero(observed)
            forecast = np.full(len(forecast), -1)
            forecast[wanted[rows]] = np.arange(len(rows))
        steps = AdaptedSteps(
            plan.slots,
            plan.starts,
            plan.reset,
            plan.timestamp_us,
            values,
            made.hidden,
            forecast,
            made.quantiles[rows],
        )
        quantiles, weights = adapter.adapt(records, steps)
        weights = weights[:, :, : self.expert_count]
        if wanted is plan.step:
            return quantiles, weights
        made.quantiles[rows] = quantiles
        spread = np.full((len(wanted), *weights.shape[1:]), np.nan)
        spread[rows] = weights
        return made.quantiles, spread


def _packed(forecaster: Forecaster) -> step_kernel.Weights:
    """The weights of the network in the layout of the kernel."""
    rnn, H = forecaster.gru.gru, forecaster.config.hidden_size
    layers = range(forecaster.config.num_layers)

    def weight(name: str, layer: int) -> NDArray[np.float32]:
        array: NDArray[np.float32] = getattr(rnn, f"{name}_l{layer}").detach().cpu().numpy()
        return array

    def candidate_first(gates: NDArray[np.float32]) -> NDArray[np.float32]:
        """The gates r, z, n (rows) in the order n, r, z."""
        return np.roll(gates, H, axis=0)

    def column(array: torch.Tensor) -> NDArray[np.float32]:
        """A row of weights for each input, from PyTorch's row for each output."""
        return np.ascontiguousarray(array.detach().cpu().numpy().T)

    into = [candidate_first(weight("weight_ih", layer)).T for layer in layers]
    gates = []
    for layer in layers:
        inward, back = candidate_first(weight("bias_ih", layer)), weight("bias_hh", layer)
        gates.append(np.concatenate([inward[:H], inward[H:] + back[: 2 * H], back[2 * H :]]))
    head = forecaster.gru.fc.weight
    if forecaster.skip is not None:
        head = torch.cat([head, forecaster.skip.weight], dim=1)
    term = forecaster.ahead
    none = np.empty((0, 0), np.float32)
    return step_kernel.Weights(
        into_first=np.ascontiguousarray(into[0]),
        into=np.ascontiguousarray(np.array(into[1:], np.float32).reshape(-1, H, 3 * H)),
        recur=np.ascontiguousarray([weight("weight_hh", layer).T for layer in layers]),
        gates=np.array(gates),
        head=column(head),
        head_bias=forecaster.gru.fc.bias.detach().cpu().numpy().copy(),
        ahead_in=none if term is None else column(term.take_in.weight),
        ahead_bias=np.empty(0, np.float32) if term is None else term.take_in.bias.detach().cpu().numpy().copy(),
        ahead_out=none if term is None else column(term.give_out.weight),
        day=CALENDAR[0].values,
        week=CALENDAR[1].values,
    )
