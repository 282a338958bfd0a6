# SPDX-License-Identifier: Apache-2.0
"""Schedules: to list, create, change, run and delete them, and what helps to write one."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar

from django.core.exceptions import NON_FIELD_ERRORS
from django.core.exceptions import ValidationError as Invalid
from django.db import IntegrityError, router, transaction
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from rest_framework import status
from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.response import Response
from rest_framework.serializers import CharField, ListField, Serializer

from carrot_twisted import wire
from carrot_twisted.api.endpoint import NO_FIELD, Endpoint, Pages, RowSerializer, json_object
from carrot_twisted.exceptions import InvalidMessage
from carrot_twisted.models import OperatorAction, ScheduledTask
from carrot_twisted.monitor import access, redaction, registered_tasks

if TYPE_CHECKING:
    from django.db.models import QuerySet
    from rest_framework.request import Request


class ScheduledTaskSerializer(RowSerializer):
    """A schedule. Who may not change it does not see the values that the monitor does not show."""

    class Meta:
        model = ScheduledTask
        fields: ClassVar = (
            *("task", "interval_display", "active", "id", "queue", "exchange", "routing_key"),
            *("interval_type", "interval_count", "content", "task_args", "task_name"),
            # Beyond django-carrot:
            *("cron", "timezone", "run_at", "start_time", "end_time", "misfire", "overlap"),
            *("priority", "next_run_time", "last_run_time", "last_log", "problem", "declaration"),
        )
        read_only_fields: ClassVar = (
            *("next_run_time", "last_run_time", "last_log", "problem", "declaration"),
        )
        extra_kwargs: ClassVar = {
            # Whatever the database takes: the limit is the same for all.
            "interval_count": {"max_value": 2**31 - 1},
            "queue": {"error_messages": {"blank": gettext_lazy("This field is required")}},
        }

    def to_representation(self, schedule: ScheduledTask) -> dict[str, Any]:
        """The fields."""
        shown = super().to_representation(schedule)
        if not access.may(self.context["request"], access.SCHEDULE):
            row: Any = schedule
            shown["task_args"] = redaction.positional_text(row) or wire.NO_ARGS
            shown["content"] = redaction.keyword_text(row) or wire.NO_KWARGS
        return shown

    def validate_task(self, task: str) -> str:
        """Nobody may have just any function run that can be imported."""
        known = self.instance is not None and task == self.instance.task
        if not known and task not in task_choices():
            raise ValidationError(_("This is not a valid selection"))
        return task

    def validate_task_name(self, name: str) -> str:
        """Under another name a declared schedule would be deleted at the next start."""
        if self.instance is not None and self.instance.declaration and name != str(self.instance):
            raise ValidationError(_("The code declares this schedule: it keeps its name."))
        return name

    def validate_task_args(self, text: str) -> str:
        """As the form says it, with django-carrot's words."""
        if problem := args_problem(text):
            raise ValidationError(problem)
        return text

    def validate_content(self, text: str) -> str:
        """As the form says it, with django-carrot's words."""
        try:
            wire.stored_object(text)
        except InvalidMessage:
            told = _('This field must be json serializable: an object, such as {"copies": 2}.')
            raise ValidationError(told) from None
        return text

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """What the model says of it, and whether the task takes the arguments."""
        if self.instance is not None and attrs == {"active": False}:
            # Also one that is wrong can be switched off.
            return attrs
        schedule = copy(self.instance) if self.instance is not None else ScheduledTask()
        for name, value in attrs.items():
            setattr(schedule, name, value)
        try:
            schedule.clean_fields(exclude={"id"})
            schedule.clean()
        except Invalid as error:
            raise ValidationError(_by_field(error)) from None
        wrong = registered_tasks.mismatch(
            schedule.task, schedule.positional_arguments, schedule.keyword_arguments
        )
        if wrong is not None:
            field, text = wrong
            raise ValidationError({field: [text]})
        return attrs


def _by_field(error: Invalid) -> dict[str, list[str]]:
    return {
        NO_FIELD if name == NON_FIELD_ERRORS else name: texts
        for name, texts in error.message_dict.items()
    }


def task_choices() -> list[str]:
    """Dotted paths of the functions in ``CARROT["task_modules"]``."""
    found = registered_tasks.functions()
    return [f"{module}.{name}" for module, names in found.items() for name in names]


def args_problem(text: str) -> str:
    """Why a text cannot be the positional arguments of a schedule; "" if it can."""
    try:
        wire.stored_list(text)
    except InvalidMessage:
        told = _('Error parsing argument %(text)s: give a JSON list, such as [1, "monthly"].')
        return told % {"text": text[:100]}
    return ""


