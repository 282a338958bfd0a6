# SPDX-License-Identifier: Apache-2.0
"""Asks Flower for its list of tasks, in Flower's own environment; arguments: tasks, requests.

Flower keeps tasks in memory, as the events of workers tell them, and forgets the oldest above
``max_tasks``, which is set to their number here. It is given those events without a broker: of each
task that it was received and how it ended. Requests come over a socket of the same process.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict
from urllib.parse import urlencode
from urllib.request import urlopen

import celery
from flower.app import Flower
from flower.options import default_options
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port

from benchmarks.pages.timing import Timing, timed

NEEDLE = "needle-in-the-haystack"
WEEK = 7 * 86_400


def main() -> None:
    """Feed it, ask it; the last line is what was found."""
    count, requests = int(sys.argv[1]), int(sys.argv[2])
    default_options.max_tasks = count
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    app = Flower(capp=celery.Celery(broker="memory://"), options=default_options)
    feed(app.events.state, count)
    listening, port = bind_unused_port()
    HTTPServer(app).add_socket(listening)
    found = []
    for name, query in (
        ("the list", {}),
        ("page 200", {"start": "9950"}),
        ("failed", {"search[value]": "state:FAILURE"}),
        ("a text that one has", {"search[value]": NEEDLE}),
    ):
        if name == "page 200" and count < 10_000:
            continue
        url = f"http://127.0.0.1:{port}/tasks/datatable?{urlencode({**LIST, **query})}"

        def ask(url: str = url) -> None:
            loop.run_until_complete(loop.run_in_executor(None, _get, url))

        wall, slowest, cpu, _ = timed(ask, requests, lambda: None)
        found.append(
            asdict(
                Timing(
                    system="Flower",
                    page=name,
                    wall=wall,
                    slowest=slowest,
                    cpu=cpu,
                    server_cpu=None,
                    queries=None,
                    target=None,
                )
            )
        )
    print(json.dumps(found))


#: What its page asks for: fifty tasks, the latest first.
LIST = {
    "draw": "1",
    "start": "0",
    "length": "50",
    "search[value]": "",
    "order[0][column]": "0",
    "order[0][dir]": "desc",
    "columns[0][data]": "received",
}


def _get(url: str) -> None:
    with urlopen(url) as answer:  # noqa: S310 - our own
        found = json.load(answer)
    if not found["data"]:
        raise RuntimeError(f"nothing was found: {url}: {found}")


def feed(state: object, count: int) -> None:
    """Tell it of so many tasks, as workers do."""
    now = time.time()
    for n in range(count):
        when = now - (count - n) * WEEK / count
        common = {"hostname": f"worker-{n % 8}", "pid": 1, "clock": n, "utcoffset": 0}
        common |= {"uuid": f"{n:032x}", "timestamp": when, "local_received": when}
        note = NEEDLE if n == count // 2 else "a usual order of a usual shop"
        kwargs = f"{{'customer': {n % 5000}, 'note': '{note}'}}"
        received = {"name": f"shop.tasks.task_{n % 40}", "args": f"[{n}]", "kwargs": kwargs}
        state.event({**common, "type": "task-received", **received})  # type: ignore[attr-defined]
        if n % 20 < 3:
            ended: dict[str, object] = {
                "type": "task-failed",
                "exception": "ValueError",
                "traceback": "...",
            }
        else:
            ended = {"type": "task-succeeded", "result": "{'sent': True}", "runtime": 0.1}
        state.event({**common, **ended})  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
