"""Free TCP ports for tests."""

import os
import socket
from itertools import islice

_APART = 97  # ports; more than one process takes, and without a common divisor with their number


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def is_free(port: int) -> bool:
    """Whether a server could listen there: a killed one may be a zombie and hold its port for a moment still."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def steady_port() -> int:
    """One of ``steady_ports``."""
    return steady_ports(1)[0]


def steady_ports(count: int) -> list[int]:
    """Ports that stay free while their server is away, though clients go on trying to connect.

    Those that ``free_ports`` gives are of the range that the system takes a client's own end from: a client that tries
    often enough gets the very port it wants to reach, is connected to itself, and keeps the server from coming back.
    Processes that test side by side, whose numbers follow on each other, begin to look far apart.
    """
    first = 20_000 + os.getpid() * _APART % 10_000
    return list(islice((port for port in range(first, 32_000) if is_free(port)), count))
