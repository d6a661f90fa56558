"""``streamgru watch``: live forecasts in the terminal."""

import time
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import click

from deploy.context import Context
from deploy.terminal_text import say
from pipeline.errors import StreamgruError
from pipeline.text.visible_text import visible

if TYPE_CHECKING:
    from deploy.live_forecasts import LiveForecast, StreamTail

# seconds until the command complains about a named sensor without readings; the look back finds hourly sensors
PATIENCE_S = 10.0
LOOK_BACK_RECORDS = 1_000
POLL_S = 0.25
QUIET_S = 3.0  # seconds without a forecast until a hint; only for lines, because a table has a caption
_QUIET = "no new forecast yet: is a `streamgru forecast` running, and are readings being sent?"


@click.command()
@click.argument("sensors", nargs=-1, metavar="[SENSOR]...")
@click.option("--from-beginning", is_flag=True, help="Also show the forecasts that are already on the topic.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Stop after N forecasts.")
@click.pass_obj
def watch(context: Context, sensors: tuple[str, ...], from_beginning: bool, limit: int | None) -> None:
    """Show live forecasts next to their readings until Ctrl-C, for each SENSOR or for all sensors.

    A terminal shows a table of each sensor's latest forecast: the median 1, 6 and 24 steps ahead, with the outermost
    quantiles in brackets. A narrow terminal shows fewer columns. Any other output gets one line per forecast.
    """
    from deploy.literal_console import make_console
    from deploy.live_forecasts import StreamTail

    look_back = None if from_beginning else LOOK_BACK_RECORDS
    try:
        with StreamTail(context.settings, sensors=sensors, look_back=look_back) as tail:
            console = make_console()
            show = _show_table if console.is_terminal else _show_lines
            show(tail, _UnseenSensors(sensors), limit)
    except KeyboardInterrupt:
        return  # Ctrl-C is the normal end


class _UnseenSensors:
    """Complains once, after ``PATIENCE_S``, about named sensors that were not seen."""

    def __init__(self, sensors: tuple[str, ...]) -> None:
        self._sensors = sensors
        self._deadline = time.monotonic() + PATIENCE_S
        self._spent = not sensors

    def check(self, tail: "StreamTail") -> None:
        """Complain if the time is up; call this after each poll.

        Raises:
            StreamgruError: not one of the named sensors was seen in time.
        """
        if self._spent or time.monotonic() < self._deadline:
            return
        self._spent = True
        unseen = [sensor for sensor in self._sensors if sensor not in tail.known_sensors]
        if not unseen:
            return
        known = sorted(tail.known_sensors)
        some = ", ".join(map(visible, known[:20])) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
        named = ", ".join(map(visible, unseen))
        message = f"nothing was seen of {named}, neither in {PATIENCE_S:.0f} s nor among the latest readings. " + (
            f"Sensors seen: {some}." if known else "No sensor was seen: are readings being sent?"
        )
        if len(unseen) == len(self._sensors):
            raise StreamgruError(message)
        say(message, err=True)


def _show_lines(tail: "StreamTail", patience: _UnseenSensors, limit: int | None) -> None:
    from deploy.live_forecasts import format_line

    for line in islice(map(format_line, _new_forecasts(tail, patience)), limit):
        say(line)


def _new_forecasts(tail: "StreamTail", patience: _UnseenSensors) -> "Iterator[LiveForecast]":
    quiet_until = time.monotonic() + QUIET_S
    is_told = False
    while True:
        yield from (live_forecast for live_forecast in tail.poll(POLL_S) if live_forecast.live)
        patience.check(tail)
        if not tail.forecasts and not is_told and time.monotonic() > quiet_until:
            is_told = True
            say(f"{_QUIET} With --from-beginning, earlier forecasts are shown too.", err=True)


def _show_table(tail: "StreamTail", patience: _UnseenSensors, limit: int | None) -> None:
    from rich.live import Live

    from deploy.literal_console import make_console
    from deploy.live_forecasts import LatestForecasts

    console = make_console()
    latest = LatestForecasts()
    frame = 7  # lines of the table besides its rows
    with Live(console=console, refresh_per_second=4, transient=False) as live:
        while limit is None or tail.forecasts < limit:
            latest.update(tail.poll(POLL_S))
            caption = f"{tail.readings:,} readings, {tail.forecasts:,} new forecasts; press Ctrl-C to stop"
            if not tail.forecasts:
                caption += f"\n{_QUIET}"
            live.update(latest.table(caption, max(1, console.height - frame), console.width))
            patience.check(tail)
