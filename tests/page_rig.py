"""The state that the page of `streamgru serve` shows in a browser; `tests/serving.py` runs the server."""

from urllib.parse import quote

from tests.browser import Tab
from tests.waiting import PATIENCE

# Notes each forecast event of the page as "partition:offset", in the order of arrival.
RECORD = """
window.heard = [];
document.addEventListener("streamgru:forecasts", (event) => {
  for (const row of event.detail.rows) window.heard.push(`${row.partition}:${row.offset}`);
});
"""


def sensor_address(base: str, sensor: str, **choices: str) -> str:
    """The address of a sensor's view."""
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in choices.items())
    return f"{base}/#/sensor/{quote(sensor, safe='')}" + (f"?{query}" if query else "")


def wait_for_chart(tab: Tab, issued_at_ms: int, timeout_s: float = 10.0) -> None:
    """Wait until the chart's last reading has this time."""
    tab.wait_for(f"Number(document.querySelector('[data-shown]')?.dataset.shown) >= {issued_at_ms}", timeout_s)


def wait_for_state(tab: Tab, state: str, timeout_s: float, *, patience: float = PATIENCE) -> None:
    """Wait until the page says that it is ``live`` or ``stale``."""
    tab.wait_for(f"document.getElementById('pulse').dataset.state === '{state}'", timeout_s, patience=patience)
