"""An archive of Kafka's classes, loaded and linked ahead of time (JEP 514): a broker starts in half the CPU time.

Java makes the archive at the end of a rehearsal, a broker that runs for some seconds. Without
an archive, or with one that Java refuses, Kafka starts as usual.
"""

import fcntl
import hashlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from pipeline.errors import StackError

# Time from SIGTERM to the end of the rehearsal. Java writes the archive in this time, which takes 5 s of a core.
WRITE_TIMEOUT_S: Final = 120.0
# Java checks the whole archive, and says nothing about one that it refuses: Kafka's log would begin with warnings.
CAUTIOUS: Final = ("-XX:+VerifySharedSpaces", "-Xlog:aot*=off", "-Xlog:cds*=off")

Rehearse = Callable[[Path, Sequence[str]], "subprocess.Popen[bytes] | None"]


def archive_options(jars: Path, command: Sequence[str], rehearse: Rehearse) -> tuple[str, ...]:
    """Java's options for a start with the archive; makes the archive unless it exists. No error is raised.

    The archive lies next to the jars. Its name has a hash of Java's version, Java's options and the jars, which Java
    compares with those of the archive. Several processes may call this function at once: the first makes the archive,
    and the other processes start without it.

    Args:
        jars: folder of the jars.
        command: Java with its options for Kafka, without the main class.
        rehearse: runs a broker in the given empty folder, with the given additional options of Java, until the broker
            answers. Returns its process, or ``None`` if it did not answer.
    """
    try:
        archive = jars / f"classes-{_fingerprint(jars, command)}.aot"
        if not archive.exists():
            with _locked(jars):
                _make(archive, command, rehearse)
        is_whole = archive.stat().st_size > 0
    except (OSError, subprocess.SubprocessError, StackError):
        return ()
    return (f"-XX:AOTCache={archive}", *CAUTIOUS) if is_whole else ()


def _fingerprint(jars: Path, command: Sequence[str]) -> str:
    """A hash of all that makes an archive fit; clones with equal Java and jars share one archive."""
    java = Path(command[0]).parents[1]
    parts = [(java / "release").read_text(encoding="utf-8"), *(word for word in command if word.startswith("-X"))]
    for file in (java / "lib" / "modules", *sorted(jars.glob("*.jar"))):
        found = file.stat()
        parts.append(f"{file.name} {found.st_size} {found.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of the folder; raises ``BlockingIOError`` if another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _make(archive: Path, command: Sequence[str], rehearse: Rehearse) -> None:
    """Make the archive, or an empty file if Java cannot make it, so that not every start tries again."""
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix="archiving-", ignore_cleanup_errors=True) as folder:
        made = Path(folder) / "made.aot"
        process = rehearse(Path(folder), (f"-XX:AOTCacheOutput={made}",))
        if process is not None:
            _end(process)
        if process is None or not _is_accepted(made, command):
            made.write_bytes(b"")
        made.replace(archive)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the rehearsal, and wait until Java has written the archive."""
    try:
        process.terminate()
        process.wait(WRITE_TIMEOUT_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _is_accepted(archive: Path, command: Sequence[str]) -> bool:
    """Whether Java maps the archive, which is incomplete if the disk is full."""
    check = [*command, "-XX:AOTMode=on", f"-XX:AOTCache={archive}", *CAUTIOUS, "-version"]
    return subprocess.run(check, capture_output=True, check=False, timeout=WRITE_TIMEOUT_S).returncode == 0
