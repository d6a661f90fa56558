"""Studies of carried states: compared with states that have seen fewer readings, and carried for 10^5 steps.

Letters: S sensors, m moments, K targets, h horizon steps, L layers.
"""

from typing import Final

import numpy as np

from model.config import Adaptation
from model.stepper import Stepper
from tests.benchmarks.case import Case, Result, by_sensor, carried, narrow, scored, side_by_side
from tests.benchmarks.panel import Walk

# Number of moments at which forecasts are scored, the same for all sensors.
MOMENTS: Final = 40
WINDOWS: Final = (1, 2, 4, 8, 24, 48, 96, 168, 336, 720, 1024)
PARTS: Final = 4  # equal stretches of the test part, by time
TILED_STEPS: Final = 100_000
WEEK_US: Final = 7 * 86_400_000_000
# A sensor that was not in the training data, in another unit.
STRANGER: Final = "never seen"
LONGEST_OF_STRANGER: Final = 336  # readings; longer windows take too long
FACTOR, OFFSET = 1_000.0, 1e5


def windows(case: Case, adaptation: Adaptation) -> Result:
    """Errors at the same moments, by number of readings that the state has seen and by age of the carried state."""
    panel, stepper = case.panel, Stepper(case.forecaster, adaptation)
    moments = case.moments(MOMENTS)
    labels = case.labels(moments)
    walk, begun = (Walk.blank(narrow(case, adaptation), panel.sensors) for _ in range(2))
    from_first, norms, begin = [], [], 0
    for moment in moments.tolist():
        part = slice(begin, moment + 1)
        from_first.append(walk.go(panel.timestamp_us[part], panel.values[:, part], [moment - begin]))
        norms.append(_norms(walk))
        begin = moment + 1
    start = case.issued[0] + 1  # the test part's first reading
    later = moments[moments >= start]
    since = slice(start, int(moments[-1]) + 1)
    from_test = begun.go(panel.timestamp_us[since], panel.values[:, since], later - start)
    found = {"carried": case.errors(np.concatenate(from_first, axis=1), labels)}
    replayed, strange, cold = {}, {}, []
    for length in WINDOWS:
        names, times, values = side_by_side(panel, moments - length + 1, moments + 1)
        window = Walk.blank(stepper, names)
        medians = by_sensor(window.go(times, values, [length - 1]), len(moments))[:, :, 0]
        replayed[length] = case.errors(medians, labels)
        if (window.states["steps"] < case.forecaster.config.warmup_steps).all():
            cold.append(length)
        if not adaptation.active and length <= LONGEST_OF_STRANGER:
            stranger = Walk.blank(stepper, [STRANGER] * len(names))
            medians = by_sensor(stranger.go(times, values * FACTOR + OFFSET, [length - 1]), len(moments))[:, :, 0]
            strange[length] = case.errors((medians - OFFSET) / FACTOR, labels)
    parts = np.array_split(np.arange(len(moments)), PARTS)
    older = len(moments) - len(later)
    return {
        "moments": len(moments),
        "carried": scored(found["carried"]),
        "replayed": {str(length): scored(errors) for length, errors in replayed.items()},
        "stranger": {str(length): scored(errors) for length, errors in strange.items()},
        "cold": cold,
        "naive": {name: scored(errors) for name, errors in case.naive(moments).items()},
        "by_age": [
            {
                "steps": [int(moments[part[0]]) + 1, int(moments[part[-1]]) + 1],
                "carried": scored(found["carried"][:, part]),
                "since the test part began": scored(
                    case.errors(from_test[:, part[part >= older] - older], labels[:, part[part >= older]])
                ),
                "replayed": scored(replayed[WINDOWS[-1]][:, part]),
                "norm": np.mean([norms[number] for number in part], axis=0).tolist(),
            }
            for part in parts
        ],
    }


def _norms(walk: Walk) -> list[float]:
    """(L,) root mean square of each layer's hidden state, over the sensors."""
    hidden = walk.states["hidden"].astype(np.float64)
    return np.sqrt((hidden**2).mean(axis=(0, 2))).tolist()  # type: ignore[no-any-return]


def tiled(case: Case, adaptation: Adaptation) -> Result:
    """Errors and hidden states while the test part, cut to whole weeks, is repeated for ``TILED_STEPS`` steps.

    Each repetition (tile) has the same readings; only the state is older. A tile's last week fades into the week before
    its first reading, so that values do not jump. Whole weeks keep the calendar continuous.
    """
    panel = case.panel
    week = WEEK_US // case.forecaster.config.cadence_us
    start = case.issued[0] + 1
    length = (len(panel) - start) // week * week
    tile = panel.values[:, start : start + length].copy()
    faded = np.linspace(0.0, 1.0, week + 1)[1:, None]
    tile[:, -week:] += faded * (panel.values[:, start - week : start] - tile[:, -week:])
    ahead = (np.arange(length)[:, None] + np.arange(1, case.horizon + 1)) % length
    labels = tile[:, ahead][..., case.targets].transpose(0, 1, 3, 2)
    walk = Walk(narrow(case, adaptation), panel.sensors, carried(case, adaptation, [start - 1])[start - 1])
    first_us, cadence_us = int(panel.timestamp_us[start]), case.forecaster.config.cadence_us
    rows = []
    for number in range(-(-TILED_STEPS // length)):
        squared, absolute, norms = [], [], []
        for begin in range(0, length, week):  # a week at a time, for the norms
            part = np.arange(begin, begin + week)
            times = first_us + (number * length + part) * cadence_us
            errors = case.errors(walk.go(times, tile[:, part], np.arange(week)), labels[:, part])
            squared.append(np.nanmean(errors**2))
            absolute.append(np.nanmean(np.abs(errors)))
            norms.append(_norms(walk))
        rows.append(
            {
                "steps": (number + 1) * length,
                "mse": float(np.mean(squared)),
                "mae": float(np.mean(absolute)),
                "norm": np.mean(norms, axis=0).tolist(),
                "largest_norm": np.max(norms, axis=0).tolist(),
            }
        )
    return {"tile": int(length), "tiles": rows}
