# SPDX-License-Identifier: Apache-2.0
"""Serves the Django project's pages from the service, for those without a web process.

Django answers in threads of its own, as under any WSGI server: a page that takes long, or hangs,
costs neither the reactor nor the tasks anything, and does not hold up the end of the process. Where
the project has not put the monitor among its URLs, a few of ours are served instead of them: the
monitor at ``/``, and pages to log in and out.

The stream of events (``events``) is answered by the reactor itself: it would keep a thread for each
browser.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.wsgi import WSGIHandler
from django.db import router
from django.urls import NoReverseMatch, URLResolver, get_resolver, reverse
from django.utils.module_loading import import_string
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.task import deferLater
from twisted.web.resource import Resource
from twisted.web.wsgi import WSGIResource
from txaio.tx import make_logger

from carrot_twisted import changes, conf
from carrot_twisted.exceptions import CarrotConfigException
from carrot_twisted.models import MessageLog
from carrot_twisted.service import events
from carrot_twisted.service.listening import Listener
from carrot_twisted.service.pool import DaemonThreadPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.http import HttpRequest
    from django.http.response import HttpResponseBase
    from twisted.web.server import Request

_log = make_logger()

#: Requests that are answered at once, and those that may be under way in all: one that finds so
#: many is told to come back.
THREADS = 10
MAX_REQUESTS = 100
#: Seconds that requests get to end when the service stops.
PATIENCE = 5.0
#: For people who are to write an endpoint.
EXAMPLE = "tcp:8080:interface=127.0.0.1"
#: The monitor's URLs, which a project may have among its own, the name of the first of them, and
#: those that stand in for a project's.
MONITOR = "carrot_twisted.urls"
MONITOR_NAME = "carrot-monitor"
STANDALONE = "carrot_twisted.standalone_urls"
#: What our pages with a login need in Django's settings.
NEEDED_APPS = ("django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions")
NEEDED_MIDDLEWARE = (
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
)


class RequestPool(DaemonThreadPool):
    """The threads in which Django answers; it knows how many requests are under way.

    Args:
        reactor: Twisted's reactor.
    """

    def __init__(self, reactor: Any) -> None:
        super().__init__(minthreads=0, maxthreads=THREADS, name="carrot-web")
        self._reactor = reactor
        #: Waiting ones included. Of the reactor's thread.
        self.busy = 0

    def callInThreadWithCallback(self, *args: Any, **kwargs: Any) -> None:
        """Twisted's way into the pool; called in the reactor."""
        on_result, function, *given = args

        def work() -> Any:
            try:
                return function(*given, **kwargs)
            finally:
                self._reactor.callFromThread(self._ended)

        self.busy += 1
        super().callInThreadWithCallback(on_result, work)

    def _ended(self) -> None:
        self.busy -= 1


class Pages(WSGIHandler):
    """The project's application, perhaps with other URLs than its own.

    Args:
        urlconf: those; None: the project's.
        stream: path of the stream of events, which pages are told of; None: there is none.
    """

    def __init__(self, urlconf: Any = None, stream: str | None = None) -> None:
        super().__init__()
        self._urlconf = urlconf
        self._stream = stream

    def get_response(self, request: HttpRequest) -> HttpResponseBase:
        """Not by the setting: the tasks of this process make links to the project's pages."""
        if self._urlconf is not None:
            request.urlconf = self._urlconf
        if self._stream is not None:
            # No header can have this name.
            request.META[changes.STREAM] = self._stream
        return super().get_response(request)


class Root(Resource):
    """Says who answers a request.

    Args:
        pages: Django.
        pool: in which it does.
        special: what others answer, by path.
    """

    def __init__(
        self,
        pages: WSGIResource,
        pool: RequestPool,
        special: dict[bytes, Resource],
    ) -> None:
        super().__init__()
        self._pages = pages
        self._pool = pool
        self._special = special

    def getChildWithDefault(self, path: bytes, request: Request) -> Any:
        """Twisted's question, about the first part of the path."""
        assert request.prepath is not None
        assert request.postpath is not None
        if request.path in self._special:
            return self._special[request.path]
        if self._pool.busy >= MAX_REQUESTS:
            return Busy()
        # For Django, a header with an underscore is the same as one with a dash, which a proxy may
        # have taken out.
        for name, _ in list(request.requestHeaders.getAllRawHeaders()):
            if b"_" in name:
                request.requestHeaders.removeHeader(name)
        # Django looks at all of the path.
        request.prepath.pop()
        request.postpath.insert(0, path)
        return self._pages


