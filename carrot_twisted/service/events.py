# SPDX-License-Identifier: Apache-2.0
"""Tells browsers that something has changed (server-sent events), without a thread for each.

The stream says what has changed, not how: the page asks for that, as it did the first time. ::

    event: changed
    data: ["tasks", "workers"]

All names come first, for nobody knows what has changed since the page was made. Then those of what
has changed, at most once a second, whoever has changed it: the tables are looked at once a second,
in a thread, while there are clients. Comments keep the connection alive in between.

Who may listen is asked of Django, by a request through all of the project's middleware, when a
client connects and again each minute. Who may no more is disconnected; the browser connects again,
and is refused.
"""

from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from django.contrib.auth.decorators import login_not_required
from django.db import DatabaseError, InterfaceError, connections, reset_queries
from django.http import HttpResponse
from django.urls import re_path
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from txaio.tx import make_logger

from carrot_twisted import changes
from carrot_twisted.service.chore import Chore
from carrot_twisted.service.pool import DaemonThreadPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from django.core.handlers.wsgi import WSGIHandler
    from django.http import HttpRequest
    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure
    from twisted.python.threadpool import ThreadPool
    from twisted.web.server import Request

    from carrot_twisted.changes import Marker

_log = make_logger()

#: Of the stream, behind the monitor's, and the function that says who may see that.
PATH = "events/"
ACCESS = "carrot_twisted.monitor.access.may_view"
#: Clients at once, and the seconds after which one that finds so many may try again.
MAX_CLIENTS = 100
RETRY_AFTER = 5
#: Seconds between looks at the tables, comments, and questions whether a client may still listen.
INTERVAL = 1.0
HEARTBEAT = 15.0
RECHECK = 60.0


def gate(access: Callable[[HttpRequest], bool]) -> tuple[Any, ...]:
    """URLs of an application that answers each request with 200 or 403, as access says."""

    @login_not_required
    def check(request: HttpRequest) -> HttpResponse:
        return HttpResponse(status=200 if access(request) else 403)

    return (re_path("", check),)


