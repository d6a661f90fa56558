"""The local stack: Kafka, MLflow and Prefect on this machine, each in a process of its own, all data under HOME."""

import fcntl
import os
import socket
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
from deploy.service import HOST, Report, Service, folder_error
from pipeline.errors import StackError
from pipeline.settings import Settings

SERVICES = ("kafka", "mlflow", "prefect")
# MLflow and Prefect take 20 s on a quiet machine; three minutes is a busy one, or a database to migrate.
START_TIMEOUT_S = 180.0
POLL_S = 0.1
# Meant for the user's other servers, these would lead ours to other databases and addresses.
FOREIGN_VARIABLES = ("MLFLOW_", "PREFECT_")


def _no_report(service: str, doing: str, *, done: bool = False) -> None:
    pass


@dataclass(frozen=True)
class ServiceStatus:
    """How one service stands; ``pid`` is None where no process of ours is alive."""

    name: str
    state: Literal["up", "not answering", "on another port", "down"]
    address: str
    pid: int | None
    log: Path

    @property
    def up(self) -> bool:
        """Whether clients that go by the settings are answered."""
        return self.state == "up"


class Stack:
    """The services that the settings describe. Several of these may look at one HOME, also from several processes."""

    def __init__(self, settings: Settings) -> None:
        self._home = settings.home.resolve()
        services: tuple[Service, ...] = (Broker(settings), MLflowServer(settings), PrefectServer(settings))
        self._services = {service.name: service for service in services}
        self._processes = {name: DetachedProcess(name, self._home) for name in self._services}

    def up(self, services: Sequence[str] = SERVICES, report: Report = _no_report) -> None:
        """Start what does not run yet, all at once, and return when everything answers.

        What one service's failure leaves running is the others; what has not come up is stopped again.

        Raises:
            StackError: naming each service that did not come up, why, and its log.
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
        """Stop the services and all their workers, and nothing else; what does not run is left as it is.

        Raises:
            StackError: naming each process that could not be stopped.
        """
        with ThreadPoolExecutor(len(services), thread_name_prefix="stack") as pool:
            stops = [pool.submit(self._take_down, name, report) for name in services]
        _raise_together(stops)

    def status(self) -> list[ServiceStatus]:
        """How each service stands, in the order kafka, mlflow, prefect."""
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
                    f"{service.name} runs on port {record.port} (process {record.pid}), and the settings say "
                    f"{service.port}: `streamgru down` first, or set the port back."
                )
            if record is None:
                process.stop()  # workers may have survived their parent, and would keep the port
                _require_free(service)
                launch = service.prepare(report)
                if cancelled.is_set():
                    return
                report(service.name, "starting")
                ours = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN_VARIABLES)}
                process.start(launch.command, ours | dict(launch.environment), service.port)
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
                ended = "has ended" if code is None else f"has ended with exit code {code}"
                raise StackError(self._startup_error(service, process, f"{ended} while it was starting"))
            if answers:
                return
            if cancelled.wait(POLL_S):
                raise StackError(f"{service.name} was not waited for")
            if time.monotonic() > deadline:
                raise StackError(
                    self._startup_error(service, process, f"has not answered within {START_TIMEOUT_S:.0f} s")
                )

    def _startup_error(self, service: Service, process: DetachedProcess, what: str) -> str:
        return (
            f"{service.name} {what} (port {service.port}, data in {service.data}). "
            f"The end of its log, {process.log_path}:\n{process.last_lines()}"
        )

    def _take_down(self, name: str, report: Report) -> None:
        with self._locked(self._services[name], report):
            report(name, "stopping")
            report(name, "stopped" if self._processes[name].stop() else "was not running", done=True)

    @contextmanager
    def _locked(self, service: Service, report: Report) -> Iterator[None]:
        """Hold the service against another `up` or `down`, here or elsewhere; let go also when this process dies."""
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
    """Raise one error that tells all that went wrong; our own bugs as they are."""
    failures = [error for future in futures if (error := future.exception()) is not None]
    for error in failures:
        if not isinstance(error, StackError):
            raise error
    if failures:
        raise StackError("\n".join(str(error) for error in failures)) from failures[0]


def _require_free(service: Service) -> None:
    with socket.socket() as probe:
        # As the servers do: a connection that was closed a moment ago does not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, service.port))
        except OSError as error:
            variable = f"STREAMGRU_STACK__{service.name.upper()}_PORT"
            raise StackError(
                f"{service.name} cannot have port {service.port}: {_owner(service.port) or error.strerror}. Stop that "
                f"program, or choose another port with {variable}."
            ) from error


def _owner(port: int) -> str | None:
    """Who listens on the port, where the system lets us know."""
    try:
        pid = next(
            connection.pid
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and tuple(connection.laddr)[1] == port and connection.pid
        )
        return f"{psutil.Process(pid).name()} (process {pid}) listens there"
    except (psutil.Error, StopIteration):
        return None
