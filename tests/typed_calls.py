# SPDX-License-Identifier: Apache-2.0
"""What a type checker says of wrong arguments of tasks. Never run: the linters look at it.

mypy is strict here: an ``ignore`` that is not needed, or one of another code, is an error. So each
of them is a mistake that mypy has found.
"""

from __future__ import annotations

import django_tasks

from carrot_twisted.tasks import task
from carrot_twisted.utilities import publish_many, publish_message


def plain(name: str, times: int = 1) -> str:
    return name * times


@task
def bare(name: str, times: int = 1) -> str:
    return name * times


@task(max_retries=3, unique="user {user}")
async def decorated(user: int, *, source: str) -> None: ...


@django_tasks.task
def standard(name: str, times: int = 1) -> str:
    return name * times


@django_tasks.task(takes_context=True)
def with_context(context: django_tasks.TaskContext, name: str) -> str:
    return name


def right() -> None:
    publish_message(plain, "Ada")
    publish_message(plain, "Ada", 3)
    publish_message(plain, name="Ada", times=3)
    publish_message(plain, "Ada", priority=3, queue="other")
    publish_message(plain, "Ada", exchange="", routing_key="other")
    publish_message("app.tasks.plain", 1, 2, 3, anything=None, priority=3)
    publish_message(bare, "Ada", times=2)
    publish_message(decorated, 7, source="file")
    publish_message(standard, "Ada", times=2)
    publish_message(standard, "Ada", queue="other")
    publish_message(print, "anything")
    publish_many([decorated.options(priority=3).message(7, source="file")])
    decorated.options(run_after=60).publish(user=7, source="file")
    standard.enqueue("Ada", times=2)


def wrong() -> None:
    publish_message(plain)  # type: ignore[call-overload]
    publish_message(plain, 7)  # type: ignore[call-overload]
    publish_message(plain, "Ada", "3")  # type: ignore[call-overload]
    publish_message(plain, nam="Ada")  # type: ignore[call-overload]
    publish_message(plain, "Ada", priority="high")  # type: ignore[arg-type]
    publish_message(bare, "Ada", 2, 3)  # type: ignore[call-overload]
    publish_message(decorated, 7)  # type: ignore[call-overload]
    publish_message(decorated, "7", source="file")  # type: ignore[arg-type]
    publish_message(standard, 7)  # type: ignore[call-overload]
    publish_many([decorated.options().message(7)])  # type: ignore[call-arg]
    decorated.options(priority=3).publish("7", source="file")  # type: ignore[arg-type]
    standard.enqueue(7)  # type: ignore[arg-type]
