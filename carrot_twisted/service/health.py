# SPDX-License-Identifier: Apache-2.0
"""What ``--http`` serves for machines that watch over the service: /live, /ready and /metrics.

The reactor answers by itself, from what its parts know, without a thread, Django or a query: so an
answer at ``/live`` shows that the reactor turns, which is all that it tells. ``/ready`` tells
whether the service works, and if not, why: in the words that ``manage.py carrot_status`` and
systemd get, too. Both go on answering while a stop waits for running tasks.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Protocol

from prometheus_client import CONTENT_TYPE_LATEST
from twisted.web.resource import Resource
from txaio.tx import make_logger

from carrot_twisted import __version__
from carrot_twisted.service.listening import Listener
from carrot_twisted.service.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from twisted.web.server import Request

    from carrot_twisted.service.parts import Parts

_log = make_logger()

EXAMPLE = "tcp:9090:interface=127.0.0.1"
OK = 200
NOT_FOUND = 404
NOT_ALLOWED = 405
UNAVAILABLE = 503
#: Why a service that stops is not ready.
STOPPING = "the service is stopping"
#: Why one is not that has found no better reason.
NOT_YET = "not all queues are consumed yet"


class Served(Protocol):
    """Whose health it is: the engine, or the consumers of callbacks."""

    @property
    def name(self) -> str:
        """Of this process, for people."""

    @property
    def consuming(self) -> bool:
        """Whether the broker delivers from each of the queues that are not paused."""

    @property
    def problems(self) -> list[str]:
        """What keeps it from working just now, for people; empty if all is well."""

    @property
    def summary(self) -> str:
        """What it does when it has no problems, for people."""

    @property
    def parts(self) -> Parts:
        """What its metrics are made of."""


class Health:
    """The answers at ``/live`` and ``/ready``.

    Args:
        served: the engine.
        reactor: Twisted's reactor.
    """

    def __init__(self, served: Served, reactor: Any) -> None:
        self._served = served
        self._seconds = reactor.seconds
        self._began = reactor.seconds()
        self.stopping = False

    def live(self) -> tuple[int, dict[str, Any]]:
        """Status of HTTP, and what there is to tell."""
        seconds = round(self._seconds() - self._began, 1)
        return OK, {
            "live": True,
            "worker": self._served.name,
            "version": __version__,
            "seconds": seconds,
        }

    def ready(self) -> tuple[int, dict[str, Any]]:
        """Status of HTTP, and what there is to tell."""
        reasons = self._reasons()
        return UNAVAILABLE if reasons else OK, {
            "ready": not reasons,
            "worker": self._served.name,
            "summary": "" if reasons else self._served.summary,
            "reasons": reasons,
        }

    def _reasons(self) -> list[str]:
        if self.stopping:
            return [STOPPING]
        if self._served.problems:
            # One cause may keep many queues from being consumed.
            return list(dict.fromkeys(self._served.problems))
        return [] if self._served.consuming else [NOT_YET]


class Answers(Resource):
    """The root: says what is found at each path.

    Args:
        health: for ``/live`` and ``/ready``.
        metrics: for ``/metrics``.
    """

    def __init__(self, health: Health, metrics: Metrics) -> None:
        super().__init__()
        self._pages = {
            b"live": Answer(health.live, _live_lines),
            b"ready": Answer(health.ready, _ready_lines),
            b"metrics": MetricsPage(metrics),
        }

    def getChildWithDefault(self, path: bytes, request: Request) -> Resource:
        """Twisted's question, about the first part of the path."""
        return self._pages.get(path, Nothing())


class Page(Resource):
    """One path; its answer is of this moment."""

    isLeaf = True

    def render(self, request: Request) -> bytes:
        """Twisted's question, about GET and HEAD; others are refused."""
        request.setHeader(b"server", b"carrot")
        request.setHeader(b"cache-control", b"no-store")
        request.setHeader(b"x-content-type-options", b"nosniff")
        if request.postpath:
            return _tell(request, NOT_FOUND, "There is nothing here.")
        if request.method not in (b"GET", b"HEAD"):
            request.setHeader(b"allow", b"GET, HEAD")
            return _tell(request, NOT_ALLOWED, "Ask with GET.")
        # Twisted counts the bytes of an answer to HEAD, and leaves them out.
        return self.answer(request)

    def answer(self, request: Request) -> bytes:
        """The body; sets status and type."""
        raise NotImplementedError


class Nothing(Page):
    """There is no such path."""

    def answer(self, request: Request) -> bytes:
        """For people."""
        return _tell(request, NOT_FOUND, "There are /live, /ready and /metrics here.")


class Answer(Page):
    """As text, or as JSON for those who ask for that by ``?format=json`` or ``Accept``.

    Args:
        ask: gives the status of HTTP, and the object for JSON.
        lines: makes a text of that object.
    """

    def __init__(
        self,
        ask: Callable[[], tuple[int, dict[str, Any]]],
        lines: Callable[[dict[str, Any]], Sequence[str]],
    ) -> None:
        super().__init__()
        self._ask = ask
        self._lines = lines

    def answer(self, request: Request) -> bytes:
        """Status and body."""
        status, found = self._ask()
        if not _wants_json(request):
            return _tell(request, status, "\n".join(self._lines(found)))
        request.setResponseCode(status)
        request.setHeader(b"content-type", b"application/json")
        return json.dumps(found).encode() + b"\n"


class MetricsPage(Page):
    """The metrics, for Prometheus.

    Args:
        metrics: makes the text.
    """

    def __init__(self, metrics: Metrics) -> None:
        super().__init__()
        self._metrics = metrics

    def answer(self, request: Request) -> bytes:
        """Prometheus' text form."""
        request.setHeader(b"content-type", CONTENT_TYPE_LATEST.encode())
        return self._metrics.text()


class HealthServer:
    """Listens, and answers.

    Args:
        endpoint: where, as Twisted describes it.
        served: the engine.
        reactor: Twisted's reactor.

    Raises:
        CarrotConfigException: the endpoint makes no sense.
    """

    def __init__(self, endpoint: str, served: Served, reactor: Any) -> None:
        self._listener = Listener("http", endpoint, EXAMPLE, reactor)
        self._health = Health(served, reactor)
        self._metrics = Metrics(served, reactor)

    async def start(self) -> None:
        """Listen.

        Raises:
            CarrotConfigException: somebody else does, or this user may not.
        """
        await self._listener.listen(Answers(self._health, self._metrics))
        _log.info("Health and metrics are served at {address}", address=self._listener.address)

    def started(self) -> None:
        """The database has answered, and has the tables that metrics are made of."""
        self._metrics.start()

    def stopping(self) -> None:
        """It is not ready any more, and asks the database nothing."""
        self._health.stopping = True
        self._metrics.stop()

    async def stop(self) -> None:
        """Listen no more."""
        await self._listener.stop()


def _live_lines(found: dict[str, Any]) -> list[str]:
    return [f"live: {found['worker']}, for {found['seconds']:.0f} s"]


def _ready_lines(found: dict[str, Any]) -> list[str]:
    if found["ready"]:
        return [f"ready: {found['summary']}"]
    return ["not ready", *(f"- {reason}" for reason in found["reasons"])]


def _wants_json(request: Request) -> bool:
    assert request.args is not None
    asked: list[bytes] = request.args.get(b"format", [])
    return asked == [b"json"] or (
        not asked and b"application/json" in (request.getHeader(b"accept") or b"")
    )


def _tell(request: Request, status: int, text: str) -> bytes:
    request.setResponseCode(status)
    request.setHeader(b"content-type", b"text/plain; charset=utf-8")
    return f"{text}\n".encode()
