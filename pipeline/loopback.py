"""Proxies and this machine: a proxy that the environment names is not asked for servers on loopback addresses."""

import ipaddress
import urllib.request
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
# Some clients read one spelling, some the other; the lower case wins where both are read.
_VARIABLES: Final = ("no_proxy", "NO_PROXY")


def without_proxy(environment: Mapping[str, str], *urls: str) -> dict[str, str]:
    """The variables that keep the clients of requests, httpx and urllib from asking a proxy for loopback addresses.

    Exceptions that the environment has already stay. Servers elsewhere are still reached through the proxy.

    Args:
        urls: addresses whose host is excepted, too, if it is a loopback address such as 127.0.0.2.
    """
    given = [part.strip() for name in _VARIABLES for part in environment.get(name, "").split(",")]
    hosts = [host for url in urls if (host := host_of(url)) and is_loopback(host)]
    merged = ",".join(dict.fromkeys(part for part in (*given, *_LOOPBACK, *hosts) if part))
    return dict.fromkeys(_VARIABLES, "*" if "*" in given else merged)


def host_of(url: str) -> str:
    """The host of an address; empty if it has none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its name or number, without asking a name server."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def opener_for(url: str) -> urllib.request.OpenerDirector:
    """An opener of ``urllib`` that asks no proxy for a loopback address, and otherwise the environment's proxy."""
    direct = [urllib.request.ProxyHandler({})] if is_loopback(host_of(url)) else []
    return urllib.request.build_opener(*direct)
