# SPDX-License-Identifier: Apache-2.0
"""Tasks: those that wait or run, failed and completed ones, and each by its key."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID

from django.db import router, transaction
from django.db.models.functions import Left
from django.utils.translation import gettext as _
from rest_framework import status
from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.response import Response
from rest_framework.serializers import SerializerMethodField, UUIDField

from carrot_twisted import housekeeping, wire
from carrot_twisted.api.endpoint import Conflict, Endpoint, RowSerializer
from carrot_twisted.api.task_pages import TaskPages
from carrot_twisted.exceptions import InvalidMessage
from carrot_twisted.models import MessageLog, OperatorAction
from carrot_twisted.monitor import access, keyset, many_tasks, recorded, redaction

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.db.models import QuerySet
    from rest_framework.request import Request

    from carrot_twisted.message_log_set import MessageLogQuerySet

#: Texts of a row in a list are cut here: fifty logs may have a dozen megabytes.
MAX_TEXT = 10_000
ARGUMENTS = ("task_args", "content", "output")
LONG = (*ARGUMENTS, "exception", "traceback", "log")


class MessageLogSerializer(RowSerializer):
    """A task, without the values that the monitor does not show."""

    id = UUIDField(source="pk", read_only=True)
    task_args = SerializerMethodField()
    content = SerializerMethodField()
    output = SerializerMethodField()
    exception = SerializerMethodField()
    traceback = SerializerMethodField()
    log = SerializerMethodField()

    class Meta:
        model = MessageLog
        fields: ClassVar = (
            *("status", "exchange", "queue", "routing_key", "uuid", "priority", "task"),
            *("task_args", "content", "exception", "traceback", "output", "publish_time"),
            *("failure_time", "completion_time", "log", "id", "virtual_host"),
            # Beyond django-carrot:
            *("start_time", "attempts", "crashes", "worker", "retry_of", "publish_error"),
            *("run_after", "expires_at", "retries", "unique_key", "unique_until", "retention"),
            *("cancel_request", "progress", "flow", "flow_step", "flow_position"),
            *("slot_key", "rate_key", "waits_for", "trace"),
        )
        read_only_fields: ClassVar = fields

    def get_fields(self) -> dict[str, Any]:
        """All, or those that were asked for."""
        names = self.context.get("fields")
        return {
            name: field
            for name, field in super().get_fields().items()
            if names is None or name in names
        }

    def get_task_args(self, row: MessageLog) -> str:
        """The positional arguments, as JSON."""
        return self._shown(row.task_args, lambda _: _positional(row)) or ""

    def get_content(self, row: MessageLog) -> str:
        """The keyword arguments, as JSON."""
        return self._shown(row.content, lambda _: _keywords(row)) or ""

    def get_output(self, row: MessageLog) -> str | None:
        """What the task has returned."""
        return self._shown(row.output, redaction.shown_text)

    def get_exception(self, row: MessageLog) -> str | None:
        """Why it failed."""
        return self._cut(row.exception)

    def get_traceback(self, row: MessageLog) -> str | None:
        """Where it failed."""
        return self._cut(row.traceback)

    def get_log(self, row: MessageLog) -> str | None:
        """The lines that it has logged."""
        return self._cut(row.log)

    def _is_long(self, text: str) -> bool:
        return bool(self.context.get("cut")) and len(text) > MAX_TEXT

    def _shown(self, text: str | None, show: Callable[[str], str]) -> str | None:
        """A text that may hold secrets: half of it cannot be read, so nothing is shown then."""
        if text is None:
            return None
        return _("… (too long for a list)") if self._is_long(text) else show(text)

    def _cut(self, text: str | None) -> str | None:
        if text is None or not self._is_long(text):
            return text
        return text[:MAX_TEXT] + _("\n… (cut in a list)")


def _key(text: str | None) -> UUID | None:
    try:
        return None if text is None else UUID(text)
    except ValueError:
        raise ValidationError({"flow": [_("This is no id of a flow.")]}) from None


def _positional(row: MessageLog) -> str:
    if row.is_task:
        return redaction.positional_text(row) or wire.NO_ARGS
    return redaction.shown_text(row.task_args)


def _keywords(row: MessageLog) -> str:
    if row.is_task:
        return redaction.keyword_text(row) or wire.NO_KWARGS
    return redaction.shown_text(row.content)


class _Rows(Endpoint):
    """Rows of some states."""

    serializer_class = MessageLogSerializer
    pagination_class = TaskPages
    query: ClassVar[keyset.Query]
    parameters: ClassVar = {
        "search": (
            "Only tasks with this text in their path, their arguments or their exception, as far "
            "as these are shown. What takes longer than a second goes on with next.",
            {"type": "string"},
        ),
        "flow": ("Only tasks of the flow with this id.", {"type": "string", "format": "uuid"}),
        "after": ("The page behind this position, as next has it.", {"type": "string"}),
        "before": ("The page before this position, as previous has it.", {"type": "string"}),
        "fields": (
            "Only these fields are read, and answered: names with commas between them.",
            {
                "type": "array",
                "items": {"type": "string", "enum": [*MessageLogSerializer.Meta.fields]},
                "minItems": 1,
            },
        ),
    }

    def listed(self) -> Response:
        """A page of them."""
        pages = self.paginator
        assert isinstance(pages, TaskPages)
        page = pages.page_of(self.found, self.request, self._alias, self._short)
        for row in page:
            for name in self._long:
                setattr(row, name, getattr(row, f"start_of_{name}"))
        return self.get_paginated_response(self.get_serializer(page, many=True).data)

    @property
    def found(self) -> keyset.Query:
        """Which rows are meant, of all pages."""
        asked = self.request.query_params
        return replace(self.query, text=asked.get("search", ""), flow=_key(asked.get("flow")))

    @property
    def _alias(self) -> str:
        """As they are now where they were about to be changed."""
        is_read = self.request.method in ("GET", "HEAD")
        return str((router.db_for_read if is_read else router.db_for_write)(MessageLog))

    def get_queryset(self) -> QuerySet[MessageLog]:
        """Django REST framework's name for what it knows the fields by."""
        return MessageLog.objects.using(self._alias)

    def get_serializer_context(self) -> dict[str, Any]:
        """What the serializer goes by."""
        return {**super().get_serializer_context(), "fields": self._fields, "cut": True}

    @property
    def _fields(self) -> frozenset[str]:
        known = MessageLogSerializer.Meta.fields
        text = self.request.query_params.get("fields")
        if text is None:
            return frozenset(known)
        names = frozenset(text.split(","))
        unknown = sorted(names.difference(known))
        if unknown:
            told = _("There is no field %(name)s. Known fields: %(known)s.")
            raise ValidationError(
                {"fields": [told % {"name": unknown[0], "known": ", ".join(known)}]}
            )
        return names

    @property
    def _long(self) -> list[str]:
        # What the positional arguments are tells a task from a message with a handler.
        wanted = self._fields | ({"task_args"} if "content" in self._fields else set())
        return [name for name in LONG if name in wanted]

    def _short(self, rows: MessageLogQuerySet) -> MessageLogQuerySet:
        names = self._fields - {"id", "virtual_host", *LONG}
        # The task names its arguments, the queue its broker.
        rows = rows.only("pk", "task", "queue", *names)
        starts = {f"start_of_{name}": Left(name, MAX_TEXT + 1) for name in self._long}
        return rows.annotate(**starts)


