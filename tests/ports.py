"""Free TCP ports for tests."""

import os
import socket
from itertools import islice

_APART = 97  # ports between the first candidates of two processes with neighbouring ids; more than a process takes
_given: set[int] = set()  # ports that this process has handed out


def free_ports(count: int) -> list[int]:
    """Different ports that no program listens on, and that stay free while their server is down.

    The ports lie below the range from which the system gives clients their own ports. There another client could take a
    port before its server starts. A client that retries often enough could even get the port of its own server, connect
    to itself, and block the port. Test processes with neighbouring process ids begin their search far apart.
    """
    first = 20_000 + os.getpid() * _APART % 10_000
    ports = list(islice((port for port in range(first, 32_000) if port not in _given and is_free(port)), count))
    _given.update(ports)
    return ports


def free_port() -> int:
    """One port as ``free_ports`` chooses it."""
    return free_ports(1)[0]


def is_free(port: int) -> bool:
    """Whether a server could listen on the port; a killed server may hold its port for a moment."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
