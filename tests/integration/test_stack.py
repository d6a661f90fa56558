"""The local stack, on the real servers."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from kafka import TopicPartition
from kafka.admin import NewTopic

from deploy.processes import DetachedProcess
from deploy.stack import Stack
from pipeline.errors import StackError
from pipeline.kafka.clients import make_admin, make_consumer, make_producer
from pipeline.settings import Settings
from tests.ports import free_port, free_ports
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

START_LIMIT_S = 240


@pytest.fixture
def own_settings(tmp_path: Path) -> Iterator[Settings]:
    """Settings of a stack for one test that would disturb other tests."""
    kafka, mlflow, prefect = free_ports(3)
    settings = Settings(home=tmp_path, stack={"kafka_port": kafka, "mlflow_port": mlflow, "prefect_port": prefect})
    yield settings
    for name in ("kafka", "mlflow", "prefect"):
        DetachedProcess(name, tmp_path).stop()


def streamgru(settings: Settings, *arguments: str) -> subprocess.Popen[str]:
    stack = settings.stack
    variables = {
        "STREAMGRU_HOME": str(settings.home),
        "STREAMGRU_STACK__KAFKA_PORT": str(stack.kafka_port),
        "STREAMGRU_STACK__MLFLOW_PORT": str(stack.mlflow_port),
        "STREAMGRU_STACK__PREFECT_PORT": str(stack.prefect_port),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.cli", *arguments],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(command: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = command.communicate(timeout=START_LIMIT_S)
    return command.returncode, out, err


def using(home: Path) -> list[psutil.Process]:
    """Every process whose command line or environment names the folder."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if process.pid != os.getpid() and any(str(home) in word for word in words):
            found.append(process)
    return found


def test_a_second_up_finds_the_broker_running(broker: Settings) -> None:
    stack = Stack(broker)
    before = stack.status()[0]
    assert before.up
    assert before.address == broker.kafka.bootstrap_servers
    said: list[str] = []
    stack.up(("kafka",), lambda service, doing, *, done=False: said.append(doing))
    assert stack.status()[0] == before
    assert said == [f"up at {before.address}"]


@pytest.mark.long(23)
def test_the_commands_up_status_and_down_leave_no_process_running(own_settings: Settings) -> None:
    code, out, err = finish(streamgru(own_settings, "up"))
    assert (code, err) == (0, "")
    addresses = [own_settings.kafka.bootstrap_servers, own_settings.mlflow_tracking_uri, own_settings.prefect_api_url]
    assert all(f"up at {address}" in out for address in addresses)

    code, out, _ = finish(streamgru(own_settings, "status"))
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines()[1:]] == [
        [name, "up", address] for name, address in zip(("kafka", "mlflow", "prefect"), addresses, strict=True)
    ]
    assert len(using(own_settings.home)) == 3, "each server is one process"

    code, out, err = finish(streamgru(own_settings, "down"))
    assert (code, err) == (0, "")
    assert using(own_settings.home) == []

    code, out, _ = finish(streamgru(own_settings, "status"))
    assert code == 1
    assert out.count(" down ") == 3


def test_ctrl_c_during_the_start_leaves_no_process_running(own_settings: Settings) -> None:
    command = streamgru(own_settings, "up", "mlflow")
    assert command.stdout is not None
    assert command.stdout.readline() == "mlflow  starting\n"
    command.send_signal(signal.SIGINT)
    code, _, err = finish(command)
    assert code == 130
    assert "Traceback" not in err
    assert using(own_settings.home) == []


def test_a_killed_broker_has_its_data_after_a_restart(frail_broker: Settings) -> None:
    stack = Stack(frail_broker)
    with closing(make_admin(frail_broker)) as admin:
        admin.create_topics([NewTopic("kept", num_partitions=1, replication_factor=1)])
    with closing(make_producer(frail_broker)) as producer:
        sent = [producer.send("kept", key=b"a", value=b"%d" % number, partition=0) for number in range(100)]
        producer.flush()
        assert [future.get().offset for future in sent] == list(range(100))

    pid = stack.status()[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: stack.status()[0].state == "down", 30, "the killed broker is seen as down")
    stack.up(("kafka",))

    with closing(make_consumer(frail_broker)) as consumer:
        partition = TopicPartition("kept", 0)
        consumer.assign([partition])
        consumer.seek_to_beginning(partition)
        values: list[bytes] = []
        wait_until(
            lambda: (
                values.extend(record.value for record in consumer.poll(200).get(partition, [])) or len(values) >= 100
            ),
            60,
            "the records sent before the kill were read",
        )
    assert values == [b"%d" % number for number in range(100)]


@pytest.mark.parametrize("service", ["kafka", "mlflow", "prefect"])
def test_a_port_of_another_program_is_an_error_that_names_port_and_program(
    service: str, own_settings: Settings
) -> None:
    port = getattr(own_settings.stack, f"{service}_port")
    with closing(socket.create_server(("127.0.0.1", port))), pytest.raises(StackError) as raised:
        Stack(own_settings).up((service,))
    assert f"{service} cannot use port {port}" in str(raised.value)
    assert f"process {os.getpid()}" in str(raised.value)


def test_an_up_with_another_port_does_not_start_a_second_broker(broker: Settings) -> None:
    moved = broker.model_copy(update={"stack": broker.stack.model_copy(update={"kafka_port": free_port()})})
    with pytest.raises(StackError, match=f"kafka runs on port {broker.stack.kafka_port}"):
        Stack(moved).up(("kafka",))
    assert Stack(moved).status()[0].state == "on another port"


def test_a_file_in_place_of_a_data_folder_is_an_error_that_names_it(own_settings: Settings) -> None:
    for name in ("kafka", "mlflow", "prefect"):
        (own_settings.home / name).touch()
    with pytest.raises(StackError) as raised:
        Stack(own_settings).up()
    for name in ("kafka", "mlflow", "prefect"):
        assert f"{name} cannot keep its data in {own_settings.home / name}" in str(raised.value)


@pytest.mark.parametrize(("service", "database"), [("mlflow", "mlflow/mlflow.db"), ("prefect", "prefect/prefect.db")])
def test_a_damaged_database_is_an_error_that_names_it(service: str, database: str, own_settings: Settings) -> None:
    path = own_settings.home / database
    path.parent.mkdir()
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(StackError, match=f"{service}'s database {path} cannot be read"):
        Stack(own_settings).up((service,))


def test_a_damaged_broker_folder_is_an_error_and_is_not_changed(own_settings: Settings) -> None:
    meta = own_settings.home / "kafka" / "data" / "meta.properties"
    meta.parent.mkdir(parents=True)
    meta.write_text("garbage\n")
    with pytest.raises(StackError, match=f"{meta} is missing or does not name the cluster"):
        Stack(own_settings).up(("kafka",))
    assert meta.read_text() == "garbage\n"


def test_a_broker_that_ends_during_its_start_is_an_error_with_the_end_of_its_log(own_settings: Settings) -> None:
    data = own_settings.home / "kafka" / "data"
    data.mkdir(parents=True)
    (data / "meta.properties").write_text("version=1\nnode.id=7\ncluster.id=another-brokers-folder\n")
    with pytest.raises(StackError) as raised:
        Stack(own_settings).up(("kafka",))
    message = str(raised.value)
    assert "kafka ended during its start, with exit code 1" in message
    assert str(own_settings.home / "logs" / "kafka.log") in message
    assert "Stored node id 7 doesn't match" in message
    assert using(own_settings.home) == []
