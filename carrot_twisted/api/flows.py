# SPDX-License-Identifier: Apache-2.0
"""Flows: how far they are. Their tasks are those of the lists, with ``?flow=``."""

from __future__ import annotations

from typing import Any, ClassVar
from uuid import UUID

from django.db import router, transaction
from django.utils.translation import gettext as _
from rest_framework.exceptions import NotFound
from rest_framework.response import Response
from rest_framework.serializers import (
    BooleanField,
    CharField,
    IntegerField,
    Serializer,
    SerializerMethodField,
    UUIDField,
)

from carrot_twisted.api.endpoint import Conflict, Endpoint, RowSerializer
from carrot_twisted.models import Flow, OperatorAction


class StepSerializer(Serializer[Any]):
    """A step of a flow."""

    task = CharField(source="step.task")
    size = IntegerField(source="step.size")
    group = BooleanField(source="step.is_group")
    on_failure = CharField(source="step.on_failure")
    waiting = IntegerField()
    running = IntegerField()
    completed = IntegerField()
    failed = IntegerField()


class FlowSerializer(RowSerializer):
    """A flow. ``step`` is the number of the one it is at, 0 for the first."""

    id = UUIDField(source="pk", read_only=True)
    steps = SerializerMethodField()

    class Meta:
        model = Flow
        fields: ClassVar = ("id", "status", "step", "error", "started_at", "finished_at", "steps")
        read_only_fields: ClassVar = fields

    def get_steps(self, flow: Flow) -> list[dict[str, Any]]:
        """How far each is."""
        return [{**one} for one in StepSerializer(flow.progress(), many=True).data]


class _One(Endpoint):
    """One flow."""

    serializer_class = FlowSerializer

    def flow(self, pk: str) -> Flow:
        """It, as it is now."""
        try:
            return Flow.objects.using(_using()).defer("plan").get(pk=UUID(pk))
        except (ValueError, Flow.DoesNotExist):
            raise NotFound from None

    def shown(self, flow: Flow) -> Response:
        """It, whole."""
        return Response(self.get_serializer(flow).data)


class Detail(_One):
    """One flow, and how far each of its steps is."""

    gives: ClassVar = {"GET": (200, FlowSerializer())}
    errors: ClassVar = {"GET": (404,)}

    def get(self, request: Any, pk: str) -> Response:
        """The flow."""
        return self.shown(self.flow(pk))


class Cancel(_One):
    """Let nothing more of a flow begin; what runs is asked to end."""

    gives: ClassVar = {"POST": (200, FlowSerializer())}
    errors: ClassVar = {"POST": (404, 409)}

    def post(self, request: Any, pk: str) -> Response:
        """Do it; the answer is the flow."""
        flow = self.flow(pk)
        with transaction.atomic(using=_using()):
            if not flow.cancel(by=str(request.user)):
                raise Conflict(_("Too late: it has come to its end."))
            OperatorAction.note(request.user, "cancel", f"flow {flow.pk}")
        return self.shown(self.flow(pk))


def _using() -> str:
    return router.db_for_write(Flow)
