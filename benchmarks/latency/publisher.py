# SPDX-License-Identifier: Apache-2.0
"""Publishes tasks at a steady rate, in a process of its own; the last line is what it found.

Arguments: the system's key, tasks per second, their number, and the file that they write to. The
rate is kept whatever becomes of the tasks: nothing is left out while the system is slow.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import TYPE_CHECKING

import django

from benchmarks.settings import QUEUE
from benchmarks.work import stamp

if TYPE_CHECKING:
    from collections.abc import Callable

    Publish = Callable[[str, int, int], object]

#: Tasks per second that one thread publishes: a call may take some milliseconds.
PER_THREAD = 100
#: What each thread publishes before the clock starts; these have numbers below 0.
WARM_UP = 10
SECONDS_TO_CONFIRM = 120.0


def main() -> None:
    """Publish; tell how well the rate was kept, and how long callers waited."""
    django.setup()
    system, file = sys.argv[1], sys.argv[4]
    rate, count = float(sys.argv[2]), int(sys.argv[3])
    publish, settle = {"carrot": carrot, "celery": celery, "huey": huey}[system]()
    senders = max(1, round(rate / PER_THREAD))
    ready = threading.Barrier(senders + 1)
    late: list[float] = []
    waited: list[float] = []
    begin = [0.0]

    def send(first: int) -> None:
        for number in range(WARM_UP):
            publish(file, -1 - first - senders * number, time.monotonic_ns())
        ready.wait()
        ready.wait()
        for number in range(first, count, senders):
            due = begin[0] + number / rate
            time.sleep(max(0.0, due - time.monotonic()))
            sent = time.monotonic_ns()
            publish(file, number, sent)
            waited.append((time.monotonic_ns() - sent) / 1e6)
            late.append(sent / 1e6 - due * 1e3)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(senders)]
    for thread in threads:
        thread.start()
    ready.wait()
    settle()
    begin[0] = time.monotonic() + 1.0
    ready.wait()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - begin[0]
    settle()
    result = {
        "warm_up": senders * WARM_UP,
        "per_second": count / seconds,
        "late": sorted(late),
        "waited": sorted(waited),
    }
    print(json.dumps(result), flush=True)


def carrot() -> tuple[Publish, Callable[[], object]]:
    """As a view publishes."""
    from carrot_twisted import publisher
    from carrot_twisted.utilities import publish_message

    def publish(file: str, number: int, sent: int) -> None:
        publish_message(stamp, file, number, sent, queue=QUEUE)

    return publish, lambda: publisher.flush(SECONDS_TO_CONFIRM)


def celery() -> tuple[Publish, Callable[[], object]]:
    """Each call returns when the broker has confirmed."""
    from benchmarks.site_celery.app import tasks

    return tasks["stamp"].delay, lambda: None


def huey() -> tuple[Publish, Callable[[], object]]:
    """Each call returns when Redis has it."""
    from benchmarks.site_huey.tasks import tasks

    return tasks["stamp"], lambda: None


if __name__ == "__main__":
    main()
