# SPDX-License-Identifier: Apache-2.0
"""Where a service answers HTTP: an endpoint of the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.web.server import Site

from carrot_twisted.exceptions import CarrotConfigException

if TYPE_CHECKING:
    from twisted.web.resource import Resource

#: Seconds after which a connection is closed on which nothing is asked.
IDLE = 60


class UnloggedSite(Site):
    """Requests have no place in the service's log: a proxy in front of it knows more of them."""

    noisy = False

    def log(self, request: Any) -> None:
        """Nothing."""


class Listener:
    """Listens for requests, once it is told to.

    Args:
        option: its name on the command line, for example "web".
        endpoint: where, as Twisted describes it: "tcp:8080:interface=127.0.0.1".
        example: of such an endpoint, for people.
        reactor: Twisted's reactor.

    Raises:
        CarrotConfigException: the endpoint makes no sense.
    """

    def __init__(self, option: str, endpoint: str, example: str, reactor: Any) -> None:
        self._given = f"--{option}={endpoint}"
        self._port: Any = None
        try:
            self._endpoint = serverFromString(reactor, endpoint)
        except Exception as error:
            raise CarrotConfigException(
                f"{self._given} is no endpoint ({error}). Write it as Twisted does, for example "
                f"--{option}={example}"
            ) from error

    @property
    def host(self) -> Any:
        """Twisted's address of where it listens."""
        return self._port.getHost()

    @property
    def address(self) -> str:
        """Where it listens, for people."""
        host = self.host
        return f"{host.host}, port {host.port}" if hasattr(host, "port") else str(host)

    @property
    def is_listening(self) -> bool:
        """Whether ``listen`` has come to its end."""
        return self._port is not None

    async def listen(self, root: Resource) -> None:
        """Answer requests from now on.

        Raises:
            CarrotConfigException: somebody else does, or this user may not.
        """
        try:
            self._port = await self._endpoint.listen(UnloggedSite(root, timeout=IDLE))
        except (CannotListenError, OSError) as error:
            raise CarrotConfigException(
                f"{self._given}: {str(error).rstrip('.')}. Is the port taken, and may this user "
                "listen there?"
            ) from error

    async def stop(self) -> None:
        """Take no more requests; those under way go on."""
        if self._port is not None:
            await maybeDeferred(self._port.stopListening)
