# SPDX-License-Identifier: Apache-2.0
"""Pages of the tests' project, for a service that serves them: ``tests.project.site`` has them."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from django.http import HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from carrot_twisted.utilities import publish_message
from tests.project import tasks

if TYPE_CHECKING:
    from django.http import HttpRequest


@csrf_exempt
def echo(request: HttpRequest, rest: str) -> JsonResponse:
    """What has come of the request."""
    return JsonResponse(
        {
            "method": request.method,
            "rest": rest,
            "path": request.path,
            "query": request.GET.dict(),
            "body": request.body.decode(),
            "headers": dict(request.headers),
            "address": request.META["REMOTE_ADDR"],
        }
    )


def sleep(_request: HttpRequest, milliseconds: int) -> HttpResponse:
    """A page that takes its time."""
    time.sleep(milliseconds / 1000)
    return HttpResponse("slept")


@csrf_exempt
def publish(request: HttpRequest) -> HttpResponse:
    """Publish a task."""
    return HttpResponse(str(publish_message(tasks.echo, *json.loads(request.body)).pk))


urlpatterns = [
    path("echo/<path:rest>", echo),
    path("sleep/<int:milliseconds>", sleep),
    path("publish", publish),
]
