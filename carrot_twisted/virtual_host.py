# SPDX-License-Identifier: Apache-2.0
"""Where a broker is and how to log in there. A value; it opens connections only on request."""

from __future__ import annotations

import random
import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pika

AMQP_PORT = 5672
AMQPS_PORT = 5671
#: Seconds between signs of life; the default of ``CARROT["heartbeat"]``. Long enough for a busy
#: interpreter, short enough to notice a dead peer in about a minute.
HEARTBEAT = 30
#: Seconds that a blocking call waits for a broker that takes no messages (a memory alarm).
BLOCKED_TIMEOUT = 10


class VirtualHost:
    """A RabbitMQ virtual host, on one server or on any of a cluster's.

    The signature is django-carrot's; unlike there, a URL may leave the port out, credentials may
    be percent-encoded, ``amqps://`` is honoured everywhere, and neither ``str`` nor ``repr``
    shows the password.

    Args:
        url: ``amqp://user:password@host:port/vhost``, or ``amqps://`` for TLS. Several servers
            of a cluster are separated by commas: ``amqp://u:p@one:5672,two:5672/vhost``. Parts
            left out of the URL are taken from the other arguments.
        host: host name, or several as a list or separated by commas, each with an optional
            ``:port``.
        name: name of the virtual host, percent-encoded as in a URL (``%2f`` is ``/``).
        port: port of those hosts that name none; default 5672, or 5671 with TLS.
        username: RabbitMQ user.
        password: that user's password.
        secure: use TLS, 1.2 or later, and verify the server's certificate and host name.
        ca_file: PEM file of the only authorities that are trusted to sign the server's
            certificate; by default the system's.
        certificate_file: PEM file of the certificate, and its chain, that we show to the server.
        key_file: PEM file of its private key, unencrypted; by default in ``certificate_file``.
        external: log in as the user that our certificate names, with neither ``username`` nor
            ``password`` (SASL EXTERNAL); the broker's plugin rabbitmq_auth_mechanism_ssl does that.

    Raises:
        ValueError: the URL cannot be understood, or says that there is no TLS where ``secure`` or
            files ask for it; ``external`` without a certificate. The text never holds the password.
    """

    def __init__(
        self,
        url: str | None = None,
        host: str | Sequence[str] = "localhost",
        name: str = "%2f",
        port: int | None = None,
        username: str = "guest",
        password: str = "guest",  # noqa: S107 - RabbitMQ's own public default
        secure: bool = False,
        *,
        ca_file: str | None = None,
        certificate_file: str | None = None,
        key_file: str | None = None,
        external: bool = False,
    ) -> None:
        netloc = host if isinstance(host, str) else ",".join(host)
        if url is not None:
            scheme, separator, rest = url.partition("://")
            if not separator or scheme not in ("amqp", "amqps"):
                raise ValueError(
                    "a broker URL starts with amqp:// or amqps://, "
                    "for example amqp://user:password@localhost:5672/my-vhost"
                )
            if secure and scheme == "amqp":
                raise ValueError(
                    "'secure' asks for TLS, and a broker URL that begins with amqp:// for none: "
                    "write amqps://"
                )
            secure = scheme == "amqps"
            # Not urlsplit's own netloc: it refuses the commas and ports of a cluster.
            authority, _, path = rest.partition("/")
            if "?" in path or "#" in path or "?" in authority or "#" in authority:
                raise ValueError(
                    "a broker URL has no query and no fragment; write '?', '#' and '/' in a "
                    "password as %3F, %23 and %2F"
                )
            credentials, at, netloc = authority.rpartition("@")
            if "@" in path or "/" in path:
                raise ValueError(
                    "a broker URL has one '/' before the virtual host's name; write '@' and '/' "
                    "in a password or name as %40 and %2F"
                )
            if at:
                user, colon, word = credentials.partition(":")
                username = unquote(user)
                password = unquote(word) if colon else password
            name = path or name
        self.secure = secure
        self.ca_file = ca_file
        self.certificate_file = certificate_file
        self.key_file = key_file
        if any(self._files()) and not secure:
            raise ValueError(
                "ca_file, certificate_file and key_file are for TLS only, and this broker is "
                "reached without: write amqps:// or 'secure': True"
            )
        if key_file and not certificate_file:
            raise ValueError("a key_file needs the certificate_file that it belongs to")
        if external and not certificate_file:
            raise ValueError("'external' needs the certificate_file that names the user")
        self.external = external
        default_port = port or (AMQPS_PORT if secure else AMQP_PORT)
        #: (host, port) of each server.
        self.servers = tuple(_server(part, default_port) for part in netloc.split(","))
        self.host, self.port = self.servers[0]
        self.name = unquote(name) or "/"
        self.username = username
        self.password = password

    def shuffled(self) -> list[tuple[str, int]]:
        """The servers in an order of chance: a cluster's clients spread over its nodes."""
        return random.sample(self.servers, len(self.servers))

    @property
    def label(self) -> str:
        """``host:port/vhost`` without credentials: fit for logs and pages."""
        servers = ",".join(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.servers
        )
        return f"{servers}/{quote(self.name, safe='')}"

    @property
    def user(self) -> str:
        """Who logs in, for people."""
        return "that the certificate names" if self.external else repr(self.username)

    def parameters(
        self, server: tuple[str, int] | None = None, heartbeat: int = HEARTBEAT
    ) -> pika.ConnectionParameters:
        """Connection parameters.

        Args:
            server: one of ``servers``; default the first.
            heartbeat: asked of the broker, in seconds. A peer that is silent for more than about
                twice as long is given up, by either side.

        Raises:
            OSError: a file that TLS needs cannot be used.
        """
        import pika

        host, port = server or self.servers[0]
        options: dict[str, Any] = {}
        if self.secure:
            options["ssl_options"] = pika.SSLOptions(self.tls_context(), host)
        return pika.ConnectionParameters(
            host=host,
            port=port,
            virtual_host=self.name,
            credentials=(
                pika.credentials.ExternalCredentials()
                if self.external
                else pika.PlainCredentials(self.username, self.password)
            ),
            heartbeat=heartbeat,
            connection_attempts=1,
            socket_timeout=5,
            stack_timeout=10,
            blocked_connection_timeout=None,
            client_properties={"product": "carrot-twisted"},
            **options,
        )

    def tls_context(self) -> ssl.SSLContext:
        """What is asked of the server, and shown to it, when a TLS connection begins.

        Raises:
            OSError: a file is missing, or is not what it should be; the text names it.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise OSError(f"ca_file {self.ca_file!r} cannot be used: {error}") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.certificate_file:
            try:
                context.load_cert_chain(self.certificate_file, self.key_file, _no_passphrase)
            except OSError as error:
                files = f"certificate_file {self.certificate_file!r}"
                if self.key_file:
                    files += f" with key_file {self.key_file!r}"
                raise OSError(f"{files} cannot be used: {error}") from error
        return context

    @property
    def blocking_connection(self) -> pika.BlockingConnection:
        """A new ``pika.BlockingConnection``, the caller's to close (django-carrot's property).

        Its calls are bounded: where the broker takes no messages for BLOCKED_TIMEOUT seconds, or
        does not answer heartbeats, they raise one of pika's exceptions.
        """
        return self.connect_blocking(HEARTBEAT)

    def connect_blocking(self, patience: int) -> pika.BlockingConnection:
        """A new blocking connection that gives up on a broker which says nothing.

        Args:
            patience: seconds; after one to two times as many without a sign of life, the
                connection's calls raise. Whoever holds the connection must use it as often.

        Raises:
            AMQPConnectionError: pika's; none of the servers let us in.
        """
        import pika

        parameters = [self.parameters(server, patience) for server in self.servers]
        for one in parameters:
            one.blocked_connection_timeout = BLOCKED_TIMEOUT
        return pika.BlockingConnection(parameters)

    def _identity(self) -> tuple[object, ...]:
        login = (self.external, self.username, self.password)
        return (self.servers, self.name, *login, self.secure, *self._files())

    def _files(self) -> tuple[str | None, ...]:
        return (self.ca_file, self.certificate_file, self.key_file)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VirtualHost) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __str__(self) -> str:
        user = "" if self.external else f"{self.username}@"
        return f"{'amqps' if self.secure else 'amqp'}://{user}{self.label}"

    def __repr__(self) -> str:
        return f"<VirtualHost {self}>"


def _no_passphrase() -> str:
    # By default OpenSSL would ask for it at the terminal, and wait.
    raise OSError("the private key is encrypted, and there is nobody to ask for the passphrase")


def _server(text: str, default_port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text.strip()}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host:
        # The text may hold a piece of a badly quoted password: it is not repeated.
        raise ValueError(
            "a broker URL needs a host and, if any, a numeric port; "
            "percent-encode '@', ':' and '/' in user name and password"
        )
    return host, port or default_port
