"""Pictures of a running page: ``python -m tests.page_pictures ADDRESS FOLDER [--sensor NAME] [--token TOKEN]``.

ADDRESS is the one that `streamgru serve` prints. The picture of the README is ``page-light.png``.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from tests.browser import Browser
from tests.page_rig import sensor_address

DRAWN: Final = "document.querySelector('#fan canvas') && document.querySelector('.facts dd').textContent"
LISTED: Final = "document.querySelectorAll('.row .gauge').length > 0"
TILED: Final = "document.querySelector('.tile dd').textContent && document.querySelectorAll('canvas').length > 1"
SETTLE_S: Final = 2.0  # until fonts, scores and the last frames are drawn


@dataclass(frozen=True)
class Picture:
    """A view, the window that shows it, and the condition under which it is complete."""

    name: str
    hash: str
    shown: str
    width: int = 1_360
    height: int = 900
    phone: bool = False
    dark: bool = False


def pictures(sensor: str) -> Iterator[Picture]:
    """The views of the page, light and dark, wide and on a phone."""
    chart = sensor_address("", sensor).removeprefix("/")
    yield Picture("light", chart, DRAWN)
    yield Picture("dark", chart, DRAWN, dark=True)
    yield Picture("tall", chart, DRAWN, height=1_500)
    yield Picture("phone", chart, DRAWN, 390, 844, phone=True)
    yield Picture("phone-list", "#/", LISTED, 390, 844, phone=True)
    yield Picture("operation", "#/operation", TILED, height=1_900)
    yield Picture("operation-dark", "#/operation", TILED, height=1_900, dark=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.page_pictures", description=__doc__)
    parser.add_argument("address")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sensor", help="the sensor to show; default: the first of the list")
    parser.add_argument("--token", help="the token of the page, if it has one")
    parser.add_argument("--timezone", default="UTC", help="the zone of the browser, such as Europe/Berlin")
    parser.add_argument("--density", type=float, default=1.0, help="pixels per point of wide pictures; 2 is sharper")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    start = (
        chosen.address.partition("#")[0].rstrip("/") + "/" + (f"#token={quote(chosen.token)}" if chosen.token else "")
    )
    with Browser() as browser:
        sensor = chosen.sensor
        if sensor is None:
            tab = browser.open(start)
            sensor = tab.wait_for("document.querySelector('.row')?.dataset.sensor", 60)
            tab.close()
        for picture in pictures(sensor):
            tab = browser.open("about:blank", picture.width, picture.height, phone=picture.phone)
            if not picture.phone:
                tab.resize(picture.width, picture.height, density=chosen.density)
            tab.prefer(color_scheme="dark" if picture.dark else "light")
            tab.call("Emulation.setTimezoneOverride", timezoneId=chosen.timezone)
            tab.go(start)
            tab.wait_for("document.documentElement.dataset.ready === ''", 60)
            tab.evaluate(f"location.hash = {picture.hash!r}")
            tab.wait_for(picture.shown, 60)
            time.sleep(SETTLE_S)
            path = chosen.folder / f"page-{picture.name}.png"
            tab.screenshot(path)
            print(path, *tab.problems)
            tab.close()


if __name__ == "__main__":
    main()
