# SPDX-License-Identifier: Apache-2.0
"""Queues and workers: how they fare, and what operators want of them. Beyond django-carrot."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

from django.db import router
from django.utils.translation import gettext as _
from rest_framework import status as http
from rest_framework.exceptions import NotFound
from rest_framework.response import Response
from rest_framework.serializers import (
    BooleanField,
    CharField,
    DictField,
    FloatField,
    IntegerField,
    ListField,
    Serializer,
)

from carrot_twisted import housekeeping, status
from carrot_twisted.api.endpoint import Endpoint, TimeField, json_object
from carrot_twisted.models import MessageLog
from carrot_twisted.monitor import access, recorded
from carrot_twisted.monitor.queue_list import MAX_REASON

if TYPE_CHECKING:
    from rest_framework.request import Request


class PausedSerializer(Serializer[Any]):
    """Who has paused a queue."""

    since = TimeField()
    by = CharField()
    reason = CharField()


class QueueSerializer(Serializer[Any]):
    """A queue; of one whose messages go to handlers no rows tell what waits: null."""

    name = CharField()
    configured = BooleanField()
    consumable = BooleanField(allow_null=True)
    workers = IntegerField(allow_null=True)
    waiting = IntegerField(allow_null=True)
    waiting_is_exact = BooleanField(allow_null=True)
    limited = IntegerField(allow_null=True)
    limited_is_exact = BooleanField(allow_null=True)
    oldest = FloatField(allow_null=True)
    running = IntegerField(allow_null=True)
    unsent = IntegerField(allow_null=True)
    unsent_is_exact = BooleanField(allow_null=True)
    unsent_age = FloatField(allow_null=True)
    unsent_reason = CharField()
    paused = PausedSerializer(allow_null=True)


class WorkerSerializer(Serializer[Any]):
    """A service process, as its last heartbeat told."""

    name = CharField()
    host = CharField()
    pid = IntegerField()
    version = CharField()
    queues = ListField(child=CharField())
    threads = IntegerField()
    started_at = TimeField()
    heartbeat_age = FloatField()
    alive = BooleanField()
    running = ListField(child=DictField())
    problems = ListField(child=CharField())
    quiet = BooleanField()
    command = CharField()


class ReasonSerializer(Serializer[Any]):
    """Why a queue is paused, for people."""

    reason = CharField(required=False, allow_blank=True, max_length=MAX_REASON)


class CountSerializer(Serializer[Any]):
    """How many rows were deleted."""

    deleted = IntegerField()


class Queues(Endpoint):
    """All queues: those of the settings, and those that only rows know."""

    gives: ClassVar = {"GET": (200, QueueSerializer(many=True))}

    def get(self, request: Request) -> Response:
        """As the tables tell: the broker is not asked."""
        now = _now()
        paused = {one.name: asdict(one) for one in now.paused}
        queues: list[dict[str, Any]] = [asdict(one) for one in now.queues]
        tasks = {one["name"] for one in queues}
        unknown = dict.fromkeys(QueueSerializer().fields) | {"unsent_reason": ""}
        queues += [
            unknown | {"name": name, "configured": True}
            for name in housekeeping.known_queues()
            if name not in tasks
        ]
        queues = [one | {"paused": paused.get(one["name"])} for one in queues]
        return Response(QueueSerializer(queues, many=True).data)


class _Told(Endpoint):
    """Something that services are told; they hear of it with their next heartbeat."""

    gives: ClassVar = {"POST": (204, None)}


class Pause(_Told):
    """Let no service take messages off a queue."""

    takes: ClassVar = {"POST": ReasonSerializer()}
    errors: ClassVar = {"POST": (400, 404)}

    def post(self, request: Request, name: str) -> Response:
        """Do it. Publishing goes on, and what runs comes to its end."""
        _require(name)
        given = ReasonSerializer(data=json_object(request))
        given.is_valid(raise_exception=True)
        reason = given.validated_data.get("reason", "")
        recorded.pause_queue(request.user, name, reason)
        return Response(status=http.HTTP_204_NO_CONTENT)


class Resume(_Told):
    """Let services take messages off a queue again."""

    errors: ClassVar = {"POST": (404,)}

    def post(self, request: Request, name: str) -> Response:
        """Do it, also for a queue that has left the settings."""
        if name not in {one.name for one in _now().paused}:
            _require(name)
        recorded.resume_queue(request.user, name)
        return Response(status=http.HTTP_204_NO_CONTENT)


class PurgeQueue(Endpoint):
    """Throw away all that waits, or runs, in one queue of tasks."""

    permission = access.PURGE
    gives: ClassVar = {"POST": (200, CountSerializer())}
    errors: ClassVar = {"POST": (400, 404, 503)}

    def post(self, request: Request, name: str) -> Response:
        """Do it. What a service has begun goes on, but its result goes nowhere."""
        _require(name)
        return Response({"deleted": recorded.purge_queue(request.user, name)})


class Workers(Endpoint):
    """All services that have a row."""

    gives: ClassVar = {"GET": (200, WorkerSerializer(many=True))}

    def get(self, request: Request) -> Response:
        """As their last heartbeats tell."""
        return Response(WorkerSerializer(_now().workers, many=True).data)


class Quiet(_Told):
    """Let a worker take nothing more; what it runs goes on."""

    errors: ClassVar = {"POST": (404,)}

    def post(self, request: Request, name: str) -> Response:
        """Tell it."""
        recorded.tell_worker(request.user, "quiet", housekeeping.quiet_worker, name)
        return Response(status=http.HTTP_204_NO_CONTENT)


class Unquiet(_Told):
    """Let a quiet worker take tasks and messages again."""

    errors: ClassVar = {"POST": (404,)}

    def post(self, request: Request, name: str) -> Response:
        """Tell it."""
        recorded.tell_worker(request.user, "unquiet", housekeeping.unquiet_worker, name)
        return Response(status=http.HTTP_204_NO_CONTENT)


class Stop(_Told):
    """Let a worker end, as by SIGTERM, when what it runs has ended."""

    errors: ClassVar = {"POST": (404,)}

    def post(self, request: Request, name: str) -> Response:
        """Tell it."""
        recorded.tell_worker(request.user, "stop", housekeeping.stop_worker, name)
        return Response(status=http.HTTP_204_NO_CONTENT)


def _now() -> status.Status:
    return status.read(router.db_for_read(MessageLog))


def _require(name: str) -> None:
    if name not in housekeeping.known_queues():
        raise NotFound(_("There is no queue %(name)s.") % {"name": name})