class Client:
    """One browser that listens, or is about to."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.environ = environ_of(request)
        self.admitted = False
        self.fresh = True
        """It has heard nothing yet."""
        self.checked = 0.0
        """When it was asked last whether it may listen, in reactor time."""

    def begin(self) -> None:
        """It may listen."""
        self.admitted = True
        request = self.request
        request.setHeader(b"content-type", b"text/event-stream")
        request.setHeader(b"cache-control", b"no-store")
        # nginx would keep the lines until they are many.
        request.setHeader(b"x-accel-buffering", b"no")
        self.comment()

    def tell(self, names: Iterable[str]) -> None:
        """Something has changed."""
        self.fresh = False
        self.request.write(f"event: changed\ndata: {json.dumps([*names])}\n\n".encode())

    def comment(self) -> None:
        """We are still there."""
        self.request.write(b":\n\n")


class EventStream(Resource):
    """The resource, and all who listen.

    Args:
        gate: an application with the URLs of ``gate``.
        pool: of threads that answer requests.
        using: database alias.
        reactor: Twisted's reactor.
    """

    isLeaf = True

    def __init__(self, gate: WSGIHandler, pool: ThreadPool, using: str, reactor: Any) -> None:
        super().__init__()
        self._gate = gate
        self._pool = pool
        self._using = using
        self._reactor = reactor
        #: All that were not told to go; those that are not admitted yet are asked about.
        self._clients: set[Client] = set()
        self._closed = False
        self._looker = DaemonThreadPool(minthreads=0, maxthreads=1, name="carrot-events")
        self._marker: Marker = {}
        self._loops = [
            LoopingCall(Chore(f"The service {what}", reactor.seconds).attempt, work)
            for what, work in (
                ("looks for what has changed", self._look),
                ("keeps streams of events alive", self._keep_alive),
            )
        ]
        for loop in self._loops:
            loop.clock = reactor

    def render_GET(self, request: Request) -> Any:
        """A browser wants to listen."""
        if self._closed or len(self._clients) >= MAX_CLIENTS:
            return come_back(request)
        client = Client(request)
        self._clients.add(client)
        request.notifyFinish().addBoth(self._gone, client)
        self._ask(client).addCallback(self._answer, client)
        return NOT_DONE_YET

    def close(self) -> None:
        """The service stops: nobody listens any more."""
        self._closed = True
        for loop in self._loops:
            if loop.running:
                loop.stop()
        for client in list(self._clients):
            client.request.finish()

    def _ask(self, client: Client) -> Deferred[int]:
        """The status that the gate gives this client."""
        client.checked = self._reactor.seconds()

        def failed(failure: Failure) -> int:
            _log.failure("Who may listen to events could not be told", failure=failure)
            return 500

        asked: Deferred[int] = deferToThreadPool(
            self._reactor, self._pool, self._status, client.environ
        )
        return asked.addErrback(failed)

    def _status(self, environ: dict[str, Any]) -> int:
        """In a thread."""
        told: list[str] = []

        def start(status: str, *_: Any) -> Any:
            told.append(status)

        # A middleware may write to it.
        response = self._gate(dict(environ, **{"wsgi.input": io.BytesIO()}), start)
        try:
            for _ in response:
                pass
        finally:
            response.close()
        return int(told[0].partition(" ")[0])

    def _answer(self, status: int, client: Client) -> None:
        if client not in self._clients:
            return
        if status == 200:
            client.begin()
            self._start()
            return
        request = client.request
        if status >= 500:
            # The database is away, say.
            request.write(come_back(request))
        else:
            request.setResponseCode(403)
            request.write(b"Log in first.\n")
        request.finish()

    def _answer_again(self, status: int, client: Client) -> None:
        if client in self._clients and status != 200:
            client.request.finish()

    def _gone(self, _: object, client: Client) -> None:
        self._clients.discard(client)

    def _start(self) -> None:
        if not self._looker.started:
            self._looker.start()
            for loop, interval in zip(self._loops, (INTERVAL, HEARTBEAT), strict=True):
                loop.start(interval)

    def _look(self) -> Deferred[None] | None:
        if not any(client.admitted for client in self._clients):
            if self._marker:
                # Nobody is interested. Whoever is next begins anew.
                self._marker = {}
                self._looker.callInThread(connections.close_all)
            return None
        looked: Deferred[Marker] = deferToThreadPool(self._reactor, self._looker, self._read)
        return looked.addCallback(self._tell)

    def _read(self) -> Marker:
        """In the thread that looks."""
        try:
            return changes.marker(self._using)
        except (DatabaseError, InterfaceError):
            connections[self._using].close()
            raise
        finally:
            reset_queries()

    def _tell(self, marker: Marker) -> None:
        changed = changes.changed(self._marker, marker)
        self._marker = marker
        for client in self._clients:
            if client.admitted and client.fresh:
                client.tell(changes.TABLES)
            elif client.admitted and changed:
                client.tell(changed)

    def _keep_alive(self) -> None:
        now = self._reactor.seconds()
        for client in self._clients:
            if not client.admitted:
                continue
            client.comment()
            if now - client.checked >= RECHECK:
                self._ask(client).addCallback(self._answer_again, client)


def come_back(request: Request) -> bytes:
    """The answer to a request that finds too many others, or no database."""
    request.setResponseCode(503)
    request.setHeader(b"retry-after", b"%d" % RETRY_AFTER)
    return b"Try again in some seconds.\n"


def environ_of(request: Request) -> dict[str, Any]:
    """What WSGI tells an application of a request without a body."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote(request.path.decode("latin-1"), "latin-1"),
        "QUERY_STRING": "",
        "REMOTE_ADDR": request.getClientAddress().host,
        "SERVER_NAME": request.getRequestHostname().decode("latin-1"),
        "SERVER_PORT": str(request.getHost().port),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "https" if request.isSecure() else "http",
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, values in request.requestHeaders.getAllRawHeaders():
        # One with an underscore would pass for another one.
        if b"_" not in name:
            key = f"HTTP_{name.decode('latin-1').upper().replace('-', '_')}"
            environ[key] = (
                (b"; " if name.lower() == b"cookie" else b",").join(values).decode("latin-1")
            )
    return environ
