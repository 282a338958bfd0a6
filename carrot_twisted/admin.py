# SPDX-License-Identifier: Apache-2.0
"""The records in Django's admin, for projects that have it: it asks for this module, nobody else.

Who may see and do what is as in the monitor, and so is what is not shown of arguments. The monitor
is made for large tables; here lists go through the newest rows only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.db import router, transaction
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from carrot_twisted import housekeeping
from carrot_twisted.api.scheduled_tasks import task_choices
from carrot_twisted.exceptions import CarrotError
from carrot_twisted.models import (
    MessageLog,
    OperatorAction,
    PausedQueue,
    ScheduledTask,
    Worker,
)
from carrot_twisted.monitor import access, many_tasks, redaction

if TYPE_CHECKING:
    from django.db.models import QuerySet
    from django.http import HttpRequest, HttpResponse

    from carrot_twisted.message_log_set import MessageLogQuerySet

#: Lists go through so many rows, the newest: filters and counts look at each of them.
NEWEST = 100_000


class _Newest(ChangeList):
    """A list of the newest rows of a table that may have millions."""

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Any]:
        oldest = self.root_queryset.order_by("-pk").values_list("pk", flat=True)
        keys = list(oldest[NEWEST - 1 : NEWEST])
        if keys:
            self.root_queryset = self.root_queryset.filter(pk__gte=keys[0])
        rows: QuerySet[Any] = super().get_queryset(request, exclude_parameters)
        return rows


class _Watched(admin.ModelAdmin):  # type: ignore[type-arg]
    """Rows that people may look at, if they may look at the monitor."""

    list_per_page = 50
    show_full_result_count = False

    def lookup_allowed(self, lookup: str, value: object, request: Any = None) -> bool:
        """Lists are filtered as they offer it; an address could else ask for hidden values."""
        filters: Any = self.list_filter
        names = [one if isinstance(one, str) else one.parameter_name for one in filters]
        return lookup.partition("__")[0] in names

    def has_module_permission(self, request: HttpRequest) -> bool:
        return access.may(request, access.VIEW)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return access.may(request, access.VIEW)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class _QueueFilter(admin.SimpleListFilter):
    """The queues that there are: to ask the rows for theirs would go through all of them."""

    title = _("queue")
    parameter_name = "queue"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(name, name) for name in housekeeping.known_queues()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset if self.value() is None else queryset.filter(queue=self.value())


@admin.register(MessageLog)
class MessageLogAdmin(_Watched):
    """Tasks: to look at, run again, cancel and delete."""

    list_display = (
        *("task", "status", "queue", "priority", "attempts"),
        *("publish_time", "completion_time", "failure_time"),
    )
    list_filter = ("status", _QueueFilter)
    search_fields = ("task",)
    ordering = ("-pk",)
    actions = ("requeue_them", "cancel_them", "delete_them")
    fields = (
        *("uuid", "status", "task", "positional", "keywords"),
        *("queue", "exchange", "routing_key", "priority", "retry_of"),
        *("publish_time", "start_time", "completion_time", "failure_time"),
        *("run_after", "expires_at", "attempts", "retries", "crashes", "worker", "publish_error"),
        *("cancel_request", "progress"),
        *("unique_key", "unique_until", "retention"),
        *("slot_key", "rate_key", "waits_for", "trace"),
        *("result", "exception", "traceback", "log"),
    )
    readonly_fields = ("positional", "keywords", "result")

    def has_act_permission(self, request: HttpRequest) -> bool:
        """Django's name for what the actions take."""
        return access.may(request, access.ACT)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return _Newest

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        title = gettext("Tasks: the newest %(count)s. The monitor has all.") % {"count": NEWEST}
        return super().changelist_view(request, {"title": title, **(extra_context or {})})

    def get_queryset(self, request: HttpRequest) -> QuerySet[MessageLog]:
        rows = super().get_queryset(request)
        match = request.resolver_match
        if match is not None and str(match.url_name).endswith("_changelist"):
            # Results and logs may be large.
            rows = rows.only("pk", *self.list_display)
        return rows

    @admin.display(description=_("positional arguments"))
    def positional(self, row: MessageLog) -> str:
        """Without the values that the monitor does not show."""
        if row.is_task:
            return redaction.positional_text(row)
        return redaction.shown_text(row.task_args)

    @admin.display(description=_("keyword arguments"))
    def keywords(self, row: MessageLog) -> str:
        """Without the values that the monitor does not show."""
        if row.is_task:
            return redaction.keyword_text(row)
        return redaction.shown_text(row.content)

    @admin.display(description=_("result"))
    def result(self, row: MessageLog) -> str:
        """Without the values that the monitor does not show."""
        return redaction.shown_text(row.output or "")

    @admin.action(description=_("Run again"), permissions=["act"])
    def requeue_them(self, request: HttpRequest, rows: MessageLogQuerySet) -> None:
        """Those that have come to their end."""
        self._do(request, rows, "requeue")

    @admin.action(description=_("Cancel"), permissions=["act"])
    def cancel_them(self, request: HttpRequest, rows: MessageLogQuerySet) -> None:
        """Those that wait."""
        self._do(request, rows, "cancel")

    @admin.action(description=_("Delete"), permissions=["act"])
    def delete_them(self, request: HttpRequest, rows: MessageLogQuerySet) -> None:
        """Those that have come to their end."""
        self._do(request, rows, "delete")

    def _do(self, request: HttpRequest, rows: MessageLogQuerySet, deed: str) -> None:
        keys = list(rows.order_by("pk").values_list("pk", flat=True))
        target = "tasks selected in the admin"
        done = many_tasks.those_selected(deed, keys, target, request.user)
        told = ngettext(
            "Done to %(count)s task. Others were not in a state for that.",
            "Done to %(count)s tasks. Others were not in a state for that.",
            done,
        )
        self.message_user(request, told % {"count": done})