class _List(_Rows):
    gives: ClassVar = {"GET": (200, MessageLogSerializer(many=True))}
    errors: ClassVar = {"GET": (400, 404)}

    def get(self, request: Request) -> Response:
        """The list. Texts above 10,000 characters are cut in it; each row has them whole."""
        return self.listed()


class _Published(_Rows):
    query: ClassVar = keyset.Query(listing="queued", oldest_first=True)


class PublishedList(_Published, _List):
    """Tasks that wait or run, the oldest first."""


class Purge(_Published):
    """Throw away all tasks that wait or run, and all messages in the queues of tasks."""

    permission = access.PURGE
    gives: ClassVar = {"POST": (200, MessageLogSerializer(many=True))}
    errors: ClassVar = {"POST": (400, 404, 503)}

    def post(self, request: Request) -> Response:
        """Do it; the answer is the list of tasks that wait or run then."""
        recorded.purge_queue(request.user, None)
        return self.listed()


class Requeue(_Published):
    """Ring again for all tasks that wait: each gets another message. None runs twice by that."""

    gives: ClassVar = {"POST": (200, MessageLogSerializer(many=True))}
    errors: ClassVar = {"POST": (400, 404)}

    def post(self, request: Request) -> Response:
        """Do it; the answer is the list of tasks that wait or run."""
        recorded.ring_again(request.user)
        return self.listed()


