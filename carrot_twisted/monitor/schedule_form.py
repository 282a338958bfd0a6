# SPDX-License-Identifier: Apache-2.0
"""The form in which people write a schedule.

What a schedule must be like is said by the model's ``clean()``; added is only what concerns those
who type it: which tasks there are to choose from, and whether a task takes the arguments.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, cast
from zoneinfo import available_timezones

from django import forms
from django.core.serializers.json import DjangoJSONEncoder
from django.forms.renderers import DjangoTemplates
from django.utils import timezone
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from carrot_twisted import conf, wire
from carrot_twisted.exceptions import InvalidMessage
from carrot_twisted.models import ScheduledTask
from carrot_twisted.monitor import registered_tasks

if TYPE_CHECKING:
    from collections.abc import Iterable

    _ModelForm = forms.ModelForm[ScheduledTask]
else:
    _ModelForm = forms.ModelForm

INTERVAL, CRON, ONCE = "interval", "cron", "once"
_TIME = forms.DateTimeInput(
    attrs={"type": "datetime-local", "step": "1"}, format="%Y-%m-%dT%H:%M:%S"
)
_JSON = forms.Textarea(attrs={"rows": 3, "class": "mono", "spellcheck": "false"})
#: Fields that say nothing with each kind of trigger.
_IDLE = {
    INTERVAL: ("cron", "timezone", "run_at"),
    CRON: ("interval_count", "interval_type", "run_at"),
    ONCE: ("interval_count", "interval_type", "cron", "timezone"),
}
_BLANK: dict[str, Any] = {"cron": "", "timezone": "", "run_at": None}


class _Select(forms.Select):
    """In one template: Django's takes one for each choice, and there are 600 time zones."""

    template_name = "carrot_twisted/select.html"