class ScheduleForm(forms.ModelForm):  # type: ignore[type-arg]
    """What the model says, and nobody may have just any function run that can be imported."""

    class Meta:
        model = ScheduledTask
        fields: ClassVar = "__all__"

    def clean_task(self) -> str:
        """One of those of the settings, or what it was."""
        task = str(self.cleaned_data["task"])
        if "task" in self.changed_data and task not in task_choices():
            raise forms.ValidationError(gettext("This is not a valid selection"))
        return task


@admin.register(ScheduledTask)
class ScheduledTaskAdmin(_Watched):
    """Schedules, to change them and to run them."""

    form = ScheduleForm
    list_display = (
        *("task_name", "task", "interval_display", "active"),
        *("next_run_time", "last_run_time", "problem"),
    )
    list_filter = ("active",)
    search_fields = ("task_name", "task")
    ordering = ("task_name",)
    actions = ("run_them",)
    readonly_fields = (
        *("next_run_time", "last_run_time", "last_log", "problem", "declaration"),
        *("positional", "keywords"),
    )

    def has_add_permission(self, request: HttpRequest) -> bool:
        return access.may(request, access.SCHEDULE)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return access.may(request, access.SCHEDULE)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return access.may(request, access.SCHEDULE)

    def get_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        """Whoever may change arguments sees them."""
        may_change = self.has_change_permission(request, obj)
        arguments = ("task_args", "content") if may_change else ("positional", "keywords")
        return (
            *("task_name", "task", *arguments, "active"),
            *("interval_count", "interval_type", "cron", "timezone", "run_at"),
            *("start_time", "end_time", "misfire", "overlap"),
            *("queue", "priority", "exchange", "routing_key"),
            *("next_run_time", "last_run_time", "last_log", "problem", "declaration"),
        )

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        """Under another name a declared schedule would be deleted at the next start."""
        declared = obj is not None and obj.declaration
        return (*self.readonly_fields, *(["task_name"] if declared else []))

    @admin.display(description=_("positional arguments"))
    def positional(self, schedule: Any) -> str:
        """Without the values that the monitor does not show."""
        return redaction.positional_text(schedule)

    @admin.display(description=_("keyword arguments"))
    def keywords(self, schedule: Any) -> str:
        """Without the values that the monitor does not show."""
        return redaction.keyword_text(schedule)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """In the transaction of Django's view."""
        super().save_model(request, obj, form, change)
        action = "change schedule" if change else "create schedule"
        OperatorAction.note(request.user, action, obj.task_name)

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        """In the transaction of Django's view."""
        super().delete_model(request, obj)
        OperatorAction.note(request.user, "delete schedule", obj.task_name)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """Those that were selected."""
        with transaction.atomic(using=router.db_for_write(ScheduledTask)):
            for schedule in queryset:
                self.delete_model(request, schedule)

    @admin.action(description=_("Run now"), permissions=["change"])
    def run_them(self, request: HttpRequest, schedules: QuerySet[ScheduledTask]) -> None:
        """Publish the task of each once, also of one that is not active."""
        for schedule in schedules:
            name = schedule.task_name
            try:
                with transaction.atomic(using=router.db_for_write(ScheduledTask)):
                    row = schedule.publish()
                    OperatorAction.note(request.user, "run schedule", f"{name} as {row.pk}")
            except (CarrotError, ImportError, AttributeError) as error:
                told = gettext("Schedule %(name)s cannot run: %(error)s")
                self.message_user(request, told % {"name": name, "error": error}, messages.ERROR)
            else:
                told = gettext("The task of %(name)s is published.")
                self.message_user(request, told % {"name": name})


@admin.register(OperatorAction)
class OperatorActionAdmin(_Watched):
    """Who did what."""

    list_display = ("time", "user", "action", "target", "count")
    search_fields = ("user", "action", "target")
    ordering = ("-pk",)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return _Newest


@admin.register(PausedQueue)
class PausedQueueAdmin(_Watched):
    """Queues that operators have paused: to be resumed in the monitor."""

    list_display = ("name", "since", "by", "reason")


@admin.register(Worker)
class WorkerAdmin(_Watched):
    """Service processes."""

    list_display = ("name", "host", "pid", "version", "started_at", "heartbeat_at", "command")
