"""Kafka's jars are installed all together and unaltered, or not at all."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import jars
from pipeline.errors import StackError

ARTEFACT = "org.example:example:1.0"
CONTENT = b"a jar"
CONTENT_SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A Maven repository on this machine, which jgo's configuration file names as its central one."""
    folder = tmp_path / "repository"
    jar = folder / "org/example/example/1.0/example-1.0.jar"
    jar.parent.mkdir(parents=True)
    jar.write_bytes(CONTENT)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        configuration = tmp_path / "jgo.conf"
        configuration.write_text(f"[repositories]\ncentral = http://127.0.0.1:{server.server_port}\n")
        monkeypatch.setenv("JGO_CONFIG_FILE", str(configuration))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield folder
        server.shutdown()


def lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *lines: str) -> None:
    path = tmp_path / "kafka.jars"
    path.write_text("# coordinate and SHA-256\n" + "\n".join(lines) + "\n")
    monkeypatch.setattr(jars, "LOCK_FILE", path)


def ignore(done: int, total: int) -> None:
    pass


def test_the_locked_jars_come_from_the_configured_mirror_once(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock(monkeypatch, tmp_path, f"{ARTEFACT} {CONTENT_SHA256}")
    seen: list[tuple[int, int]] = []
    folder = jars.fetch_jars(tmp_path / "cache", lambda done, total: seen.append((done, total)))
    assert [(jar.name, jar.read_bytes()) for jar in folder.iterdir()] == [("example-1.0.jar", CONTENT)]
    assert seen == [(0, 1), (1, 1)]
    assert jars.fetch_jars(tmp_path / "cache", lambda done, total: pytest.fail("downloads again")) == folder


def test_an_altered_jar_is_refused_and_no_jar_is_installed(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock(monkeypatch, tmp_path, f"{ARTEFACT} {'0' * 64}")
    with pytest.raises(StackError, match=r"org\.example:example:1\.0 .* SHA-256"):
        jars.fetch_jars(tmp_path / "cache", ignore)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_jar_that_cannot_be_downloaded_is_named_and_no_jar_is_installed(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock(monkeypatch, tmp_path, f"{ARTEFACT} {CONTENT_SHA256}", f"org.example:missing:1.0 {CONTENT_SHA256}")
    with pytest.raises(StackError, match=r"org\.example:missing:1\.0 cannot be downloaded"):
        jars.fetch_jars(tmp_path / "cache", ignore)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(StackError, match="STREAMGRU_STACK__CACHE"):
        jars.fetch_jars(tmp_path / "cache", ignore)


def test_the_lock_names_each_jar_once_with_a_whole_checksum() -> None:
    locked = jars.read_lock()
    assert locked[0].coordinate == "org.apache.kafka:kafka_2.13:4.3.0"
    assert len({jar.file_name for jar in locked}) == len(locked)
    assert all(len(jar.sha256) == 64 for jar in locked)
