# SPDX-License-Identifier: Apache-2.0
"""How arguments and results are shown, without the values that nobody should read there.

``CARROT["redact"]`` lists words. A value is shown as REDACTED where its name, which is that of a
parameter or of a key in a dictionary at any depth, contains one of them. Positional arguments get
their names from the task's function. Where this process does not know it, it cannot tell a password
from a number of pages: then none of them is shown. What is written elsewhere, in a log or in the
text of an exception, is shown as it is.
"""

from __future__ import annotations

import inspect
import json
import sys
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from django.utils.translation import gettext

from carrot_twisted import conf, outcomes, wire
from carrot_twisted.kinds import plain_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from carrot_twisted.models import MessageLog

#: Stands for a value with a name that the settings list.
REDACTED = "[redacted]"
#: Stands for a value whose name is not known.
NOT_SHOWN = "[not shown]"
#: Characters of a line in a list.
LINE = 200
#: Longer values take a line for each of their parts.
SHORT = 80
#: Texts above this are not read for a list: it would take longer than anybody looks at it.
MAX_READ = 20_000
_BRACKETS = ("{", "[", "(")


def shown_arguments(row: MessageLog) -> str:
    """The arguments of a task, as in a call, or the body of a message: one line of LINE characters.

    Args:
        row: ``task``, ``task_args`` and ``content`` of it are read.
    """
    size = len(row.task_args) + len(row.content)
    if size > MAX_READ:
        return gettext("… (%(size)s characters)") % {"size": size}
    if not row.is_task:
        return _one_line(_shown_text(row.content, _json))
    values, names = _positional(row.task, row.task_args), _keywords(row.content)
    shown = [values] if isinstance(values, str) else [_json(value) for value in values]
    if isinstance(names, str):
        shown.append(names)
    else:
        shown += [f"{name}={_json(value)}" for name, value in names.items()]
    return _one_line(", ".join(shown))


def positional_text(row: MessageLog) -> str:
    """The positional arguments as indented JSON; "" if there are none."""
    values = _positional(row.task, row.task_args)
    if isinstance(values, str):
        return values
    return _indented(values) if values else ""


def keyword_text(row: MessageLog) -> str:
    """The keyword arguments as indented JSON; "" if there are none."""
    names = _keywords(row.content)
    if isinstance(names, str):
        return names
    return _indented(names) if names else ""


def shown_text(text: str) -> str:
    """A result, a message's body or its properties: indented JSON where it is an object or a list.

    Any other text is shown as it is.
    """
    return _shown_text(text, _indented)


def is_in_sight(row: MessageLog, text: str) -> bool:
    """Whether a text that a row holds is in what is shown of it.

    In its task, its exception, its arguments or its body; in upper or lower case. Where a value is
    not shown, what was found may have been that value: a search must not tell what it is.

    Args:
        row: ``task``, ``task_args``, ``content`` and ``exception`` of it are read.
        text: as somebody typed it.
    """
    if not conf.current().redact:
        return True
    # As people write it, and as it is written in JSON.
    wanted = {one.upper() for one in (text, _json(text)[1:-1])}
    return any(one in part.upper() for part in _parts(row) for one in wanted)


def _parts(row: MessageLog) -> Iterator[str]:
    yield row.task
    yield row.exception or ""
    if not row.is_task:
        for text in (row.task_args, row.content):
            yield _shown_text(text, _json)
            if not _has_a_word(text):
                yield text
        return
    for text, shown in (
        (row.task_args, _positional(row.task, row.task_args)),
        (row.content, _keywords(row.content)),
    ):
        yield shown if isinstance(shown, str) else _json(shown)
        if _is_whole(text, shown):
            # Other programs set their spaces otherwise.
            yield text


def _is_whole(text: str, shown: object) -> bool:
    """Whether all that is in a text is shown."""
    try:
        value = _read(text)
    except (ValueError, RecursionError):
        return False
    return not _has_a_word(text) and shown == (list(value) if isinstance(value, tuple) else value)


