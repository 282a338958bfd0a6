# SPDX-License-Identifier: Apache-2.0
"""What the monitor's templates know beside what Django's do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.template import Library
from django.utils import timezone
from django.utils.html import format_html
from django.utils.translation import gettext as _

from carrot_twisted.monitor import assets

if TYPE_CHECKING:
    from datetime import datetime, timedelta

register = Library()

#: Stands for a value that is not there.
NOTHING = "\N{EN DASH}"


@register.simple_tag
def asset(name: str) -> str:
    """The address of a script, a style or a picture."""
    return assets.url_of(name)


@register.simple_tag
def moment(when: datetime | None, form: str = "") -> str:
    """A time: in the project's zone; scripts show it in the reader's, and how long it is ago.

    Args:
        when: the time.
        form: "absolute": scripts show the time itself.
    """
    if when is None:
        return NOTHING
    local = timezone.localtime(when)
    return format_html(
        '<time datetime="{}" data-moment="{}">{}</time>',
        when.isoformat(),
        form,
        # Not by Django's formats: they name no zone in the hour that comes twice.
        f"{local:%Y-%m-%d %H:%M:%S %Z}",
    )


@register.filter
def duration(value: timedelta | float | None) -> str:
    """A time span in the two units that matter: 250 ms, 3.2 s, 4 min 10 s, 2 h 5 min, 3 d 4 h."""
    if value is None:
        return NOTHING
    seconds = value if isinstance(value, int | float) else value.total_seconds()
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, name, smaller, its_name in (
        (86_400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            large, rest = divmod(whole, size)
            return f"{large} {name} {rest // smaller} {its_name}"
    return f"{whole} s"


@register.filter
def age(seconds: float | None) -> str:
    """How long something lasts already, coarse: a page that shows it changes seldom."""
    if seconds is None:
        return NOTHING
    for size, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {name}"
    return _("less than a minute")


@register.filter
def share(part: float) -> str:
    """A part of one, in percent; a little is never shown as nothing."""
    percent = part * 100
    return f"{percent:.0f} %" if percent == 0 or percent >= 10 else f"{max(percent, 0.1):.1f} %"


@register.filter
def whole(number: int) -> str:
    """A number with its thousands set apart."""
    return f"{number:,}"
