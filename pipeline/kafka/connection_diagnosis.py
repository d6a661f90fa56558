"""Why a broker that accepts connections cannot be used: the client only reports a timeout if a listener refuses it."""

import socket
import ssl
from contextlib import suppress
from typing import Final

from pipeline.settings.sections import KafkaSettings

PROBE_TIMEOUT_S: Final = 2.0


def diagnose_connection(kafka: KafkaSettings) -> str:
    """A sentence about the first address that accepts connections; empty if no address does."""
    for server in kafka.bootstrap_servers.split(","):
        host, _, port = server.strip().rpartition(":")
        with suppress(OSError, ValueError), socket.create_connection((host, int(port)), PROBE_TIMEOUT_S) as connection:
            return f"{server.strip()} accepts connections, {_diagnose(kafka, connection, host)}"
    return ""


def _diagnose(kafka: KafkaSettings, connection: socket.socket, host: str) -> str:
    protocol = f"kafka.security_protocol = {kafka.security_protocol}"
    login = (
        f"it refuses {protocol} with this login: check kafka.sasl_mechanism, kafka.sasl_username and "
        "kafka.sasl_password, and that the listener expects this protocol"
        if kafka.security_protocol.startswith("SASL")
        else f"it does not answer Kafka requests with {protocol}: the listener may expect TLS or a login"
    )
    if not kafka.security_protocol.endswith("SSL"):
        return f"but {login}"
    try:
        context = ssl.create_default_context(cafile=None if kafka.ssl_cafile is None else str(kafka.ssl_cafile))
        if kafka.ssl_certfile is not None:
            context.load_cert_chain(kafka.ssl_certfile, kafka.ssl_keyfile)
        with context.wrap_socket(connection, server_hostname=host):
            return f"TLS works, but {login}"
    except (OSError, ValueError) as error:
        return (
            f"but TLS fails ({error}): check {protocol}, kafka.ssl_cafile, kafka.ssl_certfile and "
            "kafka.ssl_keyfile, and that the listener expects TLS"
        )
