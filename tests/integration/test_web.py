# SPDX-License-Identifier: Apache-2.0
"""Pages and events from the service itself, over HTTP, with a real service behind them."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from contextlib import ExitStack, closing, suppress
from http.client import HTTPConnection, HTTPResponse
from typing import TYPE_CHECKING, Any

import pytest
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.test import Client

from carrot_twisted import housekeeping
from carrot_twisted.models import MessageLog, ScheduledTask, Worker
from carrot_twisted.utilities import publish_message
from tests.processes import ServiceProcess, carrot, constants, wait_until
from tests.project import tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    StartService = Callable[..., ServiceProcess]

pytestmark = pytest.mark.only("postgres")
WEB = "--web=tcp:0:interface=127.0.0.1"
SITE = {"CARROT_TEST_URLCONF": "tests.project.site"}
EVENTS = "/deep/in/events/"
#: Heartbeats of the worker are changes, too.
RARE = carrot(lease=1000)


class Site:
    """A service's pages."""

    def __init__(self, service: ServiceProcess, cookie: str = "") -> None:
        self.service = service
        service.wait_for("Pages are served at 127.0.0.1, port ")
        (port,) = re.findall(r"Pages are served at 127.0.0.1, port (\d+)", service.log)
        self.port = int(port)
        self.cookie = cookie

    def open(
        self, path: str, method: str = "GET", body: str | None = None, **headers: str
    ) -> tuple[HTTPConnection, HTTPResponse]:
        """Ask for a page, whose body may still be to come."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        if self.cookie:
            headers["Cookie"] = f"sessionid={self.cookie}"
        connection.request(method, path, None if body is None else body.encode(), headers)
        return connection, connection.getresponse()

    def get(self, path: str, *args: Any, **headers: str) -> tuple[int, str]:
        """Status and body of a page."""
        connection, response = self.open(path, *args, **headers)
        with closing(connection):
            return response.status, response.read().decode()

    def soon(self, path: str) -> list[Any]:
        """Ask for a page in a thread; what comes of it is in the list, some time."""
        found: list[Any] = []

        def ask() -> None:
            try:
                found.append(self.get(path))
            except OSError as error:
                found.append(error)

        threading.Thread(target=ask, daemon=True).start()
        return found


class Stream:
    """A stream of events."""

    def __init__(self, site: Site) -> None:
        self.connection, self.response = site.open(EVENTS)
        self.status = self.response.status

    def close(self) -> None:
        self.response.close()
        self.connection.close()

    def next(self) -> set[str] | None:
        """Names of what the next event says has changed; None: the stream has ended."""
        end = time.monotonic() + 60
        while line := self.response.readline():
            # Comments keep it alive, whether anything changes or not.
            assert time.monotonic() < end, "nothing changes"
            if line == b"event: changed\n":
                data = self.response.readline()
                assert data.startswith(b"data: ")
                return set(json.loads(data[6:]))
            assert line in (b":\n", b"\n")
        return None

    def hears(self, name: str) -> bool:
        """Whether something of that name changes; waits for it."""
        while (names := self.next()) is not None:
            if name in names:
                return True
        return False


@pytest.fixture
def cookie(served: None) -> str:
    """Of the session of a member of the staff who may see everything."""
    client = Client()
    client.force_login(User.objects.create_superuser("ada", password="secret-of-ada"))
    return client.cookies["sessionid"].value


def test_the_projects_pages_are_served_and_slow_ones_cost_nobody_anything(
    start_service: StartService, cookie: str
) -> None:
    service = start_service(WEB, wait=False, **SITE, **constants({"service.web.PATIENCE": 2.0}))
    site = Site(service)
    text = {"Content-Type": "text/plain", "X_Forwarded_User": "root", "X-Other": "there"}
    status, body = site.get("/echo/a%20b//%C3%A9?q=1&q2=x", "POST", "über", **text)
    told = json.loads(body)
    assert (status, told["method"], told["rest"]) == (200, "POST", "a b//é")
    assert (told["path"], told["query"]) == ("/echo/a b//é", {"q": "1", "q2": "x"})
    assert (told["body"], told["address"]) == ("über", "127.0.0.1")
    # A proxy takes X-Forwarded-User out of requests, and knows it by this name only.
    assert told["headers"]["X-Other"] == "there"
    assert "X-Forwarded-User" not in told["headers"]
    assert site.get("/none")[0] == 404

    # The monitor knows its users.
    assert Site(service).get("/deep/in/tasks/")[0] in (302, 403)
    site.cookie = cookie
    assert site.get("/deep/in/tasks/")[0] == 200

    # Pages that hang.
    hanging = [site.soon("/sleep/60000") for _ in range(3)]
    started = time.monotonic()
    service.wait_for("Consuming queue default")
    _, key = site.get("/publish", "POST", '["from a page"]')
    wait_until(lambda: MessageLog.objects.get(pk=key).status == MessageLog.COMPLETED)
    assert time.monotonic() - started < 10

    # Who is being answered gets the answer, nobody else does, and the process ends.
    almost = site.soon("/sleep/1000")
    time.sleep(0.3)
    started = time.monotonic()
    service.signal()
    wait_until(lambda: refused(site.port))
    wait_until(lambda: almost)
    assert almost == [(200, "slept")]
    assert service.ends() == 0
    assert 1.5 < time.monotonic() - started < 9
    assert "3 requests for pages did not end in time" in service.log
    wait_until(lambda: all(hanging))


def refused(port: int) -> bool:
    """Whether nobody listens there."""
    with suppress(ConnectionRefusedError), closing(socket.create_connection(("127.0.0.1", port))):
        return False
    return True


def test_a_port_that_is_taken_ends_the_service_with_the_reason(
    start_service: StartService,
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        service = start_service(f"--web=tcp:{port}:interface=127.0.0.1", wait=False)
        assert service.ends() == 78
    assert f"--web=tcp:{port}:interface=127.0.0.1: Couldn't listen" in service.log
    assert "Is the port taken" in service.log
    assert "Traceback" not in service.log


@pytest.fixture
def listen() -> Iterator[Callable[[Site], Stream]]:
    """Open streams that are closed with the test."""
    with ExitStack() as stack:

        def listen(site: Site) -> Stream:
            stream = Stream(site)
            stack.callback(stream.close)
            return stream

        yield listen


def test_who_listens_hears_what_others_change(
    start_service: StartService, cookie: str, listen: Callable[[Site], Stream]
) -> None:
    # What is published to the other queue waits until it is cancelled.
    service = start_service(WEB, "--queue=default", **SITE, **RARE)
    site = Site(service, cookie)
    assert Site(service).get(EVENTS)[0] == 403
    assert site.get(EVENTS, "POST")[0] == 405
    first, second = listen(site), listen(site)
    assert first.response.headers["Content-Type"] == "text/event-stream"
    assert first.next() == {"tasks", "queues", "workers", "schedules"}
    # From here on only by other processes than the service.
    housekeeping.pause_queue("other")
    assert first.hears("queues")
    assert second.hears("queues")
    row = publish_message(tasks.echo, queue="other")
    assert first.hears("tasks")
    row.cancel()
    assert first.hears("tasks")
    ScheduledTask.objects.create(task_name="x", task="app.x", active=False)
    assert first.hears("schedules")
    housekeeping.quiet_worker(Worker.objects.get().name)
    assert first.hears("workers")
    first.close()
    assert second.hears("schedules")
    started = time.monotonic()
    assert service.stop() == 0
    assert time.monotonic() - started < 5
    # To its end.
    assert not second.hears("nothing of this name")


def test_streams_are_bounded_kept_alive_and_end_with_the_session(
    start_service: StartService, cookie: str, listen: Callable[[Site], Stream]
) -> None:
    values = {"MAX_CLIENTS": 1, "HEARTBEAT": 0.3, "RECHECK": 0.5}
    quick = constants({f"service.events.{name}": value for name, value in values.items()})
    service = start_service(WEB, wait=False, **SITE, **RARE, **quick)
    site = Site(service, cookie)
    stream = listen(site)
    connection, response = site.open(EVENTS)
    assert (response.status, response.headers["Retry-After"]) == (503, "5")
    connection.close()
    assert stream.next()
    beats = [stream.response.readline() for _ in range(12)]
    assert b":\n" in beats
    Session.objects.all().delete()
    assert not stream.hears("nothing of this name")
    # Its place is free.
    wait_until(lambda: site.get(EVENTS)[0] == 403)
    assert service.stop() == 0
