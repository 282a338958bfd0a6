# SPDX-License-Identifier: Apache-2.0
"""Decorates views by dotted paths, with django-carrot's names and signatures.

The monitor's views are guarded with them, by ``CARROT["monitor_authentication"]``. As in
django-carrot, each decorator is put around the one before: the last of the list is asked first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.utils.decorators import method_decorator
from django.utils.module_loading import import_string

from carrot_twisted import conf
from carrot_twisted.exceptions import CarrotConfigException

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from django.http import HttpRequest
    from django.http.response import HttpResponseBase
    from django.views import View

    Decorator = Callable[..., Any]
    # Returns a response, or a coroutine for one.
    FunctionView = Callable[..., Any]


#: What to do about a path that names no decorator.
HINT = (
    "Give dotted paths of decorators for views, for example "
    "django.contrib.auth.decorators.login_required."
)


def problem_of(path: str) -> str:
    """Why this dotted path names no decorator; empty if it does."""
    try:
        decorator = import_string(path)
    except (Exception, SystemExit) as error:
        return f"cannot be imported: {type(error).__name__}: {error}"
    return "" if callable(decorator) else "cannot be called"


def load_decorators(paths: Sequence[str] | None = None) -> list[Decorator]:
    """The decorators that these dotted paths name; None: those of the setting.

    Raises:
        CarrotConfigException: a path cannot be imported, or is nothing to call.
    """
    if paths is None:
        paths = conf.current().monitor_authentication
    for path in paths:
        problem = problem_of(path)
        if problem:
            raise CarrotConfigException(
                "CARROT['monitor_authentication'], or the list of decorators that was passed, "
                f"names {path!r}, which {problem}. {HINT}"
            )
    return [import_string(path) for path in paths]


def get_mixin(decorator: Decorator) -> type[Any]:
    """A mixin for class-based views that puts ``decorator`` around ``dispatch``."""

    class Mixin:
        @method_decorator(decorator)
        def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            response: HttpResponseBase = super().dispatch(request, *args, **kwargs)  # type: ignore[misc]
            return response

    return Mixin


def create_class_view(view: type[View], decorator: Decorator) -> type[View]:
    """A subclass of a class-based view with ``decorator`` around it. Can be chained.

    Args:
        view: the class; it is not changed. Name and documentation are taken over.
        decorator: for function-based views, such as ``login_required``.
    """
    names = {"__module__": view.__module__, "__doc__": view.__doc__}
    return type(view.__name__, (get_mixin(decorator), view), names)


def decorate_class_view(
    view_class: type[View], decorators: Sequence[str] | None = None
) -> type[View]:
    """``create_class_view`` for each of several decorators.

    Args:
        view_class: a class-based view; it is not changed.
        decorators: dotted paths, the outermost last; None: ``CARROT["monitor_authentication"]``.

    Raises:
        CarrotConfigException: a path cannot be imported.
    """
    for decorator in load_decorators(decorators):
        view_class = create_class_view(view_class, decorator)
    return view_class


def create_function_view(view: FunctionView, decorator: Decorator) -> FunctionView:
    """A function-based view with ``decorator`` around it. Can be chained."""
    decorated: FunctionView = decorator(view)
    return decorated


def decorate_function_view(
    view: FunctionView, decorators: Sequence[str] | None = None
) -> FunctionView:
    """``create_function_view`` for each of several decorators; see ``decorate_class_view``.

    Raises:
        CarrotConfigException: a path cannot be imported.
    """
    for decorator in load_decorators(decorators):
        view = create_function_view(view, decorator)
    return view
