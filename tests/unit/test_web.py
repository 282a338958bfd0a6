# SPDX-License-Identifier: Apache-2.0
"""The service's web server: whose pages it serves, and why it refuses to. Requests: integration."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from django.contrib.auth.models import User
from django.contrib.sessions.middleware import SessionMiddleware
from django.test import Client
from django.urls import get_resolver
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.web.http_headers import Headers
from twisted.web.resource import Resource
from twisted.web.test.requesthelper import DummyRequest

from carrot_twisted.exceptions import CarrotConfigException
from carrot_twisted.service import events, web
from carrot_twisted.service.web import Pages, RequestPool, Root, WebServer

if TYPE_CHECKING:
    from collections.abc import Sequence

ENDPOINT = "tcp:8080:interface=127.0.0.1"


def refusal(endpoint: str = ENDPOINT) -> str:
    with pytest.raises(CarrotConfigException) as caught:
        WebServer(endpoint, MemoryReactorClock())
    return str(caught.value)


class OwnSessions(SessionMiddleware):
    """What a project may have instead."""


class TestWhatIsServed:
    @pytest.mark.parametrize("endpoint", ["8080", "tcp:web", "tcp", "none:8080", ""])
    def test_nonsense_is_refused_with_an_example(self, endpoint: str) -> None:
        text = refusal(endpoint)
        assert text.startswith(f"--web={endpoint} is no endpoint (")
        assert text.endswith("--web=tcp:8080:interface=127.0.0.1")

    @pytest.mark.parametrize(
        ("urlconf", "there"),
        [
            ("tests.project.urls", True),
            ("tests.project.site", True),
            ("tests.project.pages", False),
        ],
    )
    def test_the_monitor_is_found_at_any_depth(self, urlconf: str, there: bool) -> None:
        assert web._includes(get_resolver(urlconf), web.MONITOR) is there

    def test_without_what_a_login_needs_the_settings_are_told(self, settings: Any) -> None:
        settings.ROOT_URLCONF = "tests.project.pages"
        settings.INSTALLED_APPS = [
            app for app in settings.INSTALLED_APPS if app != "django.contrib.sessions"
        ]
        settings.MIDDLEWARE = settings.MIDDLEWARE[1:2]
        text = refusal()
        assert text.startswith(
            "--web shows the monitor, for tests.project.pages does not include "
            "'carrot_twisted.urls'. Its login needs in the settings: 'django.contrib.sessions' in "
            "INSTALLED_APPS; 'django.contrib.sessions.middleware.SessionMiddleware' in MIDDLEWARE; "
        )
        assert "AuthenticationMiddleware' in MIDDLEWARE" in text
        assert "Csrf" not in text

    def test_a_middleware_of_the_projects_own_does_as_well(self, settings: Any) -> None:
        settings.ROOT_URLCONF = None
        own = f"{__name__}.{OwnSessions.__name__}"
        settings.MIDDLEWARE = [own, *settings.MIDDLEWARE[1:]]
        WebServer(ENDPOINT, MemoryReactorClock())
        # Django cannot answer at all without the setting.
        assert settings.ROOT_URLCONF == web.STANDALONE
        assert answer(Pages(), "/tasks/") == "302 Found"

    def test_what_is_no_port_of_ip_is_refused(self, tmp_path: Any) -> None:
        server = WebServer(f"unix:{tmp_path}/socket", MemoryReactorClock())
        failed: list[Any] = []
        Deferred.fromCoroutine(server.start()).addErrback(failed.append)
        assert "is no port of IP" in str(failed[0].value)


@pytest.mark.django_db
class TestStandalone:
    def test_a_person_logs_in_looks_and_logs_out(self, settings: Any) -> None:
        settings.ROOT_URLCONF = web.STANDALONE
        User.objects.create_superuser("ada", password="of ada")
        client = Client(headers={"host": "127.0.0.1"})
        assert client.get("/").headers["Location"] == "/login/?next=/"
        assert b"csrfmiddlewaretoken" in client.get("/login/").content
        answer = client.post("/login/", {"username": "ada", "password": "of ada"})
        assert answer.headers["Location"] == "/"
        assert client.get("/tasks/").status_code == 200
        assert client.post("/logout/").headers["Location"] == "/login/"
        assert client.get("/tasks/").status_code == 302

    def test_its_urls_are_those_of_its_requests_only(self, settings: Any) -> None:
        settings.ROOT_URLCONF = "tests.project.pages"
        assert answer(Pages(web.STANDALONE), "/login/none") == "404 Not Found"
        assert answer(Pages(web.STANDALONE), "/tasks/") == "302 Found"
        assert answer(Pages(), "/tasks/") == "404 Not Found"
        assert answer(Pages(), "/sleep/0") == "200 OK"


@pytest.mark.django_db
class TestGate:
    @pytest.mark.parametrize(("allowed", "status"), [(True, "200 OK"), (False, "403 Forbidden")])
    def test_it_asks_whatever_the_path_is(self, allowed: bool, status: str) -> None:
        asked = []

        def access(request: Any) -> bool:
            asked.append(request.path)
            return allowed

        assert answer(Pages(events.gate(access)), "/any/where/") == status
        assert asked == ["/any/where/"]


def answer(application: Pages, path: str) -> str:
    """The status of a request by WSGI."""
    told: list[str] = []

    def start(status: str, *_: Any) -> Any:
        told.append(status)

    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": path,
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "80",
        "HTTP_HOST": "127.0.0.1",
        "wsgi.input": io.BytesIO(),
        "wsgi.url_scheme": "http",
    }
    application(environ, start).close()
    return told[0]


class TestRoot:
    @pytest.fixture
    def pool(self) -> RequestPool:
        return RequestPool(MemoryReactorClock())

    @pytest.fixture
    def pages(self) -> Any:
        return object()

    def asked(self, root: Root, *path: str, **headers: Sequence[str]) -> Any:
        """The request, and who answers it."""
        request: Any = DummyRequest([part.encode() for part in path])
        request.path = b"/" + b"/".join(request.postpath)
        request.requestHeaders = Headers(headers)
        request.postpath.pop(0)
        request.prepath.append(path[0].encode())
        return request, root.getChildWithDefault(path[0].encode(), request)

    def test_django_gets_the_whole_path_and_no_ambiguous_headers(
        self, pool: RequestPool, pages: Any
    ) -> None:
        root = Root(pages, pool, {})
        request, found = self.asked(root, "a", "", "b", Remote_User=["root"], Accept=["x"])
        assert found is pages
        assert (request.prepath, request.postpath) == ([], [b"a", b"", b"b"])
        assert dict(request.requestHeaders.getAllRawHeaders()) == {b"Accept": [b"x"]}

    def test_others_answer_for_their_own_path(self, pool: RequestPool, pages: Any) -> None:
        stream = Resource()
        root = Root(pages, pool, {b"/m/events/": stream})
        assert self.asked(root, "m", "events", "")[1] is stream
        assert self.asked(root, "m", "events")[1] is pages

    def test_too_many_requests_are_told_to_come_back(self, pool: RequestPool, pages: Any) -> None:
        root = Root(pages, pool, {})
        pool.busy = web.MAX_REQUESTS
        request, found = self.asked(root, "a")
        assert b"Try again" in found.render(request)
        assert request.responseCode == 503
        assert request.responseHeaders.getRawHeaders(b"retry-after") == [b"5"]
        pool.busy -= 1
        assert self.asked(root, "a")[1] is pages
