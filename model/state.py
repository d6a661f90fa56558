"""What is carried from reading to reading: one packed record per sensor, the same in memory and in the changelog.

Letters: B sensors, L layers, H hidden, F features, K targets, P slots of the seasonal profile, R lags.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .acceptance import NEVER_US
from .config import ANCHORS, NO_ADAPTATION, Adaptation, ModelConfig
from .experts import AdaptationConfig, adaptation_dtype
from .normaliser import NORMALISER_FIELDS, NormaliserState

States = NDArray[Any]  # records of ``state_dtype``

NO_OFFSET: Final = -1


def state_dtype(config: ModelConfig, adaptation: Adaptation = NO_ADAPTATION) -> np.dtype[Any]:
    """The record of one sensor: little-endian and packed, so that its bytes mean the same on every machine.

    What adaptation carries is a record within it; where nothing is adapted there is none.
    """
    norm = NormaliserState.blank(config, 0).arrays()
    adapting: list[Any] = (
        [("adaptation", adaptation_dtype(AdaptationConfig.of(config, adaptation)))] if adaptation.active else []
    )
    return np.dtype(
        [
            ("last_us", "<i8"),  # timestamp of the last reading stepped in; ``NEVER_US`` for none
            ("origin", "<i8"),  # offset of the first reading of this state; -1 for none
            ("offset", "<i8"),  # offset of the last
            ("steps", "<i8"),  # since the origin, missing ones included
            ("accepted", "<i8"),  # readings since the origin
            # Offsets of every so many readings, newest last; -1 for none. Where a replay may not begin with the reading
            # that is due (model.reorder_buffer), that of the first one after it with which it may.
            ("anchors", "<i8", (ANCHORS,)),
            ("hidden", "<f4", (config.num_layers, config.hidden_size)),
            *((name, "<f8", norm[name].shape[1:]) for name in NORMALISER_FIELDS),
            ("lags", "<f8", (config.target_count, config.lag_steps)),  # last values of the targets, newest first
            *adapting,
        ]
    )


def blank_states(config: ModelConfig, rows: int, adaptation: Adaptation = NO_ADAPTATION) -> States:
    """States of sensors that have seen nothing yet."""
    states = np.zeros(rows, state_dtype(config, adaptation))
    states["last_us"] = NEVER_US
    for name in ("origin", "offset", "anchors"):
        states[name] = NO_OFFSET
    return states


def non_finite(states: States) -> NDArray[np.bool_]:
    """(B,) whether a state holds what is no finite number, which nothing it computes can lead to if all is well."""
    bad = np.zeros(len(states), bool)
    for name in ("hidden", *NORMALISER_FIELDS, "lags"):
        values = states[name]
        if not np.isfinite(values).all():
            bad |= ~np.isfinite(values).reshape(len(states), -1).all(axis=1)
    return bad


def replay_start(state: Any, steps: int, spacing: int) -> int:
    """The offset to replay from so that ``steps`` accepted readings or more, or a few less after a gap, are stepped in.

    Less where a replay may not begin with the reading that was due (``model.reorder_buffer``), but with a later one.
    It is that of a reading accepted into this state (the newest anchor that is far enough back, else the oldest known),
    so a replay that applies the rule of acceptance from there accepts what the state itself accepted, and reads at most
    ``spacing`` too many. -1 for a blank state.

    Args:
        spacing: ``Adaptation.anchor_spacing`` of the settings that the state was made under.
    """
    anchors = [int(offset) for offset in state["anchors"]]
    since = (int(state["accepted"]) - 1) % spacing + 1  # readings from the newest anchor on, itself included
    for back, offset in enumerate(reversed(anchors)):
        if offset != NO_OFFSET and since + back * spacing >= steps:
            return offset
    return next((offset for offset in anchors if offset != NO_OFFSET), NO_OFFSET)
