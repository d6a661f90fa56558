"""Brokers that require TLS or a login: accepted clients, and the errors of refused clients."""

import datetime
import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from deploy.broker import Broker
from deploy.stack import Stack
from pipeline.errors import BrokerUnreachable, KafkaError
from pipeline.kafka import clients
from pipeline.kafka.topics import check_topics, ensure_topics
from pipeline.settings import Settings
from pipeline.settings.sections import KafkaSettings
from tests.ports import free_ports
from tests.stacks import end_stack

pytestmark = pytest.mark.integration

LISTENERS = {"LOGIN": "SASL_PLAINTEXT", "TLS": "SSL", "BOTH": "SASL_SSL"}


def certificate(folder: Path, name: str) -> tuple[Path, str, str]:
    """A self-signed certificate for this machine: its file, and the PEM texts of certificate and key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM).decode()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    path = folder / f"{name}.pem"
    path.write_text(pem)
    return path, pem, private


class Secured:
    """A broker with a listener for each protocol."""

    def __init__(self, settings: Settings, ports: dict[str, int], cafile: Path, strange_cafile: Path) -> None:
        self._settings = settings
        self._ports = ports
        self.cafile = cafile
        self.strange_cafile = strange_cafile

    def settings(self, listener: str, **kafka: Any) -> Settings:
        port = self._ports.get(listener, self._settings.stack.kafka_port)
        merged = self._settings.kafka.model_dump() | {"bootstrap_servers": f"127.0.0.1:{port}"} | kafka
        return self._settings.model_copy(update={"kafka": KafkaSettings(**merged)})


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    plain_port, *others = free_ports(1 + len(LISTENERS))
    settings = Settings(home=folder, stack={"kafka_port": plain_port}, kafka={"partitions": 1})
    ports = dict(zip(LISTENERS, others, strict=True))
    cafile, pem, private = certificate(folder, "broker")
    strange_cafile, _, _ = certificate(folder, "stranger")
    plain = Broker.properties

    def properties(self: Broker, logs: Path) -> dict[str, str | int]:
        found = plain(self, logs)
        more = ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items())
        protocols = {"PLAINTEXT": "PLAINTEXT", "CONTROLLER": "PLAINTEXT"} | LISTENERS
        login = "org.apache.kafka.common.security.plain.PlainLoginModule required user_alice=secret;"
        return found | {
            "listeners": f"{found['listeners']},{more}",
            "advertised.listeners": f"{found['advertised.listeners']},{more}",
            "listener.security.protocol.map": ",".join(f"{name}:{used}" for name, used in protocols.items()),
            "inter.broker.listener.name": "PLAINTEXT",
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.login.plain.sasl.jaas.config": login,
            "listener.name.both.plain.sasl.jaas.config": login,
            "ssl.keystore.type": "PEM",
            "ssl.keystore.certificate.chain": pem.replace("\n", "\\n"),
            "ssl.keystore.key": private.replace("\n", "\\n"),
        }

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Broker, "properties", properties)
        patch.setattr(clients, "BOOTSTRAP_TIMEOUT_MS", 3_000)
        Stack(settings).up(("kafka",))
        ensure_topics(settings)
        yield Secured(settings, ports, cafile, strange_cafile)
    end_stack(settings)


ALICE = {"sasl_mechanism": "PLAIN", "sasl_username": "alice", "sasl_password": "secret"}


def test_clients_connect_with_tls_with_a_login_and_with_both(secured: Secured) -> None:
    check_topics(secured.settings("LOGIN", security_protocol="SASL_PLAINTEXT", **ALICE))
    check_topics(secured.settings("TLS", security_protocol="SSL", ssl_cafile=secured.cafile))
    check_topics(secured.settings("BOTH", security_protocol="SASL_SSL", ssl_cafile=secured.cafile, **ALICE))


@pytest.mark.parametrize("listener", ["LOGIN", "BOTH"])
def test_a_wrong_password_is_an_error_that_names_its_setting(secured: Secured, listener: str) -> None:
    wrong = ALICE | {"sasl_password": "guess"}
    settings = secured.settings(listener, security_protocol=LISTENERS[listener], ssl_cafile=secured.cafile, **wrong)
    with pytest.raises(KafkaError, match=r"refuses? .*this login.*kafka\.sasl_password") as refused:
        check_topics(settings)
    assert "guess" not in str(refused.value)


def test_a_mechanism_that_the_broker_lacks_is_an_error_that_names_its_setting(secured: Secured) -> None:
    scram = ALICE | {"sasl_mechanism": "SCRAM-SHA-512"}
    with pytest.raises(KafkaError, match=r"kafka\.sasl_mechanism"):
        check_topics(secured.settings("LOGIN", security_protocol="SASL_PLAINTEXT", **scram))


def test_an_untrusted_certificate_is_an_error_that_names_its_setting(secured: Secured) -> None:
    with pytest.raises(BrokerUnreachable, match=r"TLS fails .*(?i:certificate).*kafka\.ssl_cafile"):
        check_topics(secured.settings("TLS", security_protocol="SSL", ssl_cafile=secured.strange_cafile))


@pytest.mark.parametrize(
    ("listener", "protocol", "said"),
    [
        ("PLAIN", "SSL", "TLS fails"),
        ("PLAIN", "SASL_PLAINTEXT", "refuses kafka.security_protocol = SASL_PLAINTEXT with this login"),
        ("TLS", "PLAINTEXT", "the listener may expect TLS"),
        ("LOGIN", "PLAINTEXT", "or a login"),
    ],
)
def test_a_protocol_that_differs_from_the_listeners_is_an_error_that_says_so(
    secured: Secured, listener: str, protocol: str, said: str
) -> None:
    login = ALICE if protocol.startswith("SASL") else {}
    with pytest.raises(BrokerUnreachable, match=said):
        check_topics(secured.settings(listener, security_protocol=protocol, **login))