class _Endpoint(Endpoint):
    permission = access.SCHEDULE
    serializer_class = ScheduledTaskSerializer

    def get_queryset(self) -> QuerySet[ScheduledTask]:
        """All schedules, as they are now where they are about to be changed."""
        is_read = self.request.method in ("GET", "HEAD")
        using = (router.db_for_read if is_read else router.db_for_write)(ScheduledTask)
        return ScheduledTask.objects.using(using).order_by("pk")

    def saved(self, schedule: ScheduledTask | None = None) -> dict[str, Any]:
        """Check and write; what it is then."""
        given = json_object(self.request)
        serializer = self.get_serializer(schedule, data=given, partial=schedule is not None)
        serializer.is_valid(raise_exception=True)
        try:
            with transaction.atomic(using=_using()):
                row = serializer.save()
        except IntegrityError:
            # Somebody else has just made one of that name.
            told = _("scheduled task with this task name already exists.")
            raise ValidationError({"task_name": [told]}) from None
        action = "create schedule" if schedule is None else "change schedule"
        OperatorAction.note(self.request.user, action, row.task_name)
        row.refresh_from_db()
        return dict(self.get_serializer(row).data)


class Collection(_Endpoint):
    """All schedules, in the order in which they were made."""

    pagination_class = Pages
    takes: ClassVar = {"POST": ScheduledTaskSerializer()}
    gives: ClassVar = {
        "GET": (200, ScheduledTaskSerializer(many=True)),
        "POST": (201, ScheduledTaskSerializer()),
    }
    errors: ClassVar = {"GET": (404,), "POST": (400,)}

    def get(self, request: Request) -> Response:
        """The list."""
        page = self.paginate_queryset(self.get_queryset())
        return self.get_paginated_response(self.get_serializer(page, many=True).data)

    def post(self, request: Request) -> Response:
        """Create one."""
        with transaction.atomic(using=_using()):
            return Response(self.saved(), status=status.HTTP_201_CREATED)


class _One(_Endpoint):
    def schedule(self, pk: str) -> ScheduledTask:
        """The row; it is locked where it is about to be changed."""
        rows = self.get_queryset()
        if self.request.method not in ("GET", "HEAD"):
            rows = rows.select_for_update()
        try:
            return rows.get(pk=pk)
        except (ValueError, ScheduledTask.DoesNotExist):
            raise NotFound from None


class Detail(_One):
    """One schedule."""

    takes: ClassVar = {"PATCH": ScheduledTaskSerializer(partial=True)}
    gives: ClassVar = {
        "GET": (200, ScheduledTaskSerializer()),
        "PATCH": (200, ScheduledTaskSerializer()),
        "DELETE": (204, None),
    }
    errors: ClassVar = {"GET": (404,), "PATCH": (400, 404), "DELETE": (404,)}

    def get(self, request: Request, pk: str) -> Response:
        """The row."""
        return Response(self.get_serializer(self.schedule(pk)).data)

    def patch(self, request: Request, pk: str) -> Response:
        """Change the fields that are given."""
        with transaction.atomic(using=_using()):
            return Response(self.saved(self.schedule(pk)))

    def delete(self, request: Request, pk: str) -> Response:
        """Delete it. One that the code declares comes back when a service starts."""
        with transaction.atomic(using=_using()):
            schedule = self.schedule(pk)
            schedule.delete()
            OperatorAction.note(request.user, "delete schedule", schedule.task_name)
        return Response(status=status.HTTP_204_NO_CONTENT)


class Run(_One):
    """Publish the task of a schedule once, now, also if it is not active."""

    gives: ClassVar = {"POST": (200, ScheduledTaskSerializer())}
    errors: ClassVar = {"POST": (400, 404)}

    def post(self, request: Request, pk: str) -> Response:
        """Do it; the answer is the schedule."""
        with transaction.atomic(using=_using()):
            schedule = self.schedule(pk)
            name = schedule.task_name
            try:
                row = schedule.publish()
            except (ImportError, AttributeError) as error:
                raise InvalidMessage(f"{name} cannot run: {error}.") from None
            OperatorAction.note(request.user, "run schedule", f"{name} as {row.pk}")
        return Response(self.get_serializer(schedule).data)


class TaskChoices(Endpoint):
    """What can be scheduled."""

    gives: ClassVar = {"GET": (200, ListField(child=CharField()))}

    def get(self, request: Request) -> Response:
        """Dotted paths of the functions in ``CARROT["task_modules"]``."""
        return Response(task_choices())


class ArgsSerializer(Serializer[Any]):
    """Positional arguments that somebody types."""

    args = CharField(allow_blank=True, default="", trim_whitespace=False)


class ArgsErrorsSerializer(Serializer[Any]):
    """What is wrong with them."""

    errors = ListField(child=CharField())  # type: ignore[assignment]


class ValidateArgs(Endpoint):
    """Whether a text can be the positional arguments of a schedule."""

    permission = access.VIEW
    takes: ClassVar = {"POST": ArgsSerializer()}
    gives: ClassVar = {"POST": (200, ArgsErrorsSerializer())}
    errors: ClassVar = {"POST": (400,)}

    def post(self, request: Request) -> Response:
        """Look; nothing is changed."""
        given = ArgsSerializer(data=json_object(request))
        given.is_valid(raise_exception=True)
        problem = args_problem(given.validated_data["args"])
        return Response({"errors": [problem] if problem else []})


def _using() -> str:
    return router.db_for_write(ScheduledTask)
