"""Options, and types of options, that several commands take."""

import math
from collections.abc import Callable
from functools import reduce
from typing import Any, Final

import click

from deploy.data_files import ISSUED_COLUMN
from pipeline.settings.sections import LARGEST_SEED

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


def health_port_option(setting: str) -> Callable[[Command], Command]:
    """`--health-port`; ``setting`` names the setting that it overrides."""
    return click.option(
        "--health-port",
        type=click.IntRange(1, 65_535),
        metavar="PORT",
        help=f"Answer GET /healthz, /readyz and /metrics on this port; by default {setting} of the settings, if set.",
    )


def issued_column_option(more: str = "") -> Callable[[Command], Command]:
    """`--issued-column`; ``more`` are further sentences of its help."""
    return click.option(
        "--issued-column",
        metavar="NAME",
        help=f"Column of the times of issue, in files of outlooks; by default {ISSUED_COLUMN}. {more}".rstrip(),
    )


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """One decorator for several options, in the order of the help."""
    return lambda command: reduce(lambda command, option: option(command), reversed(options), command)


def _split_names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    return () if value is None else tuple(name.strip() for name in value.split(","))


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
        help="Zone of times that have none, such as UTC, Asia/Shanghai or Etc/GMT-1 (UTC+1 all year).",
    ),
    click.option(
        "--time-format",
        metavar="FORMAT",
        help="Form of the times: a strptime pattern such as '%d/%m/%Y %H:%M', one of epoch_s, epoch_ms, epoch_us and "
        "epoch_ns, or the order of the date: day-first, month-first or year-first; by default recognised.",
    ),
    click.option(
        "--repeated-hour",
        type=click.Choice(["infer", "earlier", "later"]),
        help="Reading of a local time that exists twice because clocks are set back; by default inferred from the "
        "order of the rows, and refused if the order does not show it.",
    ),
    click.option("--sensor-column", metavar="NAME", help="Column of the sensor ids; by default each file is a sensor."),
    click.option(
        "--columns-as-sensors", is_flag=True, default=None, help="Read each numeric column as a separate sensor."
    ),
    click.option(
        "--strip-ids", is_flag=True, default=None, help="Remove blanks around sensor ids; the stream keeps them."
    ),
    click.option(
        "--decimal",
        type=click.Choice([".", ","]),
        metavar="SIGN",
        help="Decimal sign; by default recognised, as are --thousands and the options below.",
    ),
    click.option("--thousands", metavar="SIGN", help="Sign between groups of three digits, such as ',' or space."),
    click.option(
        "--missing",
        multiple=True,
        metavar="LIST",
        help="Numbers and words that stand for a missing value, such as -200,-99.9,unavailable, with decimal points; "
        "NA, null and - always do.",
    ),
    click.option("--separator", metavar="SIGN", help="One character, or comma, semicolon, tab, pipe or space."),
    click.option("--encoding", metavar="NAME", help="Encoding of the text, such as utf-8, utf-16 or cp1252."),
    click.option("--skip-rows", type=click.IntRange(min=0), metavar="N", help="Leave out the first N lines."),
    click.option(
        "--unit-rows",
        type=click.IntRange(min=0),
        metavar="N",
        help="Leave out N lines after the header: units.",
    ),
    click.option("--comment", metavar="SIGN", help="Leave out lines that begin with SIGN; '' for no comments."),
    click.option(
        "--header/--no-header",
        default=None,
        help="Whether a header names the columns; without one they are called column_1, column_2 and so on.",
    ),
    click.option(
        "--column-names",
        callback=_split_names,
        metavar="LIST",
        help="Names of the columns, separated by commas, of a file without a header; with --header, in place of its "
        "names.",
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
