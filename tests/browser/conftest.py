# SPDX-License-Identifier: Apache-2.0
"""Chromium for the tests, and a visitor who is logged in and tolerates no error on a page."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.contrib.auth.models import Permission, User
from django.test import Client
from playwright.sync_api import expect as assertions
from playwright.sync_api import sync_playwright

from tests.browser.elsewhere import Elsewhere
from tests.conftest import missing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, ConsoleMessage, Page, Request

#: Where tests/project/urls.py has the monitor.
MONITOR = "/some/where/"
#: Rules of axe: WCAG up to 2.2 AA, and what its authors advise.
AXE = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}


@pytest.fixture(scope="session")
def library() -> Iterator[Any]:
    """Playwright, in a thread of its own."""
    with ThreadPoolExecutor(1) as thread:
        playwright = Elsewhere(thread, sync_playwright())
        yield playwright.start()
        playwright.__exit__(None, None, None)


@pytest.fixture(scope="session")
def chromium(library: Any) -> Iterator[Browser]:
    """A running browser."""
    program = shutil.which("chromium")
    if program is None:
        missing("Chromium is not installed: apt-get install chromium")
    # Without its sandbox, which root has not: it visits our own pages only.
    browser = library.chromium.launch(executable_path=program, args=["--no-sandbox"])
    yield browser
    browser.close()


def expect(subject: Any) -> Any:
    """Playwright's, for objects that live in its thread."""
    return Elsewhere(subject._thread, assertions)(subject)


class Visitor:
    """Opens pages of the monitor, and notes whatever goes wrong on them."""

    def __init__(self, browser: Browser, server: str, stack: ExitStack) -> None:
        self._browser = browser
        self._server = server
        self._stack = stack
        #: Errors of scripts, refused or failed requests, breaches of the policy for content.
        self.faults: list[str] = []
        #: Failed requests that a test provokes: parts of their addresses.
        self.expected: list[str] = []

    def open(
        self,
        path: str = "",
        *,
        user: str | None = "ann",
        permissions: list[str] | None = None,
        scripts: bool = True,
        width: int = 1280,
        scheme: Any = "light",
    ) -> Page:
        """A page of the monitor, in a browser session of its own.

        Args:
            path: below the monitor's address.
            user: who is logged in; None: nobody.
            permissions: of a member of the staff; None: all.
            scripts: whether the browser runs them.
            width: of the window, in pixels.
            scheme: light or dark.
        """
        context = self._browser.new_context(
            base_url=f"{self._server}{MONITOR}",
            viewport={"width": width, "height": 900},
            color_scheme=scheme,
            java_script_enabled=scripts,
            # Else what is tested depends on how far an animation has come.
            reduced_motion="reduce",
        )
        self._stack.callback(context.close)
        if user is not None:
            session = session_of(user, permissions)
            context.add_cookies([{"name": "sessionid", "value": session, "url": self._server}])
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("request", self._request)
        page.goto(path)
        return page

    def _console(self, message: ConsoleMessage) -> None:
        where = message.location.get("url", "")
        if message.type == "error" and not any(part in where for part in self.expected):
            self.faults.append(f"{message.text} ({where})")

    def _request(self, request: Request) -> None:
        if not request.url.startswith((self._server, "data:", "blob:")):
            self.faults.append(f"{request.url} is of another host")


def session_of(name: str, permissions: list[str] | None) -> str:
    """The session's key of a user who has logged in; without one, it is made."""
    user, created = User.objects.get_or_create(username=name, defaults={"is_staff": True})
    if created and permissions is None:
        user.is_superuser = True
        user.save()
    for permission in permissions or []:
        app, _, codename = permission.partition(".")
        user.user_permissions.add(
            Permission.objects.get(content_type__app_label=app, codename=codename)
        )
    client = Client()
    client.force_login(user)
    return client.cookies["sessionid"].value


@pytest.fixture
def visitor(django_db_setup: None, chromium: Browser, live_server: Any) -> Iterator[Visitor]:
    """Somebody with a browser; at the end of the test nothing may have gone wrong in it."""
    with ExitStack() as stack:
        visitor = Visitor(chromium, live_server.url, stack)
        yield visitor
    assert not visitor.faults


def check_accessibility(page: Any) -> None:
    """Fail if axe finds anything against WCAG 2.2 AA."""
    result = Elsewhere(page._thread, Axe().run)(page, options=AXE)
    assert result.violations_count == 0, result.generate_report()


def check_width(page: Page) -> None:
    """Fail if the page is wider than its window."""
    wide, window = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= window, f"the page is {wide} pixels wide, the window {window}"
