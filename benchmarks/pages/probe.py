# SPDX-License-Identifier: Apache-2.0
"""Asks for the pages of a Django project, in a process of their own: `fill` rows, then `measure`.

Requests go through Django's client, with all middleware and with rendering, but without a socket.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict, dataclass
from datetime import timedelta
from html import unescape
from typing import TYPE_CHECKING, Any

import django
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from benchmarks import processes
from benchmarks.pages.timing import WARM_UP, Timing, timed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Milliseconds that were promised: of a list or a filter, and of a text search.
LIST, SEARCH = 100.0, 1000.0
MONITOR, ADMIN = "/carrot/", "/admin/django_celery_results/taskresult/"


@dataclass(frozen=True, kw_only=True)
class Page:
    """What is asked for."""

    name: str
    url: str
    system: str = "carrot-twisted"
    target: float | None = LIST
    to_the_end: bool = False
    """Go on, as the page does by itself, until all rows were looked through."""


def main() -> None:
    """One step; what it finds is its last line."""
    django.setup()
    step, number = sys.argv[1], int(sys.argv[2])
    result = {"fill": fill, "measure": measure}[step](number)
    print(json.dumps(result))


def fill(count: int) -> None:
    """Make the tables, and so many rows."""
    from benchmarks.pages import rows

    call_command("migrate", verbosity=0)
    get_user_model().objects.create_superuser("root")
    rows.fill(count)


def measure(requests: int) -> list[dict[str, Any]]:
    """Ask for each page so often."""
    client = Client()
    client.force_login(get_user_model().objects.get())
    server_cpu = _server_cpu()
    return [asdict(one) for one in _timings(client, requests, server_cpu)]


def _timings(
    client: Client, requests: int, server_cpu: Callable[[], float | None]
) -> Iterator[Timing]:
    for page in pages():
        ask = _walk if page.to_the_end else _get
        with CaptureQueriesContext(connection) as captured:
            ask(client, page.url)
        # Django forgets them with the next request.
        queries = len(captured)
        wall, slowest, cpu, server = timed(
            lambda ask=ask, page=page: ask(client, page.url),  # type: ignore[misc]
            1 if page.to_the_end else requests,
            server_cpu,
            warm_up=0 if page.to_the_end else WARM_UP,
        )
        yield Timing(
            system=page.system,
            page=page.name,
            wall=wall,
            slowest=slowest,
            cpu=cpu,
            server_cpu=server,
            queries=queries,
            target=page.target,
        )


def _get(client: Client, url: str, **headers: str) -> str:
    answer = client.get(url, headers=headers)
    if answer.status_code != 200:
        raise RuntimeError(f"{url}: {answer.status_code}")
    return answer.content.decode()


def _walk(client: Client, url: str) -> str:
    text = _get(client, url)
    while found := re.search(r'id="task-pager"[^>]*hx-get="([^"]*)"', text):
        text = _get(client, unescape(found[1]), **{"HX-Request": "true"})
    return text


def _server_cpu() -> Callable[[], float | None]:
    if connection.vendor != "postgresql":
        return lambda: None
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    return lambda: processes.cpu_seconds(pid)


def pages() -> Iterator[Page]:
    """All that is asked for."""
    from benchmarks.pages.rows import NEEDLE
    from carrot_twisted.models import MessageLog
    from carrot_twisted.monitor import keyset

    tasks, api = f"{MONITOR}tasks/", f"{MONITOR}api/message-logs/"
    for span in ("hour", "day", "week"):
        # Charts: no list, and nothing was promised of them.
        yield Page(name=f"overview, {span}", url=f"{MONITOR}?span={span}", target=None)
    for listing in keyset.LISTINGS:
        yield Page(name=f"{listing}", url=f"{tasks}?state={'' if listing == 'all' else listing}")
    day, hour = timezone.now() - timedelta(days=3), timedelta(hours=1)
    middle = keyset.first_key(day).hex
    since, until = (f"{when:%Y-%m-%dT%H:%M:%S}" for when in (day, day + hour))
    for name, query in (
        ("all, from the middle on", f"after={middle}"),
        ("all, the oldest first", "sort=oldest"),
        ("all, one hour", f"since={since}&until={until}"),
        ("all, a queue", "queue=mail"),
        ("all, a task", "task=shop.tasks.task_5"),
        ("all, a worker", "worker=worker-3"),
        ("all, a task that is not there", "task=shop.none"),
        ("queued, a queue", "state=queued&queue=mail"),
        ("queued, a task", "state=queued&task=shop.tasks.task_2"),
        ("queued, a task that is not there", "state=queued&task=shop.none"),
        ("queued, a worker", "state=queued&worker=worker-3"),
        ("failed, a task", "state=failed&task=shop.tasks.task_5"),
        ("failed, a queue", "state=failed&queue=mail"),
        ("completed, a worker", "state=completed&worker=worker-3"),
        ("completed, one hour", f"state=completed&since={since}&until={until}"),
    ):
        yield Page(name=name, url=f"{tasks}?{query}")
    for name, query in (
        ("a text that many have", "q=usual+shop"),
        ("a text that one has", f"q={NEEDLE}"),
        ("queued, a text that none has", "q=nothing-has-this&state=queued"),
    ):
        yield Page(name=f"{name}, first answer", url=f"{tasks}?{query}", target=SEARCH)
    yield Page(
        name="a text that one has, to the end",
        url=f"{tasks}?q={NEEDLE}",
        target=None,
        to_the_end=True,
    )
    key = MessageLog.objects.filter(status="FAILED").values_list("pk", flat=True)[0]
    yield Page(name="a task", url=f"{tasks}{key}/")
    for name in ("queues", "schedules", "workers"):
        yield Page(name=name, url=f"{MONITOR}{name}/")
    for listing in ("published", "failed", "completed"):
        yield Page(name=f"API, {listing}", url=f"{api}{listing}/")
    is_long = keyset.count(keyset.Query(listing="completed"), 10_000).count == 10_000
    if is_long:
        yield Page(name="API, completed, page 200", url=f"{api}completed/?page=200")
    yield Page(
        name="API, completed, a text that one has",
        url=f"{api}completed/?search={NEEDLE}",
        target=SEARCH,
    )
    yield Page(name="API, queues", url=f"{MONITOR}api/queues/")
    for name, query in (
        ("the list", ""),
        ("failed", "status__exact=FAILURE"),
        ("a task", "task_name=shop.tasks.task_5"),
        ("page 200", "p=200"),
        ("a text that one has", f"q={NEEDLE}"),
    ):
        if name == "page 200" and not is_long:
            continue
        yield Page(
            name=name, url=f"{ADMIN}?{query}", system="django-celery-results' admin", target=None
        )


if __name__ == "__main__":
    main()
