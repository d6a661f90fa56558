"""Remarks about bounds: readings that break them, bounds that the readings suggest, and models with other bounds."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from model.bounds import NO_BOUNDS, Bounds, Floats
from model.config import ModelConfig
from model.sequences import Sequences
from model.unit_change import in_own_units
from pipeline.settings import Settings
from pipeline.text.plural import counted

FEWEST_READINGS: Final = 1_000  # of a target; fewer suggest no bound
# Largest values that are natural ends of a scale (a share, a percentage), if this share of the readings reaches them.
_ENDS: Final = (1.0, 100.0)
_REACHED_SHARE: Final = 0.001
_MOST_REMARKS: Final = 5
_FACTS_CHARACTERS: Final = 4_000  # early releases of MLflow refuse a tag of more than 5,000


@dataclass(frozen=True)
class BoundsFinding:
    """Readings that break the bounds of a target, or bounds that the readings suggest."""

    target: str
    fact: str  # short, and different if the finding is another one; it does not change with the number of readings
    remark: str  # a sentence for the user


def bounds_findings(sequences: Sequences, settings: Settings) -> list[BoundsFinding]:
    """A finding for each target whose readings break its bounds, or suggest bounds that it does not have."""
    targets = settings.targets
    bounds = settings.target_bounds or (NO_BOUNDS,) * len(targets)
    own = in_own_units(sequences.starts, sequences.reset, sequences.values)  # the units of the bounds
    found = []
    for target, column, each in zip(targets, sequences.columns(targets), bounds, strict=True):
        values = own[:, column]
        values = values[~np.isnan(values)]
        found.append(_broken(target, values, each) if each.are_set else _suggestion(target, values))
    return [finding for finding in found if finding is not None]


def bounds_remarks(findings: Sequence[BoundsFinding], known: str) -> list[str]:
    """The remark of each finding, except those of the ``known`` facts.

    There are at most five, and one more sentence with the number of the other targets.

    Args:
        known: ``facts_as_text`` of an earlier retraining.
    """
    facts = _facts_in(known)
    remarks = [finding.remark for finding in findings if facts.get(finding.target) != finding.fact]
    more = len(remarks) - _MOST_REMARKS
    have = "has remarks about its" if more == 1 else "have remarks about their"
    rest = [f"{counted(more, 'more target')} {have} bounds"] if more > 0 else []
    return remarks[:_MOST_REMARKS] + rest


def facts_as_text(findings: Sequence[BoundsFinding]) -> str:
    """The facts as a JSON object by target, for a tag of the registered version; empty without findings.

    Facts that exceed the size of a tag are left out, so their remarks come again.
    """
    facts: dict[str, str] = {}
    text = ""
    for finding in findings:
        facts[finding.target] = finding.fact
        longer = json.dumps(facts, ensure_ascii=False)
        if len(longer) > _FACTS_CHARACTERS:
            break
        text = longer
    return text


def _facts_in(text: str) -> Mapping[str, object]:
    """Target -> fact; empty if the text is not from ``facts_as_text``, because people can change tags."""
    try:
        facts = json.loads(text) if text else {}
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def bounds_difference(config: ModelConfig, settings: Settings) -> str | None:
    """A clause about a model with other bounds than the settings; None if they are the same."""
    if config.bounds == settings.target_bounds:
        return None
    return (
        f"was trained with {_described(config.targets, config.bounds)}, which its forecasts have too. The settings "
        f"have {_described(settings.targets, settings.target_bounds)}; `streamgru retrain` trains a version with them"
    )


def _broken(target: str, values: Floats, bounds: Bounds) -> BoundsFinding | None:
    outside = (values < bounds.lowest) | (values > bounds.highest)
    if bounds.count:
        outside |= values != np.rint(values)
    count = int(outside.sum())
    if not count:
        return None
    remark = (
        f"{target} breaks its bounds ({bounds}) in {count:,} of {counted(len(values), 'reading')}, for example with "
        f"{values[outside][0]:g}; forecasts keep the bounds"
    )
    return BoundsFinding(target, f"{count} break {bounds}", remark)


def _suggestion(target: str, values: Floats) -> BoundsFinding | None:
    """Bounds that the readings never broke, and that forecasts may break; None without any."""
    # Farther than a standard deviation from 0, forecasts do not reach it.
    if len(values) < FEWEST_READINGS or not 0.0 <= values.min() < values.std():
        return None
    never, settings = ["below 0"], ["minimum = 0"]
    largest = float(values.max())
    if largest in _ENDS and (values == largest).mean() >= _REACHED_SHARE:
        never.append(f"above {largest:g}")
        settings.append(f"maximum = {largest:g}")
    remark = f"{target} is never {' or '.join(never)} in {counted(len(values), 'reading')}"
    remark += f"; if it cannot be, set {' and '.join(settings)} under [bounds.{_key(target)}]"
    if largest > 1.0 and (values == np.rint(values)).all():
        remark += ", and count = true if it counts things"
        settings.append("count = true")
    return BoundsFinding(target, ", ".join(settings), remark)


def _key(name: str) -> str:
    """The name as a key of a TOML table."""
    bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if bare else '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _described(targets: Sequence[str], bounds: Sequence[Bounds]) -> str:
    return "; ".join(_each(targets, bounds)) or "no bounds"


def _each(targets: Sequence[str], bounds: Sequence[Bounds]) -> Iterator[str]:
    named = [(target, each) for target, each in zip(targets, bounds, strict=False) if each.are_set]
    for target, each in named[:_MOST_REMARKS]:
        yield f"bounds for {target} ({each})"
    if len(named) > _MOST_REMARKS:
        yield f"and {counted(len(named) - _MOST_REMARKS, 'more target')}"
