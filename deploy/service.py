"""What the stack asks of each of its services."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

HOST = "127.0.0.1"

Report = Callable[[str, str], None]
"""Told (service, what it is doing) whenever that changes; may be called from several threads."""


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
