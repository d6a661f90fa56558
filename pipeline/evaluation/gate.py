"""The gate: whether a challenger becomes champion, by its loss on the held-out tail of the history."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.settings_sections import GateSettings


@dataclass(frozen=True)
class Decision:
    """What the gate decides, and why, in a sentence for the run and the version."""

    promote: bool
    reason: str


def decide(challenger: float, champion: float | None, baselines: Mapping[str, float], gate: GateSettings) -> Decision:
    """Promote a challenger whose loss is lower than the champion's by the margin; the first one's than all baselines'.

    Where ``gate.automatic`` is off, a better one waits for a person.

    Args:
        challenger: its mean loss by ``gate.metric``, scaled by sensor, as are the other two.
        champion: none where there is no champion, or none that fits the settings.
        baselines: at least one, by name.
    """
    if champion is None:
        rival, rival_loss = min(baselines.items(), key=lambda item: item[1] if math.isfinite(item[1]) else math.inf)
        rival += " forecast"
    else:
        rival, rival_loss = "champion", champion
    what = f"mean {gate.metric} on the held-out tail"
    if not (math.isfinite(challenger) and math.isfinite(rival_loss)):
        return Decision(
            False, f"declined: {what} is not a number ({challenger:g}, against {rival_loss:g} of the {rival})"
        )
    compared = (
        f"{what} is {challenger:.5g}, against {rival_loss:.5g} of the {rival}{_difference(challenger, rival_loss)}"
    )
    asked = f"at least {gate.margin:.2%} lower" if gate.margin else "lower"
    if challenger >= rival_loss * (1.0 - gate.margin):
        return Decision(False, f"declined: {compared}; it has to be {asked}")
    if not gate.automatic:
        return Decision(
            False, f"declined: left to `streamgru promote` (gate.automatic = false), though better: {compared}"
        )
    return Decision(True, f"promoted: {compared}; it had to be {asked}")


def _difference(loss: float, other: float) -> str:
    if other <= 0.0 or loss == other:
        return ""
    share = abs(1.0 - loss / other)
    return f", {share:.2%} {'lower' if loss < other else 'higher'}"