class FailedList(_List):
    """Tasks that have failed, the latest first."""

    query: ClassVar = keyset.Query(listing="failed")
    gives: ClassVar = {
        "GET": (200, MessageLogSerializer(many=True)),
        "PUT": (200, MessageLogSerializer(many=True)),
        "DELETE": (204, None),
    }
    errors: ClassVar = {"GET": (400, 404), "PUT": (400, 404)}

    def delete(self, request: Request) -> Response:
        """Delete them all, or those that ``search`` finds."""
        self._do("delete")
        return Response(status=status.HTTP_204_NO_CONTENT)

    def put(self, request: Request) -> Response:
        """Run them all again, or those that ``search`` finds.

        The answer is the list of those that are left: others have failed meanwhile, or cannot run
        again.
        """
        self._do("requeue")
        return self.listed()

    def _do(self, deed: str) -> None:
        query = self.found
        words = f"failed tasks with {query.text!r}" if query.text else "all failed tasks"
        if query.flow is not None:
            words += f" of flow {query.flow}"
        many_tasks.all_found(deed, query, words, self.request.user)


class CompletedList(_List):
    """Tasks that have returned, the latest first."""

    query: ClassVar = keyset.Query(listing="completed")


class _One(Endpoint):
    """One task."""

    serializer_class = MessageLogSerializer

    def row(self, pk: str) -> MessageLog:
        """The row, as it is now, also where others are read from a replica."""
        try:
            return MessageLog.objects.using(_using()).get(pk=UUID(pk))
        except (ValueError, MessageLog.DoesNotExist):
            raise NotFound from None

    def shown(self, row: MessageLog) -> Response:
        """The row, whole."""
        return Response(self.get_serializer(row).data)


class Detail(_One):
    """One task, with all that is known of it."""

    gives: ClassVar = {
        "GET": (200, MessageLogSerializer()),
        "PUT": (200, MessageLogSerializer()),
        "DELETE": (204, None),
    }
    errors: ClassVar = {"GET": (404,), "PUT": (400, 404), "DELETE": (404, 409)}

    def get(self, request: Request, pk: str) -> Response:
        """The row."""
        return self.shown(self.row(pk))

    def put(self, request: Request, pk: str) -> Response:
        """Run the task again, whatever has become of it; the answer is the new row."""
        row = self.row(pk)
        # The row forgets it with its deletion.
        key = row.pk
        try:
            with transaction.atomic(using=_using()):
                again = row.requeue()
                OperatorAction.note(request.user, "requeue", f"{row.task} {key} as {again.pk}")
        except MessageLog.DoesNotExist:
            raise NotFound from None
        except InvalidMessage as error:
            # Its text quotes arguments, which may be such as are not shown.
            text = _("The arguments of this row cannot be read, so it cannot run again.")
            raise InvalidMessage(text if row.is_task else str(error)) from None
        return self.shown(self.row(str(again.pk)))

    def delete(self, request: Request, pk: str) -> Response:
        """Delete the row of a task that has come to its end."""
        row = self.row(pk)
        rows = MessageLog.objects.using(_using()).filter(pk=row.pk)
        with transaction.atomic(using=_using()):
            if not housekeeping.delete_tasks(rows):
                if self.row(pk).status in MessageLog.FINAL:
                    raise Conflict(_("Its flow is not over, and needs it."))
                raise Conflict(_("It has not come to its end yet: cancel it first, if it waits."))
            OperatorAction.note(request.user, "delete", f"{row.task} {row.pk}")
        return Response(status=status.HTTP_204_NO_CONTENT)


class Cancel(_One):
    """Keep a task that waits from running; ask one that runs to end."""

    gives: ClassVar = {"POST": (200, MessageLogSerializer())}
    errors: ClassVar = {"POST": (404, 409)}

    def post(self, request: Request, pk: str) -> Response:
        """Do it; the answer is the row."""
        row = self.row(pk)
        with transaction.atomic(using=_using()):
            if not row.cancel(by=str(request.user)):
                raise Conflict(_("Too late: it has come to its end."))
            OperatorAction.note(request.user, "cancel", f"{row.task} {row.pk}")
        return self.shown(self.row(pk))


class Run(_One):
    """Let a task start at once that waits for a later time."""

    gives: ClassVar = {"POST": (200, MessageLogSerializer())}
    errors: ClassVar = {"POST": (404, 409)}

    def post(self, request: Request, pk: str) -> Response:
        """Do it; the answer is the row."""
        row = self.row(pk)
        with transaction.atomic(using=_using()):
            if not row.run_now():
                raise Conflict(_("It does not wait for a later time."))
            OperatorAction.note(request.user, "run now", f"{row.task} {row.pk}")
        return self.shown(self.row(pk))


def _using() -> str:
    return router.db_for_write(MessageLog)
