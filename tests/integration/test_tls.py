# SPDX-License-Identifier: Apache-2.0
"""``amqps://``: encrypted, the server's certificate and name checked, and nothing less.

The node has no plain listener. Its certificate is for ``localhost``, signed by an authority that
``SSL_CERT_FILE`` names, as for any other program on the machine.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pika.exceptions import AMQPConnectionError

from carrot_twisted import publisher
from carrot_twisted.models import MessageLog
from carrot_twisted.service.connection import BrokerConnection
from carrot_twisted.service.protocol import FAREWELL, CarrotProtocol
from carrot_twisted.utilities import publish_message
from carrot_twisted.virtual_host import VirtualHost
from devtools.ports import free_port
from devtools.servers import RabbitMQ, temporary_folder
from tests.conftest import run_python, running
from tests.processes import ServiceProcess, wait_until
from tests.reactor import hasten_heartbeats, in_reactor, left_clean, reactor, soon, until
from tests.settings import CARROT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.once

StartService = Callable[..., ServiceProcess]

#: The shortest that there is, in seconds.
HEARTBEAT = 1
CONFIGURATION = """\
listeners.tcp = none
listeners.ssl.default = 127.0.0.1:{port}
ssl_options.certfile = {folder}/server.pem
ssl_options.keyfile = {folder}/server.key
ssl_options.cacertfile = {folder}/trusted.pem
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = false
auth_mechanisms.1 = PLAIN
auth_mechanisms.2 = EXTERNAL
ssl_cert_login_from = common_name
"""
#: Lets certificates name their users.
PLUGIN = "rabbitmq_auth_mechanism_ssl"

#: Options of Erlang's TLS, and their files.
LISTENER = {"certfile": "server.pem", "keyfile": "server.key", "cacertfile": "trusted.pem"}

PUBLISH = """
import django
django.setup()
from carrot_twisted import publisher
from carrot_twisted.utilities import publish_message
publish_message("tests.project.tasks.echo", "encrypted")
assert publisher.flush(15)
"""


class Authority:
    """Signs certificates, as an operator's own certificate authority does."""

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._own = self._sign(
            self._name, self._key, x509.BasicConstraints(ca=True, path_length=None)
        )

    def write(self, path: Path) -> Path:
        """Write the authority's own certificate: what clients are told to trust."""
        path.write_bytes(self._own.public_bytes(serialization.Encoding.PEM))
        return path

    def issue(self, host: str, folder: Path, file: str = "server") -> None:
        """Write certificate and key of a server, or of a client, of that name."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        certificate = self._sign(name, key, x509.SubjectAlternativeName([x509.DNSName(host)]))
        (folder / f"{file}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / f"{file}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
            .sign(self._key, hashes.SHA256())
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates: of the server, of its authority, and of an authority that knows neither."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = Authority("authority of the tests")
    authority.write(folder / "trusted.pem")
    authority.issue("localhost", folder)
    authority.issue("the project", folder, "client")
    other = Authority("somebody else")
    other.write(folder / "other.pem")
    other.issue("an intruder", folder, "intruder")
    return folder


@pytest.fixture(scope="module")
def tls_broker(folder: Path) -> Iterator[RabbitMQ]:
    """A broker with TLS only, which this process and its children trust."""
    port = free_port()
    configuration = CONFIGURATION.format(port=port, folder=folder)
    with (
        temporary_folder() as place,
        running(
            RabbitMQ(place / "rabbitmq", port=port, configuration=configuration, plugins=[PLUGIN])
        ) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("SSL_CERT_FILE", str(folder / "trusted.pem"))
        yield server


@pytest.fixture(scope="module")
def broker_url(tls_broker: RabbitMQ) -> str:
    """URL of that broker, in place of the other tests' broker."""
    return tls_broker.url.replace("amqp://", "amqps://").replace("127.0.0.1", "localhost")


def publish(url: str, **environment: str) -> str:
    """Publish a task from a process that is no service; returns what it wrote to the terminal."""
    done = run_python(PUBLISH, url, **environment)
    assert done.returncode == 0, done.stdout
    assert VirtualHost(url).password not in done.stdout
    return done.stdout


@pytest.mark.django_db(transaction=True)
def test_a_task_is_published_and_run_over_tls(start_service: StartService, broker_url: str) -> None:
    assert publish(broker_url) == ""
    row = MessageLog.objects.get()
    assert row.confirmed_at is not None
    assert row.status == MessageLog.PUBLISHED

    service = start_service()
    wait_until(lambda: MessageLog.objects.filter(status=MessageLog.COMPLETED).exists())
    assert json.loads(MessageLog.objects.get().output or "")["args"] == ["encrypted"]
    port = VirtualHost(broker_url).port
    for purpose in ("consuming", "publishing"):
        assert f"Connected to localhost:{port}, virtual host 'carrot', for {purpose}" in service.log
    assert VirtualHost(broker_url).password not in service.log
    assert service.stop() == 0


