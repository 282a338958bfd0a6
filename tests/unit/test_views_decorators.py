# SPDX-License-Identifier: Apache-2.0
"""Views get their decorators by dotted path: functions and classes, one or many, none unnoticed."""

from __future__ import annotations

import asyncio
from functools import wraps
from typing import TYPE_CHECKING, Any

import pytest
from django.http import HttpResponse
from django.test import RequestFactory
from django.views import View
from django.views.decorators.csrf import csrf_exempt

from carrot_twisted.exceptions import CarrotConfigException
from carrot_twisted.utilities import (
    create_class_view,
    create_function_view,
    decorate_class_view,
    decorate_function_view,
    get_mixin,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import HttpRequest

OUTER = f"{__name__}.outer"
INNER = f"{__name__}.inner"


def marking(name: str) -> Callable[..., Any]:
    """A decorator that adds its name to the response."""

    def decorator(view: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(view)
        def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            response: HttpResponse = view(request, *args, **kwargs)
            response.content = f"{name}({response.content.decode()})"
            return response

        return wrapped

    return decorator


outer = marking("outer")
inner = marking("inner")
no_decorator = "a text"


def show(request: HttpRequest, pk: int = 0) -> HttpResponse:
    """A view."""
    return HttpResponse(f"{request.method} {pk}")


class Show(View):
    """A class-based view."""

    greeting = "hello"

    def get(self, request: HttpRequest, pk: int = 0) -> HttpResponse:
        return HttpResponse(f"{self.greeting} {pk}")


def respond(view: Any, pk: int = 0) -> HttpResponse:
    """The response of a view, of either kind."""
    call = view.as_view() if hasattr(view, "as_view") else view
    response: HttpResponse = call(RequestFactory().get("/"), pk=pk)
    return response


def answer(view: Any, pk: int = 0) -> str:
    """What a view says."""
    return respond(view, pk).content.decode()


def test_a_function_view_is_decorated_and_can_be_again() -> None:
    once = create_function_view(show, inner)
    assert answer(once, 5) == "inner(GET 5)"
    assert answer(create_function_view(once, outer), 5) == "outer(inner(GET 5))"
    assert answer(show, 5) == "GET 5"
    assert (once.__name__, once.__doc__) == ("show", "A view.")


def test_a_class_view_is_decorated_and_can_be_again() -> None:
    once = create_class_view(Show, inner)
    assert issubclass(once, Show)
    assert answer(once, 5) == "inner(hello 5)"
    assert answer(create_class_view(once, outer), 5) == "outer(inner(hello 5))"
    assert answer(Show, 5) == "hello 5"
    assert (once.__name__, once.__doc__) == ("Show", "A class-based view.")
    assert once.__module__ == __name__


def test_a_mixin_decorates_what_it_is_mixed_into() -> None:
    mixed = type("Mixed", (get_mixin(outer), Show), {})
    assert answer(mixed, 1) == "outer(hello 1)"


def test_the_last_of_several_is_the_outermost() -> None:
    assert answer(decorate_function_view(show, [INNER, OUTER])) == "outer(inner(GET 0))"
    assert answer(decorate_class_view(Show, [INNER, OUTER])) == "outer(inner(hello 0))"


def test_django_s_own_decorators_work_on_both() -> None:
    path = "django.views.decorators.http.require_POST"
    for view in (decorate_function_view(show, [path]), decorate_class_view(Show, [path])):
        assert respond(view).status_code == 405


def test_what_a_decorator_notes_on_a_view_is_there_for_the_middleware() -> None:
    assert create_class_view(Show, csrf_exempt).as_view().csrf_exempt  # type: ignore[attr-defined]
    assert create_function_view(show, csrf_exempt).csrf_exempt  # type: ignore[attr-defined]


def test_an_async_view_stays_one() -> None:
    async def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse("later")

    decorated: Any = create_function_view(view, csrf_exempt)
    response = asyncio.run(decorated(RequestFactory().get("/")))
    assert response.content == b"later"


def test_without_a_list_it_is_the_settings(settings: Any) -> None:
    settings.CARROT = {"monitor_authentication": [INNER]}
    assert answer(decorate_function_view(show)) == "inner(GET 0)"
    assert answer(decorate_class_view(Show)) == "inner(hello 0)"
    settings.CARROT = {}
    assert decorate_function_view(show) is show
    assert decorate_class_view(Show) is Show


def test_an_empty_list_is_no_decorator_whatever_the_settings(settings: Any) -> None:
    settings.CARROT = {"monitor_authentication": [INNER]}
    assert decorate_function_view(show, []) is show
    assert decorate_class_view(Show, []) is Show


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("no.such.f", "cannot be imported: ModuleNotFoundError"),
        (f"{__name__}.no_such", "cannot be imported: ImportError"),
        ("f", "cannot be imported: ImportError"),
        (f"{__name__}.no_decorator", "cannot be called"),
    ],
)
@pytest.mark.parametrize("decorate", [decorate_class_view, decorate_function_view])
def test_a_path_that_names_no_decorator_leaves_no_view_unguarded(
    settings: Any, decorate: Callable[..., Any], path: str, text: str
) -> None:
    settings.CARROT = {"monitor_authentication": [INNER, path]} if path != "f" else {}
    paths = None if path != "f" else [path]
    with pytest.raises(CarrotConfigException, match=r"CARROT\['monitor_authentication'\]") as told:
        decorate(Show if decorate is decorate_class_view else show, paths)
    assert f"names {path!r}, which {text}" in str(told.value)
    assert "django.contrib.auth.decorators.login_required" in str(told.value)
