"""The HTTP side of ``streamgru serve``, without brokers: access, headers, parameters, and the OpenAPI document."""

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from starlette.testclient import TestClient

from deploy.serve.event_hub import EventHub, TooManyStreams
from deploy.serve.openapi import document
from deploy.serve.routes import EVENTS, ROUTES, Committed, Refused, parse_kinds, parse_query
from deploy.serve.security import COOKIE, HEADERS, check_reachable
from deploy.serve.server import ServeProcess
from pipeline.errors import SettingsError
from pipeline.live.event_ids import EventId
from pipeline.live.events import ForecastsEvent
from pipeline.live.follower import Published
from pipeline.live.forecast_head import ForecastHead
from pipeline.live.view import FOLLOWER, LAG_WATCH, STALE_AFTER_S, LiveView
from pipeline.settings import Settings

TOKEN = "a-long-enough-token"


def head(sensor: str, offset: int, low: float = 0.0) -> ForecastHead:
    return ForecastHead(sensor.encode(), 0, offset, 5, offset * 3_600_000_000, 1, True, 0, offset, (low, 5.0, 10.0))


def client_of(process: ServeProcess, host: str = "127.0.0.1:8050") -> TestClient:
    return TestClient(process.application(), base_url=f"http://{host}", raise_server_exceptions=False)


def process_of(**serve: Any) -> ServeProcess:
    return ServeProcess(Settings(serve=serve))


