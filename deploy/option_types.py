"""Types of options that several commands take."""

import math
from typing import Any, Final

import click

from pipeline.settings_sections import LARGEST_SEED

SEED: Final = click.IntRange(0, LARGEST_SEED)


class FiniteRange(click.FloatRange):
    """A range of numbers without the infinite ones and NaN, which compare as within any range that is open above."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number
