# SPDX-License-Identifier: Apache-2.0
"""Keeps one connection to a broker for one purpose, as long as the service runs.

``twisted.application.internet.ClientService`` would do the same, but in Twisted 26.10 it raises
automat's NoTransition when ``prepareConnection`` fails, as an AMQP handshake does.
"""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pika.exceptions import (
    AuthenticationError,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
)
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from txaio.tx import make_logger

from carrot_twisted import conf
from carrot_twisted.outage import Outage
from carrot_twisted.service.protocol import FAREWELL, CarrotProtocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from carrot_twisted.virtual_host import VirtualHost

_log = make_logger()

#: Seconds before the first, and at most before any further attempt to connect.
FIRST_DELAY = 0.2
LAST_DELAY = 5.0
#: What the broker refuses on purpose is not tried again every moment: it logs that, and may lock
#: the user out. At first it may just have started, and not know its users yet.
FIRST_REFUSED_DELAY = 1.0
LAST_REFUSED_DELAY = 15.0
CONNECT_TIMEOUT = 5.0

_PEM = re.compile(b"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_REFUSALS = (AuthenticationError, ProbableAccessDeniedError, ProbableAuthenticationError)


def backoff(attempt: int, refused: bool, chance: float) -> float:
    """Seconds until attempt number ``attempt`` (from 1): doubled each time, spread by a half.

    Args:
        attempt: failures so far.
        refused: the broker answered, and said no.
        chance: 0 to 1; random, so that many services do not return at the same moment.
    """
    first, last = FIRST_DELAY, LAST_DELAY
    if refused:
        first, last = FIRST_REFUSED_DELAY, LAST_REFUSED_DELAY
    return min(last, first * 2.0 ** min(attempt - 1, 10)) * (0.75 + chance / 2)


class BrokerConnection:
    """One lasting connection.

    Args:
        host: the broker, one server or several.
        purpose: for log lines: "consuming" or "publishing".
        connected: called with each new connection.
        reactor: Twisted's reactor.
    """

    def __init__(
        self,
        host: VirtualHost,
        purpose: str,
        connected: Callable[[CarrotProtocol], None],
        reactor: Any,
    ) -> None:
        self._host = host
        self._purpose = purpose
        self._connected = connected
        self._reactor = reactor
        self._stopping = False
        self._outage = Outage(reactor.seconds)
        self._protocol: CarrotProtocol | None = None
        self._waiting: Deferred[Any] | None = None
        self._running: Deferred[None] | None = None
        self.made = 0
        """How often it was made."""

    @property
    def purpose(self) -> str:
        """For people."""
        return self._purpose

    @property
    def broker(self) -> str:
        """For people, without credentials."""
        return self._host.label

    @property
    def is_open(self) -> bool:
        """Whether the connection stands."""
        return self._protocol is not None and self._protocol.is_open

    @property
    def problem(self) -> str | None:
        """Why there is no connection now; None: there is one."""
        if self.is_open:
            return None
        reason = self._outage.reason or "it is about to be made"
        return f"no connection to {self._host.label} for {self._purpose}: {reason}"

    def start(self) -> None:
        """Connect, and connect again whenever the connection is lost. Once is enough."""
        if self._running is None:
            self._running = Deferred.fromCoroutine(self._run())

    def drop(self) -> None:
        """Close the present connection; a new one follows."""
        if self._protocol is not None:
            self._protocol.close()

    async def stop(self) -> None:
        """Close the connection and stay away."""
        self._stopping = True
        if self._waiting is not None:
            self._waiting.cancel()
        abort = None
        if self._protocol is not None:
            self._protocol.close()
            # A broker that does not answer must not hold up the stop.
            abort = self._reactor.callLater(FAREWELL, self._protocol.abort)
        if self._running is not None:
            await self._running
        if abort is not None and abort.active():
            abort.cancel()

    async def _run(self) -> None:
        attempt = 0
        servers = self._host.shuffled()
        while not self._stopping:
            refused = False
            server = servers[attempt % len(servers)]
            try:
                protocol = await self._connect(server)
            except Exception as error:
                if self._stopping:
                    # An attempt that is cancelled fails in many ways.
                    break
                attempt += 1
                refused = isinstance(error, _REFUSALS)
                self._failed("No connection to", _reason(error, self._host))
            else:
                began = self._reactor.seconds()
                reason = await self._serve(protocol, server)
                # A connection that the broker ends at once is as good as none.
                lasted = self._reactor.seconds() - began > LAST_DELAY
                attempt = 1 if lasted else attempt + 1
                if not self._stopping:
                    self._failed("Lost the connection to", str(reason))
            if self._stopping:
                break
            delay = backoff(max(1, attempt), refused, random.random())  # noqa: S311 - no secret
            self._waiting = deferLater(self._reactor, delay)
            try:
                await self._waiting
            except CancelledError:
                break
            finally:
                self._waiting = None

    def _failed(self, what: str, reason: str) -> None:
        told = self._outage.failed(reason)
        if told is not None:
            _log.warn(
                "{what} {label} for {purpose}: {reason}",
                what=what,
                label=self._host.label,
                purpose=self._purpose,
                reason=told,
            )

    async def _serve(self, protocol: CarrotProtocol, server: tuple[str, int]) -> object:
        """Have the connection used until it closes; returns why it did."""
        self._protocol = protocol
        self.made += 1
        closed = protocol.closed
        after = self._outage.over()
        if after is not None:
            _log.info(
                "Connected to {host}:{port}, virtual host {name!r}, for {purpose}{after}"
                " ({product})",
                host=server[0],
                port=server[1],
                name=self._host.name,
                purpose=self._purpose,
                product=protocol.product,
                after=after,
            )
        try:
            self._connected(protocol)
        except Exception:
            _log.failure("The new connection to {label} is not used", label=self._host.label)
            protocol.close()
        reason: object = await closed if closed is not None else "closed at once"
        self._protocol = None
        return reason

    async def _connect(self, server: tuple[str, int]) -> CarrotProtocol:
        host, port = server
        endpoint: Any = HostnameEndpoint(self._reactor, host, port, timeout=CONNECT_TIMEOUT)
        parameters = self._host.parameters(server, conf.current().heartbeat)
        if self._host.secure:
            endpoint = wrapClientTLS(_tls_options(self._host, host), endpoint)
        reactor = self._reactor

        class _Factory(Factory):
            noisy = False

            def buildProtocol(self, addr: Any) -> CarrotProtocol:
                return CarrotProtocol(parameters, reactor)

        self._waiting = endpoint.connect(_Factory())
        try:
            protocol: CarrotProtocol = await self._waiting
        finally:
            self._waiting = None
        ready = protocol.ready
        if ready is not None:
            self._waiting = ready
            try:
                await ready
            except CancelledError:
                protocol.abort()
                raise
            finally:
                self._waiting = None
        return protocol


def _tls_options(broker: VirtualHost, server: str) -> Any:
    """The same for Twisted's TLS as ``VirtualHost.tls_context``, whose call has shown that the
    files can be used."""
    # Imported here: TLS needs pyOpenSSL, which plain connections do without.
    from OpenSSL.crypto import FILETYPE_PEM
    from twisted.internet import ssl

    trusted = own = None
    options: dict[str, Any] = {"raiseMinimumTo": ssl.TLSVersion.TLSv1_2}
    if broker.ca_file:
        trusted = ssl.trustRootFromCertificates(_certificates(broker.ca_file))
    if broker.certificate_file:
        chain = _certificates(broker.certificate_file)
        key = Path(broker.key_file or broker.certificate_file).read_bytes()
        own = ssl.PrivateCertificate.fromCertificateAndKeyPair(
            chain[0], ssl.KeyPair.load(key, FILETYPE_PEM)
        )
        options["extraCertChain"] = [certificate.original for certificate in chain[1:]]
    return ssl.optionsForClientTLS(server, trusted, own, extraCertificateOptions=options)


def _certificates(path: str) -> list[Any]:
    from twisted.internet.ssl import Certificate

    return [Certificate.loadPEM(pem) for pem in _PEM.findall(Path(path).read_bytes())]


async def close_all(connections: Iterable[BrokerConnection]) -> None:
    """Close connections for good, all at once: each may wait for a broker that does not answer."""
    await gatherResults([Deferred.fromCoroutine(connection.stop()) for connection in connections])


def _reason(error: Exception, host: VirtualHost) -> str:
    """What went wrong, in words that name the remedy where it is known."""
    if isinstance(error, ProbableAuthenticationError | AuthenticationError):
        return f"user {host.user} or its password is refused ({error})"
    if isinstance(error, ProbableAccessDeniedError):
        return (
            f"the broker closes the connection for virtual host {host.name!r}: does it exist, and "
            f"may user {host.user} use it? ({error})"
        )
    return f"{type(error).__name__}: {error}"
