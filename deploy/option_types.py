"""Options, and types of options, that several commands take."""

import math
from collections.abc import Callable
from functools import reduce
from typing import Any, Final

import click

from pipeline.settings_sections import LARGEST_SEED

SEED: Final = click.IntRange(0, LARGEST_SEED)

Command = Callable[..., Any]


class FiniteRange(click.FloatRange):
    """A range of finite numbers: infinity and NaN pass the comparisons of a range without an upper bound."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


POSITIVE: Final = FiniteRange(min=0, min_open=True)


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """One decorator for several options, in the order of the help."""
    return lambda command: reduce(lambda command, option: option(command), reversed(options), command)


# Options for the layout of files, for the arguments of ``FileLayout.of``: None or empty if they are not given.
layout_options = _options(
    click.option(
        "--time-column",
        "--time",
        "time_column",
        multiple=True,
        metavar="NAME",
        help="Column of the times, or two for date and time: Date,Time; by default the only possible column.",
    ),
    click.option(
        "--timezone",
        metavar="ZONE",
        help="Zone of times that have none, such as UTC or Asia/Shanghai. If an hour appears twice because clocks are "
        "set back, the first one in the file is the earlier one.",
    ),
    click.option("--sensor-column", metavar="NAME", help="Column of the sensor ids; by default each file is a sensor."),
    click.option(
        "--columns-as-sensors", is_flag=True, default=None, help="Read each numeric column as a separate sensor."
    ),
)

# Options that override settings of the section ``training``.
training_options = _options(
    click.option(
        "--epochs",
        type=click.IntRange(min=1),
        metavar="N",
        help="Train at most N epochs; by default from the settings.",
    ),
    click.option(
        "--budget",
        "budget_s",
        type=POSITIVE,
        metavar="SECONDS",
        help="Train at most SECONDS; by default from the settings.",
    ),
    click.option("--seed", type=SEED, metavar="N", help="Seed of all random numbers; by default from the settings."),
)
