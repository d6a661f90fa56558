"""Free TCP ports for tests."""

import os
import socket
from itertools import islice

_APART = 97  # ports between the first candidates of two processes with neighbouring ids; more than a process takes


def free_ports(count: int) -> list[int]:
    """Different ports that no program listens on."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def is_free(port: int) -> bool:
    """Whether a server could listen on the port; a killed server may hold its port for a moment."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def steady_port() -> int:
    """One port as ``steady_ports`` chooses it."""
    return steady_ports(1)[0]


def steady_ports(count: int) -> list[int]:
    """Ports that stay free while their server is down, although clients keep trying to connect.

    The ports of ``free_ports`` lie in the range from which the system gives clients their own ports. A client that
    retries often enough gets the port of its server, connects to itself, and blocks the port. Test processes with
    neighbouring process ids begin their search far apart.
    """
    first = 20_000 + os.getpid() * _APART % 10_000
    return list(islice((port for port in range(first, 32_000) if is_free(port)), count))