class ScheduleForm(_ModelForm):
    """A schedule that is new, or one that is there."""

    #: A project's FORM_RENDERER has nothing to do with these pages.
    default_renderer = DjangoTemplates

    kind = forms.ChoiceField(
        label=_("It runs"),
        choices=[
            (INTERVAL, _("again and again, at an interval")),
            (CRON, _("by a crontab")),
            (ONCE, _("once, at a time")),
        ],
        widget=forms.RadioSelect,
    )
    task = forms.ChoiceField(
        label=_("Task"),
        help_text=_("A function of one of the modules in CARROT['task_modules']."),
        widget=_Select,
    )
    queue = forms.ChoiceField(label=_("Queue"), widget=_Select)
    timezone = forms.ChoiceField(
        label=_("Time zone of the crontab"), required=False, widget=_Select
    )

    class Meta:
        model = ScheduledTask
        fields: ClassVar = (
            "task_name",
            "task",
            "task_args",
            "content",
            "interval_count",
            "interval_type",
            "cron",
            "timezone",
            "run_at",
            "start_time",
            "end_time",
            "misfire",
            "overlap",
            "queue",
            "priority",
            "exchange",
            "routing_key",
            "active",
        )
        labels: ClassVar = {
            "task_name": _("Name"),
            "task_args": _("Positional arguments"),
            "content": _("Keyword arguments"),
            "interval_count": _("Every"),
            "interval_type": _("Unit"),
            "cron": _("Crontab"),
            "run_at": _("At"),
            "start_time": _("Not before"),
            "end_time": _("Not after"),
            "misfire": _("Missed runs"),
            "overlap": _("Overlapping runs"),
            "priority": _("Priority"),
            "exchange": _("Exchange"),
            "routing_key": _("Routing key"),
            "active": _("Active"),
        }
        help_texts: ClassVar = {
            "task_name": _("By which you find it; each name is there once."),
            "task_args": _('A JSON list, for example [42, "monthly"].'),
            "content": _('A JSON object, for example {"to": "ann@example.com"}.'),
            "cron": _("Minute, hour, day of month, month, day of week: 30 2 * * MON-FRI."),
            "misfire": _("Those whose time comes while no service runs."),
            "overlap": _("Whether it runs while its last run is unfinished."),
            "priority": _("0 to 255. The higher ones go first, if the queue heeds that."),
            "exchange": _("Empty: RabbitMQ's default exchange."),
            "routing_key": _("Empty: the queue's name."),
            "active": _("Switched off, it stays as it is and does not run."),
        }
        widgets: ClassVar = {
            "task_args": _JSON,
            "content": _JSON,
            "cron": forms.TextInput(attrs={"class": "mono", "spellcheck": "false"}),
            "run_at": _TIME,
            "start_time": _TIME,
            "end_time": _TIME,
        }
        error_messages: ClassVar = {
            "task_name": {"unique": _("There is a schedule of this name already.")}
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        schedule = self.instance
        fields = self.fields
        self._initial_kind()
        self._offer("task", [("", "\N{EN DASH}"), *_tasks(schedule.task)])
        self._offer("queue", _with([*conf.current().queues], schedule.queue))
        here = gettext("that of the settings (%(zone)s)") % {
            "zone": timezone.get_default_timezone_name()
        }
        self._offer("timezone", [("", here), *_zones(schedule.timezone)])
        told = gettext("In the time zone %(zone)s.") % {
            "zone": timezone.get_current_timezone_name()
        }
        for name in ("run_at", "start_time", "end_time"):
            fields[name].help_text = told
        if schedule.declaration:
            # Under another name it would be deleted at the next start of a service.
            fields["task_name"].disabled = True
            fields["task_name"].help_text = gettext("The code gives it this name.")
        for name, field in fields.items():
            described = f"hint-{name} error-{name}" if field.help_text else f"error-{name}"
            field.widget.attrs["aria-describedby"] = described

    def _offer(self, name: str, choices: list[Any]) -> None:
        cast("forms.ChoiceField", self.fields[name]).choices = choices

    def _initial_kind(self) -> None:
        schedule = self.instance
        kind = CRON if schedule.cron else INTERVAL
        self.initial.setdefault("kind", ONCE if schedule.run_at is not None else kind)

    @property
    def is_replanned(self) -> bool:
        """Whether the next run is planned anew, once this is saved."""
        schedule = self.instance
        if schedule.next_run_time is None or schedule.problem:
            return True
        if not self.is_bound:
            return False
        return not {*self.changed_data}.isdisjoint(ScheduledTask.TRIGGER | {"kind", "active"})

    @property
    def says_when(self) -> bool:
        """Whether nothing is wrong with the fields that say when it runs."""
        return not self.errors.keys() & (ScheduledTask.TRIGGER | {"kind"})

    def faults(self) -> dict[str, str]:
        """What is wrong by field, for somebody who is still typing: gaps are no faults yet."""
        found = self.errors.as_data()
        return {
            name: next(iter(errors[0].messages), "")
            for name, errors in found.items()
            if errors[0].code != "required"
        }

    def clean(self) -> dict[str, Any]:
        """Empty what another kind of trigger has left; see whether the task takes its arguments."""
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        kind = cleaned.get("kind")
        for name in ("run_at", "start_time", "end_time"):
            # The fields have no microseconds: to leave one alone must not change the time.
            if name not in self.changed_data:
                cleaned[name] = getattr(self.instance, name)
        for name in _IDLE.get(kind or "", ()):
            # Nobody sees these fields: what stands in them is no fault.
            self.errors.pop(name, None)
            cleaned[name] = _BLANK.get(name, getattr(self.instance, name))
        for wanted, name, text in (
            (CRON, "cron", gettext("Write a crontab.")),
            (ONCE, "run_at", gettext("Give a time.")),
        ):
            if kind == wanted and name not in self.errors and not cleaned.get(name):
                self.add_error(name, forms.ValidationError(text, code="required"))
        self._check_arguments(cleaned)
        return cleaned

    def _check_arguments(self, cleaned: dict[str, Any]) -> None:
        try:
            args = wire.stored_list(cleaned.get("task_args", ""))
            kwargs = wire.stored_object(cleaned.get("content", ""))
        except InvalidMessage:
            # The model says which and why.
            return
        wrong = registered_tasks.mismatch(cleaned.get("task", ""), args, kwargs)
        if wrong is not None:
            field, reason = wrong
            text = gettext("The task does not take these arguments: %(reason)s.")
            self.add_error(field, text % {"reason": reason})


def version_of(schedule: ScheduledTask) -> str:
    """Changes with everything that the form shows, and with nothing that the scheduler plans."""
    values = [getattr(schedule, name) for name in (*ScheduleForm.Meta.fields, "declaration")]
    text = json.dumps(values, cls=DjangoJSONEncoder)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def differences(form: ScheduleForm, current: ScheduledTask) -> list[tuple[Any, Any]]:
    """Label and value of each field that is another in the database than in the form."""
    return [
        (form[name].label, getattr(current, name))
        for name in ScheduleForm.Meta.fields
        if getattr(current, name) != getattr(form.instance, name)
    ]


def _tasks(current: str) -> list[Any]:
    groups: list[Any] = [
        (module, [(f"{module}.{name}", name) for name in names])
        for module, names in registered_tasks.functions().items()
        if names
    ]
    if current and not any(current == path for _, group in groups for path, _ in group):
        groups.insert(0, (current, current))
    return groups


def _with(names: Iterable[str], current: str) -> list[tuple[str, str]]:
    return [(name, name) for name in dict.fromkeys([*names, *([current] if current else [])])]


@cache
def _zone_names() -> tuple[str, ...]:
    # Read from the disk.
    return tuple(sorted(available_timezones()))


def _zones(current: str) -> list[tuple[str, str]]:
    return _with(_zone_names(), current)
