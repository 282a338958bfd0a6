# SPDX-License-Identifier: Apache-2.0
"""What all pages have in common: who may see them, how they are rendered, kept current and cached.

Every page works without scripts. With them, the page asks for itself again, now and then or when
the service says that something has changed, and gets its *live* part only; the answer has an ETag,
so that an unchanged page costs no transfer. The live part holds no CSRF token, which would differ
each time: its buttons and boxes belong, by their ``form`` attribute, to the one form outside.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib.auth.views import redirect_to_login
from django.core import signing
from django.core.exceptions import PermissionDenied
from django.http import HttpResponse, HttpResponseRedirect
from django.template.backends.django import DjangoTemplates
from django.urls import NoReverseMatch, reverse
from django.utils.cache import get_conditional_response, patch_vary_headers
from django.utils.http import quote_etag
from django.utils.translation import gettext_lazy as _
from django.views import View
from django.views.decorators.csrf import csrf_protect

from carrot_twisted import changes, conf
from carrot_twisted.exceptions import CarrotError
from carrot_twisted.monitor import access

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from django.http import HttpRequest
    from django.http.response import HttpResponseBase

    from carrot_twisted.monitor.access import FunctionView

#: No inline script or style, nothing from elsewhere, no frame around it.
CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)
#: Seconds between a page's looks at the server.
REFRESH = 3
#: A short text for the next page, after an action.
NOTICE = "carrot_notice"
_TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
#: Name of the URL, and title, of the pages in the navigation.
SECTIONS = (
    ("carrot-monitor", _("Overview")),
    ("carrot-tasks", _("Tasks")),
    ("carrot-schedules", _("Schedules")),
    ("carrot-queues", _("Queues")),
    ("carrot-workers", _("Workers")),
    ("carrot-actions", _("Actions")),
)


@cache
def engine() -> DjangoTemplates:
    """Our own templates engine: a project's TEMPLATES have nothing to do with these pages."""
    return DjangoTemplates(
        {
            "NAME": "carrot_twisted",
            "DIRS": [_TEMPLATES],
            "APP_DIRS": False,
            "OPTIONS": {
                "context_processors": ["django.template.context_processors.request"],
                "builtins": [
                    "django.templatetags.i18n",
                    "carrot_twisted.templatetags.carrot_twisted",
                ],
            },
        }
    )


def is_partial(request: HttpRequest) -> bool:
    """Whether the page asks for its own live part."""
    return request.headers.get("HX-Request") == "true"