@pytest.fixture(scope="module")
def served() -> Iterator[TestClient]:
    """Three sensors; the last reading of `b` lies outside its interval."""
    process = process_of()
    for offset, sensor, value in ((0, "a/1", 1.0), (1, "b", 2.0), (2, "C%é", 3.0), (3, "a/1", 4.0), (4, "b", 20.0)):
        process.view.add_reading(0, offset, 1_000, (value,))
        one = head(sensor, offset)._replace(issued_at_us=(offset // 3) * 3_600_000_000)
        process.view.add_forecasts([one], np.zeros(8, np.int64))
    with client_of(process) as client:
        yield client


def test_a_target_is_compared_with_its_own_value_wherever_it_stands_among_the_features() -> None:
    process = ServeProcess(Settings(features=("other", "value"), targets=("value",)))
    for offset in range(2):
        process.view.add_reading(0, offset, 1_000, (500.0, 4.0))
        one = head("a", offset)._replace(issued_at_us=offset * 3_600_000_000)
        process.view.add_forecasts([one], np.zeros(8, np.int64))
    with client_of(process) as client:
        row = client.get("/api/sensor", params={"sensor": "a"}).json()
    assert (row["target"], row["value"], row["surprise"]) == ("value", 4.0, 0.0)


# --- access -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org"])
def test_no_address_beyond_this_machine_without_a_token(host: str) -> None:
    with pytest.raises(SettingsError, match="token"):
        check_reachable(Settings(serve={"host": host}).serve)
    check_reachable(Settings(serve={"host": host, "token": TOKEN}).serve)


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:8050", 200), ("localhost", 200), ("[::1]:8050", 200), ("evil.example:8050", 403), ("10.0.0.5", 403)],
)
def test_without_a_token_the_host_must_name_this_machine(host: str, status: int) -> None:
    assert client_of(process_of(), host).get("/api/status").status_code == status


def test_a_host_in_the_settings_is_known() -> None:
    assert (
        client_of(process_of(allowed_hosts=("Proxy.example",)), "proxy.example").get("/api/status").status_code == 200
    )


def test_a_request_of_another_site_is_refused() -> None:
    client = client_of(process_of())
    assert client.get("/api/status", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    navigation = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.get("/healthz", headers=navigation).status_code == 200


def test_with_a_token_only_addresses_without_data_are_open() -> None:
    client = client_of(process_of(token=TOKEN))
    closed = {route.path for route in ROUTES if route.method == "get" and client.get(route.path).status_code == 401}
    assert closed == {route.path for route in ROUTES if route.path.startswith("/api/") and route.method == "get"}
    assert client.get("/api/status", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert client.get("/api/status", headers={"Authorization": "Bearer wrong"}).status_code == 401


def test_a_login_exchanges_the_token_for_a_cookie_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.serve.security.FAILED_LOGIN_S", 0.0)
    client = client_of(process_of(token=TOKEN))
    assert client.post("/api/login", json={"token": "wrong"}).status_code == 401
    assert client.post("/api/login", data={"token": TOKEN}).status_code == 422
    answer = client.post("/api/login", json={"token": TOKEN})
    assert answer.status_code == 204
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert TOKEN not in cookie
    assert client.get("/api/status").status_code == 200
    client.post("/api/logout")
    assert COOKIE not in client.cookies
    assert client.get("/api/status").status_code == 401


def test_every_answer_has_the_headers(served: TestClient) -> None:
    for path in ("/", "/api/status", "/api/nothing", "/page/missing.js", "/api/sensors?limit=0"):
        headers = served.get(path).headers
        assert {name: headers[name] for name in HEADERS} == HEADERS, path


# --- answers ----------------------------------------------------------------------------------------------------------


def test_sensors_are_listed_by_surprise_with_paging_and_search(served: TestClient) -> None:
    page = served.get("/api/sensors").json()
    assert page["total"] == 3
    assert [row["sensor"] for row in page["rows"]] == ["b", "a/1", "C%é"]
    assert [row["surprise"] for row in page["rows"]] == [1.0, 0.0, None]
    by_name = served.get("/api/sensors?sort=name&offset=1&limit=1").json()
    assert [row["sensor"] for row in by_name["rows"]] == ["a/1"]
    found = served.get("/api/sensors", params={"search": "c%"}).json()
    assert [row["sensor"] for row in found["rows"]] == ["C%é"]
    assert served.get("/api/sensor", params={"sensor": "C%é"}).json()["sensor"] == "C%é"


def test_answers_have_the_documented_types(served: TestClient) -> None:
    for route in ROUTES:
        if route.method == "get" and route.handle is not None and route.answer is not Committed:
            answer = served.get(route.path, params={"sensor": "b"} if route.query.__name__ == "SensorQuery" else {})
            if answer.status_code == 200:
                msgspec.json.decode(answer.content, type=route.answer)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/sensors?limit=201", 422),
        ("/api/sensors?sort=size", 422),
        ("/api/sensors?page=2", 422),
        ("/api/sensor", 422),
        ("/api/sensor?sensor=unknown", 404),
        ("/api/sensor/history?sensor=b&steps=0", 422),
        ("/api/sensor/history?sensor=b&steps=1,2,3,4,5,6,7,8,9", 422),
        ("/api/sensor/forecast?sensor=unknown", 404),
        ("/api/forecast?partition=8&offset=0", 404),
        ("/api/events?kinds=swaps", 422),
        ("/api/nothing", 404),
        ("/page/../server.py", 404),
        ("/page/%2e%2e/server.py", 404),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(served: TestClient, path: str, status: int) -> None:
    answer = served.get(path)
    assert answer.status_code == status
    assert answer.json()["error"]


def test_only_reading_methods_exist(served: TestClient) -> None:
    for method in ("post", "put", "delete", "patch"):
        assert served.request(method, "/api/sensors").status_code == 405


def test_the_document_covers_every_route_and_parameter() -> None:
    found = document()
    assert found["openapi"] == "3.1.0"
    assert {(path, method) for path, methods in found["paths"].items() for method in methods} == {
        (route.path, route.method) for route in ROUTES
    }
    for route in ROUTES:
        operation = found["paths"][route.path][route.method]
        names = [field.name for field in msgspec.structs.fields(route.query)]
        assert [parameter["name"] for parameter in operation["parameters"]] == names
        assert {"403"} <= set(operation["responses"])
    schemas = found["components"]["schemas"]
    for reference in _references(found):
        assert reference.removeprefix("#/components/schemas/") in schemas, reference
    assert {kind.__name__ for kind in EVENTS.values()} <= set(schemas)


def _references(content: Any) -> Iterator[str]:
    if isinstance(content, dict):
        if isinstance(content.get("$ref"), str):
            yield content["$ref"]
        for value in content.values():
            yield from _references(value)
    elif isinstance(content, list):
        for value in content:
            yield from _references(value)


def test_every_served_address_is_in_the_table_of_routes() -> None:
    served = {getattr(route, "path", "") for route in process_of().application().routes}
    assert served - {"/", "/page"} == {route.path for route in ROUTES}


def test_parameters_are_parsed_as_their_types() -> None:
    sensors = next(route for route in ROUTES if route.path == "/api/sensors")
    assert parse_query(sensors.query, {"limit": "7"}).limit == 7
    assert parse_kinds("status") == {"status"}
    with pytest.raises(Refused, match="there is no parameter 'nothing'"):
        parse_query(sensors.query, {"nothing": "1"})


def test_a_view_is_stale_without_an_answer_and_fresh_after_one() -> None:
    now = [1_000.0]
    view = LiveView(Settings(), lambda: now[0])
    now[0] += STALE_AFTER_S + 1
    assert view.stale_since_ms == 1_000_000
    view.broker_answered(LAG_WATCH)
    assert view.stale_since_ms is None
    now[0] += STALE_AFTER_S + 1
    assert view.stale_since_ms == round((1_000 + STALE_AFTER_S + 1) * 1_000)


def test_a_view_without_its_follower_is_stale_although_a_broker_answers() -> None:
    now = [1_000.0]
    view = LiveView(Settings(), lambda: now[0])
    view.broker_failed(FOLLOWER, "the thread has ended")
    for _ in range(7):
        now[0] += 1
        view.broker_answered(LAG_WATCH)
    assert view.stale_since_ms == 1_000_000
    assert view.trouble == "the thread has ended"
    view.broker_answered(FOLLOWER)
    assert (view.stale_since_ms, view.trouble) == (None, "")


def test_an_error_of_the_program_is_an_answer_with_the_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("a secret path")

    process = process_of()
    with client_of(process) as client:
        monkeypatch.setattr(process.view, "locked", fail)
        answer = client.get("/api/dead-letters")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "log" in answer.json()["remedy"]
    assert all(answer.headers[name] == value for name, value in HEADERS.items())


@pytest.mark.parametrize(
    "path", ["/page/%00", "/page/..%2f..%2fserver.py", "/page/%2e%2e/server.py", "/page/", "/page"]
)
def test_no_file_outside_the_page_is_sent(served: TestClient, path: str) -> None:
    answer = served.get(f"/page/{path}")
    assert answer.status_code == 404
    assert "import" not in answer.text


# --- events -----------------------------------------------------------------------------------------------------------


def published(offset: int, sensor: str = "a") -> Published:
    event = ForecastsEvent(EventId(0, (offset + 1,), (1,), ()), [head(sensor, offset)], ())
    return Published(event, event.id)


def hub_of(**serve: Any) -> EventHub:
    settings = Settings(serve=serve)
    return EventHub(settings, LiveView(settings, lambda: 0.0))


ALL = frozenset(("forecasts", "dead_letter", "status"))


def test_a_slow_browser_loses_its_connection_and_its_queue() -> None:
    async def fill() -> None:
        hub = hub_of()
        slow = hub.open(ALL, None, None)
        for offset in range(300):
            hub.publish(EventId(0, (offset + 1,), (1,), ()), [published(offset)])
        assert slow.is_closed
        assert not slow.queue

    asyncio.run(fill())


def test_a_stream_of_one_sensor_gets_only_its_forecasts() -> None:
    async def fill() -> bytes:
        hub = hub_of()
        stream = hub.open(frozenset(("forecasts",)), b"b", None)
        hub.publish(EventId(0, (2,), (1,), ()), [published(0, "a"), published(1, "b")])
        return stream.take()

    text = asyncio.run(fill())
    assert text.count(b"event: forecasts") == 1
    assert b'"sensor":"b"' in text


def test_a_browser_that_missed_nothing_continues_without_a_question_to_kafka() -> None:
    async def resume() -> bytes:
        hub, written = hub_of(), bytearray()
        hub.publish(EventId(0, (0,), (0,), ()), ())
        hub.publish(published(0).id, [published(0)])
        stream = hub.open(ALL, None, published(0).id)
        hub.publish(published(1).id, [published(1)])

        async def write(text: bytes) -> None:
            written.extend(text)
            if b"event: forecasts" in text:
                stream.close()

        await asyncio.wait_for(hub.send(stream, write), 5)
        return bytes(written)

    sent = asyncio.run(resume())
    assert sent.count(b"event: forecasts") == 1
    assert b'"offset":1,' in sent


def test_streams_are_limited() -> None:
    async def open_two() -> None:
        hub = hub_of(most_streams=1)
        first = hub.open(ALL, None, None)
        with pytest.raises(TooManyStreams):
            hub.open(ALL, None, None)
        hub.forget(first)
        hub.open(ALL, None, None)

    asyncio.run(open_two())