@pytest.mark.parametrize(
    ("host", "trusted", "publisher_says", "service_says"),
    [
        ("localhost", "other.pem", "certificate verify failed", "certificate verify failed"),
        ("127.0.0.1", "trusted.pem", "not valid for '127.0.0.1'", "IPAddressMismatch"),
    ],
    ids=["unknown authority", "another host name"],
)
@pytest.mark.django_db(transaction=True)
def test_a_server_that_cannot_prove_its_name_gets_nothing(
    start_service: StartService,
    broker_url: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    trusted: str,
    publisher_says: str,
    service_says: str,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / trusted))
    url = broker_url.replace("localhost", host)
    told = publish(url)
    assert "No connection to the broker" in told
    assert publisher_says in told

    service = start_service(wait=False, CARROT_BROKER_URL=url)
    service.wait_for("for publishing: ")
    service.wait_for("for consuming: ")
    line = next(line for line in service.log.splitlines() if "No connection" in line)
    assert service_says in line
    # What pika makes of any early end; it would lead the reader astray.
    assert "IncompatibleProtocol" not in line
    assert "Connected to" not in service.log
    assert VirtualHost(url).password not in service.log
    assert service.stop() == 0

    row = MessageLog.objects.get()
    assert row.status == MessageLog.PUBLISHED
    assert row.confirmed_at is None
    assert row.attempts == 0


# Client certificates


@pytest.fixture(scope="module")
def strict_url(tls_broker: RabbitMQ, folder: Path, broker_url: str) -> str:
    """URL of a listener of that broker which asks for a client's certificate."""
    port = free_port()
    options = ", ".join(
        [
            *(f'{{{key}, "{folder}/{file}"}}' for key, file in LISTENER.items()),
            "{verify, verify_peer}, {fail_if_no_peer_cert, true}",
        ]
    )
    listener = f'{{"127.0.0.1", {port}}}, [{options}], 2'
    tls_broker.ctl("eval", f"rabbit_networking:start_ssl_listener({listener}).")
    return broker_url.replace(f":{VirtualHost(broker_url).port}/", f":{port}/")


def files(folder: Path, client: str | None) -> dict[str, Any]:
    """Keys of the broker's dictionary."""
    given = {"ca_file": str(folder / "trusted.pem")}
    if client:
        given["certificate_file"] = str(folder / f"{client}.pem")
        given["key_file"] = str(folder / f"{client}.key")
    return given


