"""Apache Kafka's jars: the ones that ``kafka.jars`` locks, downloaded once for all clones and checked by SHA-256.

Run ``python -m deploy.jars VERSION`` to write ``kafka.jars`` for another Kafka version.
"""

import hashlib
import shutil
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import requests
from jgo.config import GlobalSettings
from jgo.constants import MAVEN_CENTRAL_URL
from jgo.maven import Artifact, MavenContext
from jgo.parse import Coordinate

from pipeline.errors import StackError

LOCK_FILE = Path(__file__).with_name("kafka.jars")
# Kafka's POM names no logging binding, because its distribution brings one; without it the broker's log stays empty.
# The binding has the version of the log4j that Kafka depends on.
LOGGING_BINDING = "org.apache.logging.log4j:log4j-slf4j-impl"
DOWNLOADS_AT_ONCE = 8  # the jars are small, so latency is the limit
ATTEMPTS = 3

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LockedJar:
    """One jar: its Maven coordinate ``group:artifact:version`` and the SHA-256 of its bytes."""

    coordinate: str
    sha256: str

    @property
    def file_name(self) -> str:
        """The jar's name in the class-path folder."""
        _, artifact, version = self.coordinate.split(":")
        return f"{artifact}-{version}.jar"


def read_lock() -> list[LockedJar]:
    """The locked jars, Kafka's own server first."""
    lines = LOCK_FILE.read_text(encoding="utf-8").splitlines()
    return [LockedJar(*line.split()) for line in lines if line and not line.startswith("#")]


def fetch_jars(cache: Path, progress: Progress) -> Path:
    """The folder that holds every locked jar; downloads them if it does not exist.

    The folder appears by one rename after all checksums match. So neither an interrupted download nor two at once leave
    an incomplete class path.

    Args:
        cache: folder for downloads, shared between clones.
        progress: called with (jars done, all jars) during the download, from several threads.

    Raises:
        StackError: a jar cannot be downloaded or has another checksum, or the folder cannot be written.
    """
    locked = read_lock()
    # The name has a hash of the lock file: another set of jars gets another folder.
    folder = cache / f"kafka-{hashlib.sha256(LOCK_FILE.read_bytes()).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="downloading-") as staging:
            _download(locked, Path(staging), progress)
            _publish(locked, Path(staging), folder)
    except OSError as error:
        raise StackError(
            f"Kafka's jars cannot be kept in {cache}: {error.strerror or error}. Make the folder writable, or name "
            "another one with STREAMGRU_STACK__CACHE."
        ) from error
    return folder


def _download(locked: list[LockedJar], repository: Path, progress: Progress) -> None:
    context = _maven(repository)
    progress(0, len(locked))
    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE, thread_name_prefix="jars") as pool:
        downloads = [pool.submit(_download_one, context, jar) for jar in locked]
        try:
            for done, download in enumerate(downloads, start=1):
                download.result()
                progress(done, len(locked))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _download_one(context: MavenContext, jar: LockedJar) -> None:
    failure = ""
    for _ in range(ATTEMPTS):
        artifact = _artifact(context, jar.coordinate)
        try:
            found = hashlib.sha256(artifact.resolve().read_bytes()).hexdigest()
        except (requests.RequestException, RuntimeError) as error:
            failure = str(error)
        else:
            if found == jar.sha256:
                return
            failure = f"the file's SHA-256 is {found}, but {LOCK_FILE.name} has {jar.sha256}"
        artifact.cached_path.unlink(missing_ok=True)  # jgo does not check the files in its cache
    raise StackError(
        f"Kafka's jar {jar.coordinate} cannot be downloaded from Maven Central: {failure}. Check the network or the "
        "proxy, or name a mirror as 'central' under [repositories] in jgo's configuration file; then try again."
    )


def _publish(locked: list[LockedJar], repository: Path, folder: Path) -> None:
    context = _maven(repository)
    complete = repository / "jars"
    complete.mkdir()
    for jar in locked:
        shutil.move(_artifact(context, jar.coordinate).cached_path, complete / jar.file_name)
    try:
        complete.rename(folder)
    except OSError:
        if not folder.is_dir():  # if it exists, another process has finished the same download
            raise


def _maven(repository: Path) -> MavenContext:
    remotes = {"central": MAVEN_CENTRAL_URL, **GlobalSettings.load().repositories}
    return MavenContext(repo_cache=repository, remote_repos=remotes, timeout=30)


def _artifact(context: MavenContext, coordinate: str) -> Artifact:
    group, artifact, version = coordinate.split(":")
    return context.project(group, artifact).at_version(version).artifact()


def write_lock(version: str) -> None:
    """Resolve Kafka ``version`` and its dependencies, and write their checksums to the lock file."""
    with tempfile.TemporaryDirectory() as repository:
        context = _maven(Path(repository))
        server = context.create_dependency(Coordinate.parse(f"org.apache.kafka:kafka_2.13:{version}"))
        inputs, needed = context.resolver.resolve([server])
        artifacts = [dependency.artifact for dependency in inputs + needed]
        (log4j,) = (artifact.version for artifact in artifacts if artifact.artifactId == "log4j-core")
        artifacts.append(_artifact(context, f"{LOGGING_BINDING}:{log4j}"))
        content = "Maven coordinate and SHA-256 of each jar on Kafka's class path."
        lines = [f"# Written by `python -m deploy.jars VERSION`: {content}"]
        for artifact in artifacts:
            sha256 = hashlib.sha256(artifact.resolve().read_bytes()).hexdigest()
            lines.append(f"{artifact.groupId}:{artifact.artifactId}:{artifact.version} {sha256}")
    LOCK_FILE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_lock(sys.argv[1])
