# SPDX-License-Identifier: Apache-2.0
"""The monitor as the service itself serves it: what happens appears at once, by its events."""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from carrot_twisted.models import MessageLog
from carrot_twisted.utilities import publish_message
from tests.browser.conftest import Visitor, expect
from tests.processes import carrot
from tests.project import tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Browser

    from tests.processes import ServiceProcess

pytestmark = pytest.mark.rabbitmq
#: Heartbeats, which are changes too, come seldom: what is seen comes by what is looked for.
RARE = carrot(lease=1000)
#: From now on nothing happens on the page by itself: only events can bring anything.
NO_POLLING = "for (let timer = setInterval(() => 0, 1e6); timer; timer--) clearInterval(timer)"


@pytest.fixture
def at_service(
    start_service: Callable[..., ServiceProcess], chromium: Browser
) -> Iterator[tuple[ServiceProcess, Visitor]]:
    """A service that serves the monitor, and a visitor of it."""
    service = start_service("--web=tcp:0:interface=127.0.0.1", **RARE)
    served = r"Pages are served at 127.0.0.1, port (\d+)"
    service.wait_for("Pages are served at 127.0.0.1, port ")
    (port,) = re.findall(served, service.log)
    with ExitStack() as stack:
        visitor = Visitor(chromium, f"http://127.0.0.1:{port}", stack)
        yield service, visitor
    assert not visitor.faults


def test_what_happens_appears_without_a_reload_and_without_asking(
    at_service: tuple[ServiceProcess, Visitor], tmp_path: Path
) -> None:
    _service, visitor = at_service
    page = visitor.open("tasks/")
    expect(page.get_by_text("No tasks yet")).to_be_visible()
    # One event has come: the stream is open.
    first = publish_message(tasks.noop)
    expect(page.locator(f"#task-{first.pk}").get_by_text("Completed")).to_be_visible()
    page.evaluate(NO_POLLING)
    page.evaluate("window.same = true")

    flag = tmp_path / "flag"
    row = publish_message(tasks.talk, str(flag))
    shown = page.locator(f"#task-{row.pk}")
    expect(shown.get_by_text("In progress")).to_be_visible()

    # Its log, while it runs.
    of_task = visitor.open(f"tasks/{row.pk}/")
    of_task.evaluate(NO_POLLING)
    log = of_task.get_by_role("region", name="Lines of the log")
    expect(log.get_by_text("attempt 1 has begun")).to_be_visible()

    flag.touch()
    expect(shown.get_by_text("Completed")).to_be_visible()
    expect(of_task.get_by_role("heading", name="Result")).to_be_visible()
    assert page.evaluate("window.same")
    assert MessageLog.objects.get(pk=row.pk).status == MessageLog.COMPLETED