def _has_a_word(text: str) -> bool:
    plain = plain_name(text)
    return any(word in plain for word in conf.current().redact)


def _shown_text(text: str, write: Callable[[Any], str]) -> str:
    if not text.lstrip().startswith(_BRACKETS):
        return text
    try:
        value = _read(text)
        if not isinstance(value, dict | list | tuple):
            return text
        return write(_redacted(value))
    except (ValueError, RecursionError):
        return _unread(text)


def _positional(task: str, text: str) -> list[Any] | str:
    """The values, or the text that is shown instead."""
    shows_all = not conf.current().redact
    try:
        values = _read(text or wire.NO_ARGS)
        if not isinstance(values, list | tuple):
            return text if shows_all else NOT_SHOWN
        if shows_all:
            return list(values)
        names = _parameters(task, len(values)) if values else []
        return [
            NOT_SHOWN if name is None else _redacted_by(name, value)
            for name, value in zip(names, values, strict=True)
        ]
    except (ValueError, RecursionError):
        return text if shows_all else NOT_SHOWN


def _keywords(text: str) -> dict[str, Any] | str:
    """The values by name, or the text that is shown instead."""
    try:
        values = _read(text or wire.NO_KWARGS)
        if not isinstance(values, dict):
            return _unread(text)
        shown: dict[str, Any] = _redacted(values)
        return shown
    except (ValueError, RecursionError):
        return _unread(text)


def _read(text: str) -> Any:
    """JSON, or a literal of Python's, as results and django-carrot's rows are.

    Raises:
        ValueError, RecursionError: it is neither.
    """
    try:
        return json.loads(text)
    except ValueError:
        return wire.literal(text)


def _unread(text: str) -> str:
    """A text that should have been JSON: it may have been cut in the middle of a secret."""
    return NOT_SHOWN if _has_a_word(text) else text


def _redacted_by(name: str, value: Any) -> Any:
    return REDACTED if _has_a_word(name) else _redacted(value)


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        # A key of a literal may be anything.
        return {str(name): _redacted_by(str(name), each) for name, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_redacted(each) for each in value]
    return value


def _json(value: Any, indent: int | None = None) -> str:
    text = json.dumps(value, ensure_ascii=False, indent=indent, default=repr)
    # JSON can say halves of surrogate pairs; pages cannot.
    return outcomes.stored(text, len(text))


def _indented(value: Any) -> str:
    short = _json(value)
    return short if len(short) <= SHORT else _json(value, indent=2)


def _one_line(text: str) -> str:
    line = outcomes.one_line(" ".join(text.split()), LINE + 1)
    return f"{line[:LINE]}…" if len(line) > LINE else line


def _parameters(task: str, count: int) -> Sequence[str | None]:
    """Names of the first parameters of a task; None for what it has no parameter for."""
    parameters = _signature(task)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names: list[str | None] = [name for name, one in parameters.items() if one.kind in kinds]
    rest = inspect.Parameter.VAR_POSITIONAL
    more = next((name for name, one in parameters.items() if one.kind is rest), None)
    return [*names, *[more] * count][:count]


def _signature(task: str) -> Mapping[str, inspect.Parameter]:
    module_name, _, name = task.rpartition(".")
    # Whoever may write rows shall not have a module imported here.
    if module_name in conf.current().registered_modules:
        _import(module_name)
    try:
        # Not getattr: a module may have a __getattr__ that does anything.
        function = vars(sys.modules[module_name])[name]
        return inspect.signature(function).parameters
    except Exception:
        # It is not here, or is no function, or one without a signature.
        return {}


@lru_cache
def _import(name: str) -> None:
    """Import a module of the settings, once, as ``manage.py check`` does."""
    try:
        import_module(name)
    except (Exception, SystemExit):
        # The service does not start with it, and says why.
        return
