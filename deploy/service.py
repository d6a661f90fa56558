"""The interface between the stack and its services."""

import socket
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from pipeline.errors import StackError
from pipeline.settings import Settings

HOST = "127.0.0.1"
# Of MLflow and Prefect.
COMMON_ENVIRONMENT = {
    "DO_NOT_TRACK": "true",
    # Otherwise `python -m` looks for modules in the current folder first, which may hold a folder `model`.
    "PYTHONSAFEPATH": "1",
}


class Report(Protocol):
    """A callable that hears of each change of a service's work; called from several threads."""

    def __call__(self, service: str, doing: str, *, done: bool = False) -> None:
        """``done`` marks the last report about the service."""


@dataclass(frozen=True)
class Launch:
    """How to start a service: its command, and the variables that it gets on top of our environment."""

    command: tuple[str, ...]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Service(ABC):
    """One server of the local stack."""

    settings: Settings
    name: ClassVar[str]  # name on the command line

    @property
    def port(self) -> int:
        """The port on which the service listens, on this machine only."""
        port: int = getattr(self.settings.stack, f"{self.name}_port")
        return port

    @property
    def data(self) -> Path:
        """The folder that holds all data of the service."""
        return self.settings.home.resolve() / self.name

    @abstractmethod
    def address(self, port: int) -> str:
        """The address of the service for clients, on ``port``."""

    @abstractmethod
    def prepare(self, report: Report) -> Launch:
        """Make everything that the service needs before it starts, and return how to start it.

        Raises:
            StackError: its data cannot be read or written.
        """

    @abstractmethod
    def answers(self) -> bool:
        """Whether the service answers requests."""


def folder_error(name: str, folder: Path, error: OSError) -> StackError:
    """The error of a service whose folder cannot be made or written."""
    return StackError(
        f"{name} cannot keep its data in {folder}: {error.strerror or error}. Make it a writable folder, or choose "
        "another one with STREAMGRU_HOME."
    )


def bind(port: int) -> int:
    """Bind ``port`` on this machine for a moment, any free one for 0, and return its number.

    Raises:
        OSError: another program listens there.
    """
    with socket.socket() as probe:
        # As the servers do: a connection closed a moment ago does not block the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((HOST, port))
        return int(probe.getsockname()[1])