class Busy(Resource):
    """Come back later."""

    isLeaf = True

    def render(self, request: Request) -> bytes:
        """Whatever was asked."""
        return events.come_back(request)


class WebServer:
    """Listens, and answers.

    Args:
        endpoint: where, as Twisted describes it: "tcp:8080:interface=127.0.0.1".
        reactor: Twisted's reactor.

    Raises:
        CarrotConfigException: the endpoint makes no sense, or the settings do not do for pages.
    """

    def __init__(self, endpoint: str, reactor: Any) -> None:
        self._description = endpoint
        self._reactor = reactor
        self._listener = Listener("web", endpoint, EXAMPLE, reactor)
        urlconf = self._urlconf()
        self._pool = RequestPool(reactor)
        special: dict[bytes, Resource] = {}
        self._events: events.EventStream | None = None
        stream = None
        try:
            stream = f"{reverse(MONITOR_NAME, urlconf=urlconf)}{events.PATH}"
        except NoReverseMatch:
            # It is in a namespace of the project's. Its pages ask now and then by themselves.
            pass
        else:
            gate = Pages(events.gate(import_string(events.ACCESS)))
            using = router.db_for_read(MessageLog)
            self._events = events.EventStream(gate, self._pool, using, reactor)
            special[stream.encode()] = self._events
        pages = WSGIResource(reactor, self._pool, Pages(urlconf, stream))
        self._root = Root(pages, self._pool, special)
        self._hurry = False

    def _urlconf(self) -> str | None:
        project = conf.of_django("ROOT_URLCONF")
        if project and _includes(get_resolver(project), MONITOR):
            return None
        missing = list(_missing())
        if missing:
            raise CarrotConfigException(
                f"--web shows the monitor, for {project or 'the project'} does not include "
                f"{MONITOR!r}. Its login needs in the settings: {'; '.join(missing)}."
            )
        import_module(STANDALONE)
        conf.serve_urls(STANDALONE)
        return STANDALONE

    async def start(self) -> None:
        """Listen.

        Raises:
            CarrotConfigException: somebody else does, or this user may not.
        """
        self._pool.start()
        await self._listener.listen(self._root)
        if not isinstance(self._listener.host, IPv4Address | IPv6Address):
            # Django asks for the client's address.
            await self._listener.stop()
            raise CarrotConfigException(
                f"--web={self._description} is no port of IP. Write --web=tcp:8080, for example."
            )
        _log.info("Pages are served at {address}", address=self._listener.address)

    def hurry(self) -> None:
        """End a stop now."""
        self._hurry = True

    async def stop(self) -> bool:
        """Listen no more, and wait a while for those who are being answered.

        Returns:
            Whether all were: else a thread is still at it.
        """
        if not self._listener.is_listening:
            return True
        await self._listener.stop()
        if self._events is not None:
            self._events.close()
        end = self._reactor.seconds() + PATIENCE
        while self._pool.busy and not self._hurry and self._reactor.seconds() < end:
            await deferLater(self._reactor, 0.02)
        if self._pool.busy:
            _log.warn("{n} requests for pages did not end in time", n=self._pool.busy)
        return not self._pool.busy


def _includes(resolver: URLResolver, module: str) -> bool:
    """Whether a URLconf includes the URLs of a module, at whatever depth."""
    for one in resolver.url_patterns:
        if isinstance(one, URLResolver):
            name = getattr(one.urlconf_name, "__name__", one.urlconf_name)
            if name == module or _includes(one, module):
                return True
    return False


def _missing() -> Iterator[str]:
    """What the settings lack for pages with a login."""
    for app in NEEDED_APPS:
        if not apps.is_installed(app):
            yield f"{app!r} in INSTALLED_APPS"
    there = [import_string(path) for path in conf.of_django("MIDDLEWARE")]
    for path in NEEDED_MIDDLEWARE:
        needed: Callable[..., Any] = import_string(path)
        # A project may have one of its own.
        if not any(isinstance(one, type) and issubclass(one, needed) for one in there):  # type: ignore[arg-type]
            yield f"{path!r} in MIDDLEWARE"
    try:
        conf.of_django("SECRET_KEY")
    except ImproperlyConfigured:
        yield "a SECRET_KEY"
