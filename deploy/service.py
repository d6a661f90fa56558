"""What the stack asks of each of its services."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.errors import StackError

HOST = "127.0.0.1"


class Report(Protocol):
    """Told what a service is doing whenever that changes; called from several threads."""

    def __call__(self, service: str, doing: str, *, done: bool = False) -> None:
        """``done`` says that this is the last word about the service."""


@dataclass(frozen=True)
class Launch:
    """How to start a service: its command, and what its environment has besides or instead of ours."""

    command: tuple[str, ...]
    environment: Mapping[str, str]


class Service(Protocol):
    """One server of the local stack."""

    @property
    def name(self) -> str:
        """As the user reads it."""

    @property
    def port(self) -> int:
        """The port it listens on, on this machine only."""

    @property
    def data(self) -> Path:
        """The folder that holds all it keeps."""

    def address(self, port: int) -> str:
        """What a client is given to reach it on ``port``."""

    def prepare(self, report: Report) -> Launch:
        """Get ready whatever it needs before it can start, and say how to start it."""

    def answers(self) -> bool:
        """Whether it serves requests by now."""


def folder_error(name: str, folder: Path, error: OSError) -> StackError:
    """The error of a service whose folder cannot be made or written."""
    return StackError(
        f"{name} cannot keep its data in {folder}: {error.strerror or error}. Make it a writable folder, or choose "
        "another one with STREAMGRU_HOME."
    )
