"""Options, and types of options, that several commands take."""

import math
from collections.abc import Callable
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


def layout_options(command: Command) -> Command:
    """Options for the columns of a file; the command gets them as arguments of ``FileLayout``."""
    for option in (
        click.option("--columns-as-sensors", is_flag=True, help="Take each numeric column as a sensor of its own."),
        click.option(
            "--sensor-column", metavar="NAME", help="Column of the sensor ids; by default each file is one sensor."
        ),
        click.option(
            "--timezone",
            metavar="ZONE",
            help="Zone of times without one, such as UTC or Asia/Shanghai. When clocks are set back an hour appears "
            "twice: the first one in the file is the earlier one.",
        ),
        click.option(
            "--time-column", metavar="NAME", help="Column of the times; by default the only column that can be it."
        ),
    ):
        command = option(command)
    return command


def training_options(command: Command) -> Command:
    """Options that override settings of the section ``training``."""
    for option in (
        click.option("--seed", type=SEED, help="Seed of all random numbers; by default as in the settings."),
        click.option(
            "--budget", "budget_s", type=FiniteRange(min=0, min_open=True), help="Train for at most this many seconds."
        ),
        click.option("--epochs", type=click.IntRange(min=1), help="Epochs at most; by default as in the settings."),
    ):
        command = option(command)
    return command
