# SPDX-License-Identifier: Apache-2.0
"""Who may see what, and do what, in the monitor.

Without ``CARROT["monitor_authentication"]``: active members of the staff with the permission that
the page or the action names. With it, its decorators say who comes in and may look, as with
django-carrot; whoever acts needs the permission still.
"""

from __future__ import annotations

from functools import cache, wraps
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.http import HttpResponse

from carrot_twisted import conf
from carrot_twisted.view_decorators import decorate_function_view

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import HttpRequest
    from django.http.response import HttpResponseBase

    FunctionView = Callable[..., HttpResponseBase]

#: Look at everything.
VIEW = "carrot_twisted.view_messagelog"
#: Run tasks again, cancel and delete them; pause queues; quiet and stop workers.
ACT = "carrot_twisted.act_messagelog"
#: Throw waiting tasks and archived messages away.
PURGE = "carrot_twisted.purge_messagelog"
#: Create, change, run and delete schedules.
SCHEDULE = "carrot_twisted.change_scheduledtask"


def may(request: HttpRequest, permission: str) -> bool:
    """Whether this user may do it, once the monitor has let the user in."""
    user = request.user
    if not conf.current().monitor_authentication and not user.is_staff:
        return False
    return user.is_active and user.has_perm(permission)


def guarded(view: FunctionView, denied: FunctionView) -> FunctionView:
    """This view for those who may look; ``denied``, with the same arguments, for others.

    Args:
        view: any view, of pages or of the API.
        denied: answers those whom the default rule does not let in.
    """

    @wraps(view)
    def entrance(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if not hasattr(request, "user"):
            raise ImproperlyConfigured(
                "The monitor needs to know its users: add django.contrib.auth and "
                "django.contrib.sessions to INSTALLED_APPS, and their SessionMiddleware and "
                "AuthenticationMiddleware to MIDDLEWARE."
            )
        paths = conf.current().monitor_authentication
        if paths:
            return _decorated(view, paths)(request, *args, **kwargs)
        shown = view if may(request, VIEW) else denied
        return shown(request, *args, **kwargs)

    return entrance


def demand(request: HttpRequest, permission: str) -> None:
    """Go on only if this user may do that.

    Raises:
        PermissionDenied: the text says who can help.
    """
    if not may(request, permission):
        raise PermissionDenied(
            f"You may look, but not do this: it needs the permission {permission}. An "
            "administrator can give it to you."
        )


def may_view(request: HttpRequest) -> bool:
    """Whether the monitor lets this request in: for doors that are no views of Django's."""
    return _door(request).status_code == _open(request).status_code


def _open(_request: HttpRequest) -> HttpResponse:
    return HttpResponse()


def _closed(_request: HttpRequest) -> HttpResponse:
    return HttpResponse(status=403)


_door = guarded(_open, _closed)


@cache
def _decorated(view: FunctionView, paths: tuple[str, ...]) -> FunctionView:
    return decorate_function_view(view, paths)
