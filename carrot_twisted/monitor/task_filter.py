# SPDX-License-Identifier: Apache-2.0
"""What the address of a list of tasks says: which rows, in which order, from where on."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlencode
from uuid import UUID

from django import forms
from django.core.exceptions import ValidationError
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from carrot_twisted.message_log import MAX_TASK
from carrot_twisted.monitor import keyset

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The lists by the name of their tab.
STATES = (
    ("all", _("All")),
    ("queued", _("Queued")),
    ("running", _("Running")),
    ("failed", _("Failed")),
    ("completed", _("Completed")),
    ("cancelled", _("Cancelled")),
)
NEWEST, OLDEST = "newest", "oldest"
#: What a range of time is about, in each list.
_FROM = {
    "publish_time": _("published from %s"),
    "start_time": _("started from %s"),
    "failure_time": _("failed from %s"),
    "completion_time": _("completed from %s"),
}
_BEFORE = {
    "publish_time": _("published before %s"),
    "start_time": _("started before %s"),
    "failure_time": _("failed before %s"),
    "completion_time": _("completed before %s"),
}
_WORDS = {
    "all": _("all tasks"),
    "queued": _("queued tasks"),
    "running": _("running tasks"),
    "failed": _("failed tasks"),
    "completed": _("completed tasks"),
    "cancelled": _("cancelled tasks"),
}


def _known_year(when: datetime) -> None:
    if not 1971 <= when.year <= 9000:
        raise ValidationError(_("Enter a year from 1971 on."))


class TaskFilter(forms.Form):
    """The filter bar. Bound to an address; every part of it may be missing."""

    state = forms.ChoiceField(choices=STATES, required=False)
    q = forms.CharField(label=_("Text or id"), max_length=500, required=False)
    task = forms.CharField(label=_("Task"), max_length=MAX_TASK, required=False)
    queue = forms.CharField(label=_("Queue"), max_length=255, required=False)
    worker = forms.CharField(label=_("Worker"), max_length=100, required=False)
    flow = forms.UUIDField(label=_("Flow"), required=False)
    since = forms.DateTimeField(label=_("From"), required=False, validators=[_known_year])
    until = forms.DateTimeField(label=_("To"), required=False, validators=[_known_year])
    sort = forms.ChoiceField(
        label=_("Order"),
        choices=((NEWEST, _("Newest first")), (OLDEST, _("Oldest first"))),
        required=False,
    )

    FILTERS: ClassVar = ("q", "task", "queue", "worker", "flow", "since", "until")

    @cached_property
    def found(self) -> Mapping[str, Any]:
        """The values that are valid."""
        self.full_clean()
        return {name: value for name, value in self.cleaned_data.items() if value}

    @property
    def listing(self) -> str:
        """Name of the list."""
        return str(self.found.get("state", "all"))

    @property
    def is_filtered(self) -> bool:
        """Whether some rows of the list are left out."""
        return any(name in self.found for name in self.FILTERS)

    @property
    def key(self) -> UUID | None:
        """The row's, if that is what was asked for."""
        try:
            return UUID(self.found.get("q", ""))
        except ValueError:
            return None

    @property
    def query(self) -> keyset.Query:
        """For ``keyset.find``."""
        found = self.found
        return keyset.Query(
            listing=self.listing,
            task=found.get("task", ""),
            queue=found.get("queue", ""),
            worker=found.get("worker", ""),
            flow=found.get("flow"),
            text=found.get("q", ""),
            since=found.get("since"),
            until=found.get("until"),
            oldest_first=found.get("sort") == OLDEST,
        )

    def address(self, **changes: str) -> str:
        """The part of an address that says the same as this, but for some changes.

        Args:
            changes: value by name; "": without it.
        """
        given = {name: str(self.data[name]) for name in self.found} | changes
        return "?" + urlencode({name: value for name, value in given.items() if value})

    @property
    def words(self) -> str:
        """The same for people, as the record of actions keeps it."""
        found = self.found
        time = keyset.LISTINGS[self.listing].time or "publish_time"
        words = [str(_WORDS[self.listing])]
        for name, text in (
            ("task", gettext("task %s")),
            ("queue", gettext("queue %s")),
            ("worker", gettext("worker %s")),
            ("flow", gettext("flow %s")),
            ("since", str(_FROM[time])),
            ("until", str(_BEFORE[time])),
            ("q", gettext("with the text %s")),
        ):
            if name in found:
                value = found[name]
                if isinstance(value, datetime):
                    value = f"{timezone.localtime(value):%Y-%m-%d %H:%M:%S %Z}"
                words.append(text % value)
        return ", ".join(words)
