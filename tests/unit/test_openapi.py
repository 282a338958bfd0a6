# SPDX-License-Identifier: Apache-2.0
"""The description of the JSON API is that of the code, and the code does what it says.

Requests are made from the description, at random, the same in each run, and sent through all of
Django; answers that it does not describe, and crashes, fail.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

import hypothesis
import pytest
import rest_framework
import schemathesis
from django.contrib.auth.models import User
from django.core.signals import request_finished, request_started
from django.core.wsgi import get_wsgi_application
from django.db import close_old_connections
from django.test import Client
from django.utils import timezone
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import ignored_auth
from schemathesis.specs.openapi.checks import positive_data_acceptance as positive

from carrot_twisted import housekeeping
from carrot_twisted.models import MessageLog, OperatorAction, ScheduledTask, Worker
from devtools import openapi

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from schemathesis.schemas import BaseSchema

pytestmark = pytest.mark.django_db

SCHEMA = "/some/where/api/schema/"
TOKEN = "t" * 32


@pytest.mark.skipif(
    rest_framework.VERSION < "3.18", reason="older releases describe some types with other words"
)
def test_it_is_current() -> None:
    kept = openapi.FILE.read_text(encoding="utf-8")
    assert openapi.description() == kept, "Write it anew: python3 run.py openapi"


def logged_in() -> Callable[..., Iterable[bytes]]:
    """The project, visited by one who may do everything."""
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    client.cookies["csrftoken"] = TOKEN
    header = "; ".join(f"{name}={one.value}" for name, one in client.cookies.items())
    application = get_wsgi_application()

    def visited(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ |= {"HTTP_HOST": "testserver", "HTTP_COOKIE": header, "HTTP_X_CSRFTOKEN": TOKEN}
        return application(environ, start_response)

    return visited


@pytest.fixture
def description() -> Iterator[BaseSchema]:
    signals = (request_started, request_finished)
    # As Django's test client does: the connection is the test's, in its transaction.
    for signal in signals:
        signal.disconnect(close_old_connections)
    made = schemathesis.openapi.from_wsgi(SCHEMA, logged_in())
    # It does not read addresses that are relative to the description, as ours is.
    (server,) = made.raw_schema["servers"]
    made.config.update(base_url=urljoin(f"http://testserver{SCHEMA}", server["url"]))
    yield made
    for signal in signals:
        signal.connect(close_old_connections)


def operations(description: BaseSchema) -> Iterator[Any]:
    for result in description.get_all_operations():
        assert isinstance(result, Ok)
        yield result.ok()


def test_it_is_served(description: BaseSchema) -> None:
    paths = {one.full_path for one in operations(description)}
    assert "/some/where/api/message-logs/{id}/" in paths
    assert len(paths) == 23


def test_the_api_does_what_it_says(
    description: BaseSchema, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "_purge_messages", lambda *_: None)
    asked = set()

    def fill() -> dict[str, Any]:
        """Something to find, under keys that no example would guess."""
        one = MessageLog.objects.create(
            task="a.b", queue="default", status="FAILED", failure_time=timezone.now()
        )
        schedule = ScheduledTask.objects.create(
            task_name=str(one.pk), task="tests.project.tasks.noop"
        )
        Worker.objects.get_or_create(
            name="w", defaults={"host": "h", "pid": 1, "version": "1", "queues": "default"}
        )
        return {"message-logs": str(one.pk), "scheduled-tasks": str(schedule.pk)}

    for operation in operations(description):

        @hypothesis.given(case=operation.as_strategy())
        @hypothesis.settings(max_examples=3, phases=[hypothesis.Phase.generate])
        def ask(case: schemathesis.Case[Any]) -> None:
            kept = fill()
            for known in ({}, kept | {"queues": "default", "workers": "w"}):
                key = known.get(case.path.split("/")[1])
                for name in ("id", "name"):
                    if key is not None and name in case.path_parameters:
                        case.path_parameters[name] = key
                # Who gets in is tested elsewhere: here everybody is logged in. Not all that has
                # the right form makes sense.
                excluded = [ignored_auth] if case.method == "GET" else [ignored_auth, positive]
                case.call_and_validate(excluded_checks=excluded)
            asked.add(case.operation.label)

        ask()
    assert len(asked) > 25
    assert OperatorAction.objects.exists()
