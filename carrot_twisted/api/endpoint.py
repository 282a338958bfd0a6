# SPDX-License-Identifier: Apache-2.0
"""What all answers of the JSON API have in common: who gets them, their form, pages and errors.

Nothing of a project's ``REST_FRAMEWORK`` setting applies here, and ``rest_framework`` need not be
in ``INSTALLED_APPS``: the project's own API has its rules, this one has django-carrot's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django.db import models
from django.http import JsonResponse
from django.utils.translation import gettext as _
from rest_framework import ISO_8601, status
from rest_framework.authentication import SessionAuthentication
from rest_framework.exceptions import (
    APIException,
    MethodNotAllowed,
    ValidationError,
)
from rest_framework.generics import GenericAPIView
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.pagination import PageNumberPagination
from rest_framework.parsers import JSONParser
from rest_framework.renderers import JSONRenderer
from rest_framework.serializers import DateTimeField, ModelSerializer
from rest_framework.settings import APISettings
from rest_framework.views import exception_handler

from carrot_twisted.exceptions import BrokerError, CarrotError, UnknownWorker
from carrot_twisted.monitor import access

if TYPE_CHECKING:
    from collections.abc import Mapping

    from django.http import HttpRequest
    from rest_framework.renderers import BaseRenderer
    from rest_framework.request import Request
    from rest_framework.response import Response

    from carrot_twisted.monitor.access import FunctionView

#: Rows of a page, as in django-carrot.
PAGE_SIZE = 50
#: Key of what is wrong with all fields together.
NO_FIELD = "non_field_errors"
_SAFE = ("GET", "HEAD")
#: Of all answers: they are for one user, and for the moment.
_HEADERS = {"Cache-Control": "private, no-cache", "X-Content-Type-Options": "nosniff"}


class _Renderer(JSONRenderer):
    ensure_ascii = False
    compact = True
    strict = True


class _Parser(JSONParser):
    renderer_class = _Renderer
    strict = True


class _Negotiation(DefaultContentNegotiation):
    """JSON, whatever is asked for."""

    def select_renderer(  # type: ignore[override]
        self, request: Request, renderers: list[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        return renderers[0], renderers[0].media_type or ""


class _Visitor(SessionAuthentication):
    """Whoever the project's middleware, or a decorator of the settings, says it is.

    Changes take a CSRF token, also of users who are not logged in: decorators may let them in.
    Django's own middleware cannot see to that, for Django REST framework exempts its views.
    """

    def authenticate(self, request: Request) -> tuple[Any, None]:
        user = request._request.user
        self.enforce_csrf(request)
        return user, None


class Pages(PageNumberPagination):
    """Pages by number: ``{count, next, previous, results}``."""

    page_size = PAGE_SIZE
    page_query_param = "page"
    page_size_query_param = None
    max_page_size = None


class Conflict(APIException):
    """The thing is not in a state in which that can be done."""

    status_code = status.HTTP_409_CONFLICT


class TimeField(DateTimeField):
    """A time in ISO 8601, whatever form a project has chosen for its own API."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"format": ISO_8601, "input_formats": [ISO_8601], **kwargs})


class RowSerializer(ModelSerializer[Any]):
    """A row, field by field."""

    serializer_field_mapping: ClassVar = {
        **ModelSerializer.serializer_field_mapping,
        models.DateTimeField: TimeField,
    }


class Endpoint(GenericAPIView[Any]):
    """One address. Subclasses have a method for each of HTTP's that they answer."""

    # Also what Django REST framework looks up while it answers.
    settings = APISettings({"EXCEPTION_HANDLER": f"{__name__}.handled"})
    renderer_classes = (_Renderer,)
    parser_classes = (_Parser,)
    content_negotiation_class = _Negotiation
    authentication_classes = (_Visitor,)
    permission_classes = ()
    throttle_classes = ()
    metadata_class = None
    versioning_class = None
    filter_backends = ()
    pagination_class: Any = None
    http_method_names = ["get", "post", "put", "patch", "delete", "head"]  # noqa: RUF012 - as Django has it

    permission: ClassVar[str] = access.ACT
    """What it takes to change something here."""
    takes: ClassVar[Mapping[str, Any]] = {}
    """Serializers of what is sent, by method; for others it is nothing."""
    gives: ClassVar[Mapping[str, tuple[int, Any]]] = {}
    """Status and serializer of the answer, by method; None: there is no body."""
    parameters: ClassVar[Mapping[str, tuple[str, dict[str, Any]]]] = {}
    """What may stand in the query: what it means, and its form, as a JSON Schema."""
    errors: ClassVar[Mapping[str, tuple[int, ...]]] = {}
    """Statuses of answers that say why not, by method; beside 401 and 403."""

    def check_permissions(self, request: Request) -> None:
        """Whoever comes here may look."""
        if request.method not in _SAFE:
            access.demand(request, self.permission)

    @property
    def default_response_headers(self) -> dict[str, str]:
        """Of every answer."""
        return {**super().default_response_headers, **_HEADERS, "Vary": "Cookie"}

    def http_method_not_allowed(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Response:
        """Say which method it is. What changes something was a GET in django-carrot, partly."""
        method = str(request.method)
        allowed = ", ".join(self.allowed_methods)
        text = _('Method "%(method)s" not allowed. Use %(allowed)s.')
        if method in _SAFE:
            text = _('Method "%(method)s" not allowed: this changes something. Use %(allowed)s.')
        raise MethodNotAllowed(method, text % {"method": method, "allowed": allowed})


def json_object(request: Request) -> dict[str, Any]:
    """What was sent; nothing counts as an empty object.

    Raises:
        ValidationError: it is no object.
    """
    if not isinstance(request.data, dict):
        raise ValidationError({NO_FIELD: [_("Send a JSON object.")]})
    return {**request.data}


def handled(error: Exception, context: dict[str, Any]) -> Response | None:
    """The answer that says what went wrong: ``{"detail": …}``, or texts by field."""
    if isinstance(error, CarrotError):
        told = APIException(str(error))
        told.status_code = status.HTTP_400_BAD_REQUEST
        if isinstance(error, UnknownWorker):
            told.status_code = status.HTTP_404_NOT_FOUND
        elif isinstance(error, BrokerError):
            told.status_code = status.HTTP_503_SERVICE_UNAVAILABLE
        error = told
    return exception_handler(error, context)


def endpoint(view: type[Endpoint]) -> FunctionView:
    """The view of an address, for those who may see the monitor."""
    return access.guarded(view.as_view(), _denied)


def _denied(request: HttpRequest, *_args: Any, **_kwargs: Any) -> JsonResponse:
    if request.user.is_authenticated:
        text = _("You may not look at this: it takes a member of the staff with the permission %s.")
        return JsonResponse(
            {"detail": text % access.VIEW}, status=status.HTTP_403_FORBIDDEN, headers=_HEADERS
        )
    return JsonResponse(
        {"detail": _("Authentication credentials were not provided.")},
        status=status.HTTP_401_UNAUTHORIZED,
        headers={"WWW-Authenticate": 'Session realm="carrot"', **_HEADERS},
    )
