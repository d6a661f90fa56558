"""The page of `streamgru serve` in a real browser, on a stream with a real broker and forecaster."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

from deploy.stack import Stack
from pipeline.kafka.topics import ensure_topics
from pipeline.settings import Settings
from tests.browser import Browser, Tab
from tests.integration.stream_rig import (
    START_US,
    FolderChampion,
    ForecasterProcess,
    publish,
    read_all,
    rounds,
    small_forecaster,
    wait_for_forecasts,
)
from tests.page_rig import RECORD, sensor_address, wait_for_chart, wait_for_state
from tests.ports import free_port, free_ports
from tests.serving import ServeCommand
from tests.stacks import end_stack

pytestmark = [pytest.mark.integration, pytest.mark.timeout(420)]  # the first test may install a browser

MARKUP = "<script>document.title='taken'</script><img src=x onerror=document.title='taken'>"
SLASHED = "plant/1 line%2F2?a=b#c \U0001f321 \u202eabc"
LONGEST = "long-" + "x" * 1_019
SENSORS = (*(f"sensor-{number}" for number in range(20)), MARKUP, SLASHED, LONGEST)
FIRST_STEPS = 30
STALE_WITHIN_S = 10.0
LIVE_AGAIN_S = 20.0
PHONE = (390, 844)
TOKEN = "a-token-of-a-page"
CONTROLS = ("button", "checkbox", "combobox", "link", "radio", "searchbox", "slider", "textbox")
OVERFLOW = (
    "document.documentElement.scrollWidth > innerWidth || document.getElementById('main').scrollWidth > innerWidth"
)


@dataclass
class Rig:
    """A stream that the tests of this file extend, and the page that shows it."""

    settings: Settings
    port: int  # of the page's server
    browser: Browser
    context: ExitStack
    steps: int = 0
    server: ServeCommand = field(init=False)

    def serve(self) -> None:
        """Start the page's server, and wait until it has read the topics."""
        self.server = self.context.enter_context(ServeCommand(self.settings, self.port, self.settings.home))
        self.server.wait_until_ready()

    def extend(self, steps: int = 1, sensors: Sequence[str] = SENSORS) -> int:
        """Publish more readings; return the time of the last one, in milliseconds."""
        publish(self.settings, rounds(self.settings, sensors, range(self.steps, self.steps + steps)))
        self.steps += steps
        return (START_US + (self.steps - 1) * self.settings.cadence_us) // 1_000

    def open(self, sensor: str, **choices: str) -> Tab:
        """A tab that shows a sensor's chart."""
        tab = self.browser.open(sensor_address(self.server.address, sensor, **choices))
        tab.wait_for("document.querySelector('#fan canvas')")
        return tab


@pytest.fixture(scope="module")
def live_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A broker of its own, because a test restarts it; a forecaster, the page's server and a browser."""
    home = tmp_path_factory.mktemp("page")
    kafka, port = free_ports(2)
    settings = Settings(
        home=home,
        features=("a", "b"),
        targets=("a", "b"),
        horizon_steps=6,
        stack={"kafka_port": kafka},
        kafka={"partitions": 2},
        forecaster={"start": "earliest"},
    )
    champion = FolderChampion(home / "champion", settings)
    champion.promote(1, small_forecaster(settings))
    with ExitStack() as context:
        context.callback(end_stack, settings)
        Stack(settings).up(("kafka",))
        ensure_topics(settings)
        context.enter_context(ForecasterProcess(settings, home / "champion"))
        rig = Rig(settings, port, context.enter_context(Browser()), context)
        rig.extend(FIRST_STEPS)
        wait_for_forecasts(settings, FIRST_STEPS * len(SENSORS))
        rig.serve()
        yield rig


def offsets_of(settings: Settings, sensor: str, after: int) -> list[str]:
    """Partition and offset of the sensor's forecasts in Kafka, without the first ``after``."""
    records = read_all(settings, settings.kafka.topics.forecasts)
    return [f"{record.partition}:{record.offset}" for record in records if record.key == sensor.encode()][after:]


def unnamed_controls(tab: Tab) -> list[str]:
    """The roles of controls that a screen reader would announce without a name."""
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    shown = [node for node in nodes if not node["ignored"] and node["role"]["value"] in CONTROLS]
    assert len(shown) > 3
    return [node["role"]["value"] for node in shown if not node.get("name", {}).get("value", "").strip()]


def test_the_page_shows_sensors_and_forecasts_and_only_its_own_server_is_asked(live_page: Rig) -> None:
    tab = live_page.browser.open(f"{live_page.server.address}/")
    tab.wait_for("document.querySelector('#fan canvas') && document.querySelector('#weights .fill')")
    assert tab.text("#list-count") == str(len(SENSORS))
    assert tab.evaluate("document.querySelectorAll('.row').length") > 8
    tab.evaluate("document.querySelector('#fan-table').open = true")
    tab.wait_for("document.querySelectorAll('#fan-table tbody tr').length >= 6 + 24")
    tab.evaluate("location.hash = '#/operation'")
    tab.wait_for(
        "document.querySelectorAll('.bars .amount').length === 2 && document.querySelectorAll('canvas').length"
    )
    assert tab.text(".tile:nth-child(6) dd") == str(len(SENSORS))
    assert not tab.problems
    assert not unnamed_controls(tab)
    assert all(request.startswith((live_page.server.address, "data:")) for request in tab.requests)


def test_a_committed_forecast_appears_without_a_reload(live_page: Rig) -> None:
    tab = live_page.open("sensor-1", target="b", step="3")
    before = tab.text("#readout")
    wait_for_chart(tab, live_page.extend())
    tab.wait_for_text("#readout", lambda text: text != before and "forecast 3 steps before" in text)
    assert not tab.problems


