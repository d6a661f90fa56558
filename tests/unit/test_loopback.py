"""A proxy that the environment names is asked for other machines only, never for servers on loopback addresses."""

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
import requests

from flows.orchestrator import connect, prefect_environment
from pipeline.errors import RegistryUnreachable, StackError
from pipeline.loopback import is_loopback, without_proxy
from pipeline.registry.mlflow_session import MlflowSession
from pipeline.settings import Settings

DEAD = "http://127.0.0.1:9"  # the port of the discard service, on which nobody listens


class Answer(BaseHTTPRequestHandler):
    """Answers every request as MLflow answers for a model without aliases."""

    def do_GET(self) -> None:
        body = b'{"registered_model": {"name": "m"}}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{found.server_port}"
        found.shutdown()


@pytest.fixture(autouse=True)
def _dead_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, DEAD)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_prefects_health_check_on_loopback_does_not_ask_the_proxy(
    server: str, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))  # `connect` sets Prefect's variables for good
    connect(Settings(prefect_api_url=f"http://{server.replace('127.0.0.1', host)}/api"), console=False)


def test_a_server_elsewhere_is_asked_through_the_proxy() -> None:
    with pytest.raises(StackError, match="Connection refused"):
        connect(Settings(prefect_api_url="http://prefect.example/api"), console=False)


def test_mlflows_client_on_loopback_does_not_ask_the_proxy(server: str) -> None:
    before = dict(os.environ)
    with MlflowSession(f"http://{server}", "m").client("a test") as client:
        assert client.get_registered_model("m").name == "m"
    assert {name: os.environ.get(name) for name in before} == before
    assert "NO_PROXY" not in os.environ
    with (
        pytest.raises(RegistryUnreachable),
        MlflowSession("http://mlflow.example", "m").client("a test") as client,
    ):
        client.get_registered_model("m")


def test_children_reach_loopback_without_the_proxy(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in prefect_environment(Settings()).items():
        monkeypatch.setenv(name, value)
    assert requests.get(f"http://{server}", timeout=5).ok
    assert httpx.get(f"http://{server}").is_success
    with pytest.raises(httpx.ConnectError):
        httpx.get("http://prefect.example")


def test_exceptions_that_a_user_named_stay() -> None:
    merged = without_proxy({"NO_PROXY": "corp.example, 10.0.0.0/8"}, "http://127.0.0.2:5000", "http://mlflow.example")
    assert merged["no_proxy"] == merged["NO_PROXY"]
    assert merged["NO_PROXY"] == "corp.example,10.0.0.0/8,127.0.0.1,localhost,::1,127.0.0.2"
    assert without_proxy({"no_proxy": "*"})["NO_PROXY"] == "*"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("127.3.2.1", True),
        ("::1", True),
        ("a.localhost", True),
        ("10.0.0.1", False),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_loopback_is_recognised_without_a_name_server(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
