"""The state carried from reading to reading: a packed record per sensor, in memory and in the changelog.

Letters: B sensors, L layers, H hidden, F features, K targets, P slots of the seasonal profile, R lags.
"""

from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from . import step_kernel
from .acceptance import NEVER_US
from .config import ANCHORS, NO_ADAPTATION, Adaptation, ModelConfig
from .experts import AdaptationConfig, adaptation_dtype
from .normaliser import NORMALISER_FIELDS, NormaliserState
from .outlooks import NO_ISSUE_US
from .unit_change import unit_fields

States = NDArray[Any]  # records of ``state_dtype``

NO_OFFSET: Final = -1


@cache  # one object for a model: two equal types of many fields take microseconds to compare
def state_dtype(config: ModelConfig, adaptation: Adaptation = NO_ADAPTATION) -> np.dtype[Any]:
    """The record of one sensor: little-endian and packed, so its bytes mean the same on every machine.

    With active adaptation the record ends in the maps of changed units (``model.unit_change``) and adaptation's own
    record (``model.experts.adaptation_dtype``). All other values are in the state's own units, and on the model's scale
    (``model.target_scale``). With outlooks the record holds the newest one, in its own unit (``model.outlooks``).
    """
    norm = NormaliserState.blank(config, 0).arrays()
    adapting: list[Any] = []
    if adaptation.active:
        record = adaptation_dtype(AdaptationConfig.of(config, adaptation))
        adapting = [*unit_fields(config.feature_count), ("adaptation", record)]
    outlook: list[Any] = []
    if config.outlook is not None:
        outlook = [
            # Lowest offset of an outlook that may still count: behind the carried one, or behind the record that made
            # the first reading accepted. So an outlook that is read again changes nothing. 0 in a blank state.
            ("outlook_from", "<i8"),
            ("outlook_issued_us", "<i8"),  # ``NO_ISSUE_US`` without an outlook
            ("outlook_first_us", "<i8"),  # time of the first cell
            ("outlook", "<f4", (config.outlook.steps, config.outlook.covariate_count)),  # NaN where missing
        ]
    return np.dtype(
        [
            ("last_us", "<i8"),  # timestamp of the last reading stepped in; ``NEVER_US`` in a blank state
            ("origin", "<i8"),  # offset of the first reading stepped into this state; -1 in a blank state
            ("offset", "<i8"),  # offset of the last reading stepped in; -1 in a blank state
            ("steps", "<i8"),  # steps since the origin, missing steps included
            ("accepted", "<i8"),  # readings since the origin, the first included
            # Offsets to rebuild from, newest last: of every `anchor_spacing`-th reading, or of the first reading after
            # it with which a rebuild may begin (model.reorder_buffer). -1 for no offset yet.
            ("anchors", "<i8", (ANCHORS,)),
            ("hidden", "<f4", (config.num_layers, config.hidden_size)),
            *((name, "<f8", norm[name].shape[1:]) for name in NORMALISER_FIELDS),
            ("lags", "<f8", (config.target_count, config.lag_steps)),  # the targets' last values, newest first
            *outlook,
            *adapting,
        ]
    )


def blank_states(config: ModelConfig, rows: int, adaptation: Adaptation = NO_ADAPTATION) -> States:
    """(rows,) states of sensors before their first reading."""
    states = np.zeros(rows, state_dtype(config, adaptation))
    states["last_us"] = NEVER_US
    for name in ("origin", "offset", "anchors"):
        states[name] = NO_OFFSET
    if config.outlook is not None:
        states["outlook_issued_us"] = NO_ISSUE_US
    return states


def outlooks_from(states: States) -> NDArray[np.int64]:
    """(B,) the lowest offset of an outlook that may still count for each state; 0 in states without outlooks."""
    if "outlook_from" not in (states.dtype.names or ()):
        return np.zeros(states.shape, np.int64)
    return np.asarray(states["outlook_from"])


def record_bytes(states: States) -> NDArray[np.uint8]:
    """(B, bytes) contiguous states; they share memory. numpy copies bytes several times as fast as records."""
    return states.view(np.uint8).reshape(len(states), states.dtype.itemsize)


def non_finite(states: States) -> NDArray[np.bool_]:
    """(B,) whether a state holds a NaN or an infinite number; only a fault leads to one."""
    bad = np.zeros(len(states), bool)
    if not (states.flags.c_contiguous and states.flags.writeable):
        states = states.copy()  # otherwise numba would compile the kernel again
    step_kernel.find_non_finite(record_bytes(states), _finite_fields(states.dtype), bad)
    return bad


@cache
def _finite_fields(dtype: np.dtype[Any]) -> NDArray[np.int64]:
    """(fields, 3) ``fields`` of ``step_kernel.find_non_finite``: those that must be finite."""
    fields: Any = dtype.fields
    names = ("hidden", *NORMALISER_FIELDS, "lags", "units", "unit_evidence")
    found = [fields[name] for name in names if name in fields]
    return np.array([(begin, kind.itemsize // kind.base.itemsize, kind.base.itemsize) for kind, begin in found])


def replay_start(state: Any, steps: int, spacing: int) -> int:
    """The offset at which a replay of about ``steps`` accepted readings begins; -1 for a blank state.

    It is the newest anchor that is far enough back, otherwise the oldest. The anchor's reading was accepted into this
    state, so a rebuild that begins there accepts the same readings. It reads at most ``spacing`` readings too many, and
    too few if the state is younger, or if the anchor had to be a later reading (``model.reorder_buffer``).

    Args:
        spacing: ``Adaptation.anchor_spacing`` of the settings that the state was made under.
    """
    anchors = [int(offset) for offset in state["anchors"]]
    since = (int(state["accepted"]) - 1) % spacing + 1  # readings from the newest anchor on, its own included
    for back, offset in enumerate(reversed(anchors)):
        if offset != NO_OFFSET and since + back * spacing >= steps:
            return offset
    return next((offset for offset in anchors if offset != NO_OFFSET), NO_OFFSET)