class Page(View):
    """One page. Subclasses give the template and its context."""

    template: ClassVar[str]
    """File in ``templates/carrot_twisted``."""
    section: ClassVar[str] = ""
    """The entry of SECTIONS that is marked as the present one."""
    live: ClassVar[bool] = True
    """Whether it keeps itself current."""
    permission: ClassVar[str] = access.VIEW
    """What it takes to see it, beside being let in."""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Answer; what the user may not do, with a page that says so."""
        try:
            if self.permission != access.VIEW:
                access.demand(request, self.permission)
            return super().dispatch(request, *args, **kwargs)
        except PermissionDenied as error:
            return refusal(request, str(error))

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Show the page."""
        return self.render(self.context(request, *args, **kwargs))

    def context(self, request: HttpRequest, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What the template gets, beside what all get."""
        raise NotImplementedError

    def render(self, context: Mapping[str, Any], status: int = 200) -> HttpResponse:
        """The page with this context; 304 if the browser has it."""
        request = self.request
        page = {"section": self.section, "live": self.live, **context}
        response = rendered(request, self.template, page, status)
        if request.method not in ("GET", "HEAD") or status != 200:
            return response
        etag = quote_etag(hashlib.sha256(response.content).hexdigest()[:32])
        response.headers["ETag"] = etag
        answer = get_conditional_response(request, etag=etag, response=response)
        return response if answer is None else _with_headers(answer)


def rendered(
    request: HttpRequest, template: str, context: Mapping[str, Any], status: int = 200
) -> HttpResponse:
    """A template with what all pages have."""
    partial = is_partial(request)
    notice = None if partial else _taken_notice(request)
    text = engine().get_template(f"carrot_twisted/{template}")
    content = text.render(
        {
            "base": f"carrot_twisted/{'fragment' if partial else 'base'}.html",
            "sections": [
                {"name": name, "title": title, "url": reverse(name)} for name, title in SECTIONS
            ],
            "refresh": REFRESH,
            "stream": request.META.get(changes.STREAM),
            "here": request.get_full_path(),
            "may_act": access.may(request, access.ACT),
            "may_purge": access.may(request, access.PURGE),
            "may_schedule": access.may(request, access.SCHEDULE),
            "logout_url": _logout_url(),
            "notice": notice,
            **context,
        },
        request,
    )
    response = _with_headers(HttpResponse(content, status=status))
    if notice is not None:
        response.delete_cookie(NOTICE, path=reverse("carrot-monitor"))
    return response


def _with_headers(response: HttpResponse) -> HttpResponse:
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    response.headers["Referrer-Policy"] = "same-origin"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Cache-Control"] = "private, no-cache"
    patch_vary_headers(response, ["HX-Request", "Cookie"])
    return response


def refusal(request: HttpRequest, text: str, status: int = 403) -> HttpResponse:
    """A page that says why not, and what to do about it."""
    return rendered(request, "refusal.html", {"text": text, "live": False}, status)


def denied(request: HttpRequest, *_args: Any, **_kwargs: Any) -> HttpResponseBase:
    """For those whom the monitor does not let in: the login, or the reason why not."""
    if not request.user.is_authenticated:
        return redirect_to_login(request.get_full_path(), conf.login_url())
    context = {"permission": access.VIEW, "logout_url": _logout_url()}
    return alone(request, "stranger.html", context, 403)


def alone(
    request: HttpRequest, template: str, context: Mapping[str, Any], status: int = 200
) -> HttpResponse:
    """A page that shows nothing of the monitor, not even its navigation."""
    text = engine().get_template(f"carrot_twisted/{template}")
    return _with_headers(HttpResponse(text.render({**context}, request), status=status))


class Action(View):
    """One thing that people do: by POST, with the permission it takes. Subclasses have ``act``."""

    permission: ClassVar[str] = access.ACT

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Do it."""

        def act() -> HttpResponse:
            access.demand(request, self.permission)
            return self.act(request, *args, **kwargs)

        return self.guarded(request, act)

    def guarded(self, request: HttpRequest, work: Callable[[], HttpResponse]) -> HttpResponse:
        """Where something is not allowed, or fails, a page that says so."""
        try:
            return work()
        except PermissionDenied as error:
            return refusal(request, str(error))
        except CarrotError as error:
            return refusal(request, str(error), 400)

    def act(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Do it, note it (``OperatorAction.note``), and go ``back`` to a page."""
        raise NotImplementedError


def page(view: type[Page | Action]) -> FunctionView:
    """The view of a page or an action, for those who may see the monitor.

    Forms need their token also where the project has no middleware that asks for it.
    """
    return access.guarded(csrf_protect(view.as_view()), denied)


def back(request: HttpRequest, url: str, notice: str) -> HttpResponse:
    """To another page after an action, which says there what was done."""
    response = HttpResponseRedirect(url)
    response.set_signed_cookie(
        NOTICE,
        json.dumps(str(notice)),
        max_age=60,
        path=reverse("carrot-monitor"),
        httponly=True,
        secure=request.is_secure(),
        samesite="Lax",
    )
    return response


def _taken_notice(request: HttpRequest) -> str | None:
    try:
        text = request.get_signed_cookie(NOTICE, max_age=60)
        return str(json.loads(text or ""))
    except (KeyError, ValueError, signing.BadSignature):
        return None


def _logout_url() -> str | None:
    for name in ("carrot-logout", "admin:logout", "logout"):
        try:
            return reverse(name)
        except NoReverseMatch:
            continue
    return None