@pytest.mark.django_db(transaction=True)
def test_a_broker_that_asks_for_a_certificate_gets_it(
    start_service: StartService,
    strict_url: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The authority is the settings' own, not one that the whole machine trusts.
    monkeypatch.delenv("SSL_CERT_FILE")
    given = files(folder, "client")
    environment = {"CARROT_BROKER_URL": strict_url, "CARROT_TEST_BROKER": json.dumps(given)}
    assert publish(strict_url, CARROT_TEST_BROKER=json.dumps(given)) == ""
    assert MessageLog.objects.get().confirmed_at is not None
    service = start_service(**environment)
    wait_until(lambda: MessageLog.objects.filter(status=MessageLog.COMPLETED).exists())
    assert service.stop() == 0

    VirtualHost(strict_url, **given).blocking_connection.close()
    one_file = folder / "both.pem"
    one_file.write_bytes(b"".join((folder / f"client.{e}").read_bytes() for e in ("key", "pem")))
    both = VirtualHost(
        strict_url, ca_file=given["ca_file"], certificate_file=str(one_file)
    ).blocking_connection
    both.close()


@pytest.mark.parametrize(
    ("client", "told"),
    [(None, "certificate required"), ("intruder", "unknown ca")],
    ids=["no certificate", "another authority"],
)
@pytest.mark.django_db(transaction=True)
def test_a_broker_that_asks_for_a_certificate_refuses_without(
    start_service: StartService, strict_url: str, folder: Path, client: str | None, told: str
) -> None:
    given = json.dumps(files(folder, client))
    assert "It may want a client certificate" in publish(strict_url, CARROT_TEST_BROKER=given)
    service = start_service(wait=False, CARROT_BROKER_URL=strict_url, CARROT_TEST_BROKER=given)
    service.wait_for("for consuming: ")
    line = next(line for line in service.log.splitlines() if "No connection" in line)
    assert told in line.lower(), service.log
    assert "Connected to" not in service.log
    assert service.stop() == 0
    assert MessageLog.objects.get().confirmed_at is None


@pytest.mark.django_db(transaction=True)
def test_a_file_that_goes_away_is_told_and_costs_no_thread(
    served: None,
    settings: Any,
    strict_url: str,
    folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = files(folder, "client")
    copy = tmp_path / "client.key"
    settings.CARROT = {
        **CARROT,
        "default_broker": {"url": strict_url, **given, "key_file": str(copy)},
    }
    with caplog.at_level(logging.WARNING, "carrot_twisted"):
        publish_message("tests.project.tasks.echo")
        assert publisher.flush(15)
    assert str(copy) in caplog.text
    copy.write_bytes((folder / "client.key").read_bytes())
    wait_until(lambda: _confirmed(publish_message("tests.project.tasks.echo")))


def _confirmed(row: MessageLog) -> bool:
    publisher.flush(15)
    return MessageLog.objects.get(pk=row.pk).confirmed_at is not None


class Ear:
    """A TCP server that hears the first words of each connection, and hangs up."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._socket.close()

    def _listen(self) -> None:
        while True:
            try:
                connection, _address = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(10)
                self.heard.append(connection.recv(4096))


@pytest.fixture
def ear() -> Iterator[Ear]:
    """Somebody who listens."""
    ear = Ear()
    yield ear
    ear.close()


def test_nothing_is_said_in_plain_words(start_service: StartService, ear: Ear) -> None:
    url = f"amqps://carrot:s3cr3t@localhost:{ear.port}/"
    publish(url)
    assert ear.heard
    service = start_service(wait=False, CARROT_BROKER_URL=url)
    ear.heard.clear()
    wait_until(lambda: len(ear.heard) > 5)
    assert service.stop() == 0
    # The first two bytes of a TLS handshake; AMQP would begin with its name.
    assert {words[:2] for words in ear.heard if words} == {b"\x16\x03"}


def test_the_broker_itself_speaks_tls_only(broker_url: str) -> None:
    with pytest.raises(AMQPConnectionError):
        VirtualHost(broker_url.replace("amqps://", "amqp://")).blocking_connection.close()


@pytest.fixture
def clean_reactor() -> Iterator[None]:
    """Fail a test that leaves timers or connections behind."""
    with left_clean():
        yield


# Twisted's own, of client certificates.
@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL")
@in_reactor
async def test_who_shows_a_certificate_may_be_the_user_that_it_names(
    clean_reactor: None, tls_broker: RabbitMQ, strict_url: str, folder: Path
) -> None:
    """SASL EXTERNAL, as on the brokers of fedora-messaging; the URL's password is not used."""
    host = VirtualHost(
        strict_url.replace(tls_broker.password, "wrong"), **files(folder, "client"), external=True
    )
    protocols: list[CarrotProtocol] = []
    connection = BrokerConnection(host, "testing", protocols.append, reactor)
    connection.start()
    stranger = "user that the certificate names or its password is refused"
    await until(lambda: stranger in (connection.problem or ""))
    # The name in the certificate.
    name = '<<"the project">>'
    tls_broker.ctl(
        "eval",
        f'rabbit_auth_backend_internal:add_user({name}, <<"not used">>, <<"test">>), '
        f"rabbit_auth_backend_internal:set_permissions({name}, "
        f'<<"{tls_broker.name}">>, <<>>, <<>>, <<".*">>, <<"test">>).',
    )
    await until(lambda: protocols, 20)
    blocking = host.blocking_connection
    users = tls_broker.ctl("list_connections", "user").splitlines()
    blocking.close()
    assert users.count("the project") == 2
    await soon(connection.stop(), FAREWELL + 3)


@in_reactor
async def test_a_peer_that_falls_silent_is_given_up_without_tls_farewell(
    clean_reactor: None,
    tls_broker: RabbitMQ,
    broker_url: str,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grace = hasten_heartbeats(monkeypatch)
    settings.CARROT = {**CARROT, "heartbeat": HEARTBEAT}
    protocols: list[CarrotProtocol] = []
    connection = BrokerConnection(VirtualHost(broker_url), "testing", protocols.append, reactor)
    connection.start()
    await until(lambda: protocols)
    with tls_broker.frozen():
        limit = 2 * (HEARTBEAT + grace) + FAREWELL + 1
        await until(lambda: not connection.is_open, limit)
    await until(lambda: connection.is_open)
    with tls_broker.frozen():
        await soon(connection.stop(), FAREWELL + 3)
    assert len(protocols) == 2
