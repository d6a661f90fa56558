"""The local stack: Kafka, MLflow and Prefect on this machine, each in a process of its own, all data under HOME."""

import fcntl
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from deploy.broker import Broker
from deploy.processes import DetachedProcess
from deploy.servers import MLflowServer, PrefectServer
from deploy.service import Report, Service, bind, folder_error
from pipeline.errors import StackError
from pipeline.loopback import without_proxy
from pipeline.settings import Settings

SERVICES = ("kafka", "mlflow", "prefect")
# MLflow and Prefect take 20 s on an idle machine, and longer on a busy one or to migrate a database.
START_TIMEOUT_S = 180.0
POLL_S = 0.1
# How long a port may stay bound without an owner: the sockets of a killed server outlive its process for a moment.
PORT_RELEASE_S = 2.0
# Prefixes of variables for the user's other servers; ours must not read their databases and addresses.
FOREIGN_VARIABLES = ("MLFLOW_", "PREFECT_")


def _no_report(service: str, doing: str, *, done: bool = False) -> None:
    pass


@dataclass(frozen=True)
class ServiceStatus:
    """The state of one service."""

    name: str
    state: Literal["up", "not answering", "on another port", "down"]
    address: str
    pid: int | None  # None if no process that `streamgru up` started is alive
    log: Path

    @property
    def up(self) -> bool:
        """Whether the service answers at the address in the settings."""
        return self.state == "up"


class Stack:
    """The services that the settings describe. Several instances and processes may share one HOME."""

    def __init__(self, settings: Settings) -> None:
        self._home = settings.home.resolve()
        services: tuple[Service, ...] = (Broker(settings), MLflowServer(settings), PrefectServer(settings))
        self._services = {service.name: service for service in services}
        self._processes = {name: DetachedProcess(name, self._home) for name in self._services}

    def up(self, services: Sequence[str] = SERVICES, report: Report = _no_report) -> None:
        """Start the services that do not run, all at once, and return when all answer.

        A service that fails is stopped again; the other services keep running.

        Raises:
            StackError: services did not start; names each with its reason and log.
        """
        cancelled = threading.Event()
        with ThreadPoolExecutor(len(services), thread_name_prefix="stack") as pool:
            try:
                starts = [pool.submit(self._bring_up, self._services[name], report, cancelled) for name in services]
                wait(starts)
            except BaseException:
                cancelled.set()
                raise
        _raise_together(starts)

    def down(self, services: Sequence[str] = SERVICES, report: Report = _no_report) -> None:
        """Stop the running services with all their workers.

        Raises:
            StackError: processes did not end; names each.
        """
        with ThreadPoolExecutor(len(services), thread_name_prefix="stack") as pool:
            stops = [pool.submit(self._take_down, name, report) for name in services]
        _raise_together(stops)

    def status(self) -> list[ServiceStatus]:
        """The state of each service, in the order kafka, mlflow, prefect."""
        with ThreadPoolExecutor(len(self._services)) as pool:
            return list(pool.map(self._status, self._services.values()))

    def _status(self, service: Service) -> ServiceStatus:
        process = self._processes[service.name]
        record = process.running()
        if record is None:
            return ServiceStatus(service.name, "down", service.address(service.port), None, process.log_path)
        state: Literal["up", "not answering", "on another port"] = "on another port"
        if record.port == service.port:
            state = "up" if service.answers() else "not answering"
        return ServiceStatus(service.name, state, service.address(record.port), record.pid, process.log_path)

    def _bring_up(self, service: Service, report: Report, cancelled: threading.Event) -> None:
        process = self._processes[service.name]
        with self._locked(service, report):
            record = process.running()
            if record is not None and record.port != service.port:
                raise StackError(
                    f"{service.name} runs on port {record.port} (process {record.pid}), but the settings name port "
                    f"{service.port}. Run `streamgru down` first, or set the port back."
                )
            if record is None:
                process.stop()  # workers that outlive their parent keep the port
                _require_free(service)
                launch = service.prepare(report)
                if cancelled.is_set():
                    return
                report(service.name, "starting")
                ours = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN_VARIABLES)}
                # The servers' own clients, such as Prefect's services, talk to this machine.
                ours |= without_proxy(os.environ) | dict(launch.environment)
                process.start(launch.command, ours, service.port)
            try:
                self._await_answer(service, process, cancelled)
            except BaseException:
                if record is None:
                    process.stop()
                raise
            report(service.name, f"up at {service.address(service.port)}", done=True)

    def _await_answer(self, service: Service, process: DetachedProcess, cancelled: threading.Event) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            answers = service.answers()
            if process.running() is None:
                code = process.exit_code()
                failure = "ended during its start" + ("" if code is None else f", with exit code {code}")
                break
            if answers:
                return
            if cancelled.wait(POLL_S):
                raise StackError(f"the start of {service.name} was cancelled")
            if time.monotonic() > deadline:
                failure = f"did not answer within {START_TIMEOUT_S:.0f} s"
                break
        raise StackError(
            f"{service.name} {failure} (port {service.port}, data in {service.data}). "
            f"The end of its log, {process.log_path}:\n{process.last_lines()}"
        )

    def _take_down(self, name: str, report: Report) -> None:
        with self._locked(self._services[name], report):
            report(name, "stopping")
            report(name, "stopped" if self._processes[name].stop() else "was not running", done=True)

    @contextmanager
    def _locked(self, service: Service, report: Report) -> Iterator[None]:
        """Keep other `up` and `down` commands, in any process, off the service; the lock dies with this process."""
        path = self._home / "run" / f"{service.name}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.open("w")
        except OSError as error:
            raise folder_error(service.name, self._home, error) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                report(service.name, "waiting for another command that starts or stops it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _raise_together(futures: Sequence[Future[None]]) -> None:
    """Raise one ``StackError`` with the messages of all; any other error, which is a bug, is raised unchanged."""
    failures = [error for future in futures if (error := future.exception()) is not None]
    for error in failures:
        if not isinstance(error, StackError):
            raise error
    if failures:
        raise StackError("\n".join(str(error) for error in failures)) from failures[0]


def _require_free(service: Service) -> None:
    deadline = time.monotonic() + PORT_RELEASE_S
    while True:
        try:
            bind(service.port)
            return
        except OSError as error:
            owner = _owner(service.port)
            if owner is not None or time.monotonic() > deadline:
                raise StackError(
                    f"{service.name} cannot use port {service.port}: {owner or error.strerror}. Stop the other "
                    f"program, or choose another port with STREAMGRU_STACK__{service.name.upper()}_PORT."
                ) from error
        time.sleep(POLL_S)


def _owner(port: int) -> str | None:
    """The program that listens on the port; None if the system does not tell."""
    try:
        pid = next(
            connection.pid
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and tuple(connection.laddr)[1] == port and connection.pid
        )
        return f"{psutil.Process(pid).name()} (process {pid}) listens there"
    except (psutil.Error, StopIteration):
        return None
