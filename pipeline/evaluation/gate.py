"""The gate: decides by the loss on the held-out tail of the history whether a challenger becomes champion."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.settings.sections import GateSettings


@dataclass(frozen=True)
class Decision:
    """The gate's decision, with the reason as a sentence for the run and the version."""

    promote: bool
    reason: str


def decide(challenger: float, champion: float | None, baselines: Mapping[str, float], gate: GateSettings) -> Decision:
    """Promote a challenger whose loss is lower than the champion's by the margin.

    Without a champion, the loss must be lower than the loss of every baseline by the margin. If ``gate.automatic`` is
    off, a better challenger is declined, and a user may promote it.

    Args:
        challenger: mean loss by ``gate.metric``, scaled by sensor, as the other losses are.
        champion: None if there is no champion, or it does not fit the settings.
        baselines: mean losses by name, at least one.
    """
    if champion is None:
        rival, rival_loss = min(baselines.items(), key=lambda item: item[1] if math.isfinite(item[1]) else math.inf)
        rival += " forecast"
    else:
        rival, rival_loss = "champion", champion
    metric = f"mean {gate.metric} on the held-out tail"
    if not (math.isfinite(challenger) and math.isfinite(rival_loss)):
        return Decision(
            False, f"declined: {metric} is non-finite ({challenger:g}, against {rival_loss:g} of the {rival})"
        )
    compared = (
        f"{metric} is {challenger:.5g}, against {rival_loss:.5g} of the {rival}{_difference(challenger, rival_loss)}"
    )
    if challenger >= rival_loss * (1.0 - gate.margin):
        required = f"at least {gate.margin:.2%} lower" if gate.margin else "lower"
        return Decision(False, f"declined: {compared}; it must be {required}")
    if not gate.automatic:
        return Decision(
            False, f"declined: better, but gate.automatic = false leaves it to `streamgru promote`: {compared}"
        )
    enough = f"{gate.margin:.2%} lower suffices" if gate.margin else "any lower loss suffices"
    return Decision(True, f"promoted: {compared}; {enough}")


def _difference(loss: float, other: float) -> str:
    if other <= 0.0 or loss == other:
        return ""
    share = abs(1.0 - loss / other)
    return f", {share:.2%} {'lower' if loss < other else 'higher'}"