def test_the_keyboard_alone_reaches_a_sensor_and_its_numbers(live_page: Rig) -> None:
    tab = live_page.open("sensor-2")
    tab.press("Tab")
    assert tab.evaluate("document.activeElement.id") == "skip"
    tab.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "main"
    tab.evaluate("document.getElementById('order').value = 'name'")
    tab.evaluate("document.getElementById('order').dispatchEvent(new Event('change'))")
    tab.press("/")
    tab.type("sensor-1")
    tab.wait_for("document.querySelector('.row')?.dataset.sensor === 'sensor-1'")
    for _ in range(3):
        tab.press("ArrowDown")
    third = tab.wait_for(
        "document.activeElement.matches('.row:focus-visible') && document.activeElement.dataset.sensor"
    )
    assert third == "sensor-11"
    tab.press("Enter")
    tab.wait_for("document.querySelector('main h1')?.textContent === 'sensor-11'")
    tab.wait_for("document.querySelector('#fan canvas')")
    tab.evaluate("document.getElementById('fan').focus()")
    latest = tab.text("#readout")
    tab.press("ArrowLeft")
    tab.wait_for_text("#readout", lambda text: text != latest)
    assert tab.evaluate("document.getElementById('fan').getAttribute('aria-valuetext')").count("reading") == 1
    assert not tab.problems


def test_a_phone_shows_list_and_sensor_one_after_the_other(live_page: Rig) -> None:
    tab = live_page.browser.open(f"{live_page.server.address}/", *PHONE, phone=True)
    tab.wait_for("document.querySelectorAll('.row').length > 5")
    assert not tab.evaluate(OVERFLOW)
    assert not tab.evaluate("document.getElementById('main').checkVisibility()")
    tab.evaluate("document.querySelector('.row').click()")
    tab.wait_for("document.querySelector('#fan canvas')")
    assert not tab.evaluate(OVERFLOW)
    assert not tab.evaluate("document.getElementById('list').checkVisibility()")
    tab.evaluate("document.querySelector('.back').click()")
    tab.wait_for("document.getElementById('list').checkVisibility()")
    assert not tab.problems


def test_a_page_with_a_token_asks_for_it(live_page: Rig) -> None:
    with_token = live_page.settings.serve.model_copy(update={"token": TOKEN, "refresh_s": 0.0})  # asks no registry
    settings = live_page.settings.model_copy(update={"serve": with_token})
    port = free_port()
    with ServeCommand(settings, port, settings.home) as server:
        server.wait_until_ready()
        tab = live_page.browser.open(sensor_address(server.address, "sensor-0"))
        tab.wait_for("document.activeElement.id === 'token'")
        tab.type("another token")
        tab.press("Enter")
        tab.wait_for("document.querySelector('[role=alert]') && document.activeElement.id === 'token'")
        tab.type(TOKEN)
        tab.press("Enter")
        tab.wait_for("document.querySelector('#fan canvas')")
        assert tab.text("main h1") == "sensor-0"
    with ServeCommand(settings, port, settings.home) as server:  # logins end with the process
        server.wait_until_ready()
        tab.wait_for("document.activeElement.id === 'token'")
        assert not tab.evaluate("document.getElementById('banner').checkVisibility()")


@pytest.mark.parametrize("sensor", [MARKUP, SLASHED, LONGEST], ids=["markup", "slashes", "longest"])
def test_a_hostile_name_is_text(live_page: Rig, sensor: str) -> None:
    tab = live_page.browser.open(sensor_address(live_page.server.address, sensor), *PHONE, phone=True)
    tab.wait_for("document.querySelector('#fan canvas')")
    assert tab.text("main h1") == sensor.replace("\u202e", "[U+202E]")
    assert "taken" not in tab.evaluate("document.title.replace(/<.*/, '')")
    assert tab.evaluate("document.querySelectorAll('main script, main img').length") == 0
    assert not tab.evaluate(OVERFLOW)
    assert not tab.problems


def test_a_killed_server_is_noticed_and_no_forecast_is_missed_or_repeated(live_page: Rig) -> None:
    tab = live_page.open("sensor-3")
    tab.evaluate(RECORD)
    first = live_page.steps
    wait_for_chart(tab, live_page.extend(2))
    live_page.server.process.kill()
    wait_for_state(tab, "stale", STALE_WITHIN_S, patience=1)
    assert "Stale since" in tab.text("#banner")
    live_page.extend(3)
    live_page.serve()
    wait_for_state(tab, "live", LIVE_AGAIN_S)
    wait_for_chart(tab, live_page.extend())
    expected = offsets_of(live_page.settings, "sensor-3", first)
    tab.wait_for(f"window.heard.length >= {len(expected)}")
    assert tab.evaluate("window.heard") == expected
    assert not tab.evaluate("document.getElementById('banner').checkVisibility()")


def test_a_restart_of_the_broker_is_shown_and_survived(live_page: Rig) -> None:
    tab = live_page.open("sensor-4")
    tab.evaluate(RECORD)
    first = live_page.steps
    end_stack(live_page.settings)
    wait_for_state(tab, "stale", STALE_WITHIN_S, patience=1)
    assert "Stale since" in tab.text("#banner")
    Stack(live_page.settings).up(("kafka",))
    wait_for_state(tab, "live", LIVE_AGAIN_S)
    wait_for_chart(tab, live_page.extend(2), LIVE_AGAIN_S)
    expected = offsets_of(live_page.settings, "sensor-4", first)
    tab.wait_for(f"window.heard.length >= {len(expected)}")
    assert tab.evaluate("window.heard") == expected
    assert not tab.problems
