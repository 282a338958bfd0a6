# SPDX-License-Identifier: Apache-2.0
"""What ``@task`` says of a task: how it is published, tried again and kept. Values and decisions.

Options come from three places; the first that says something counts: the call that publishes
(``greet.options(...)``), the decorator, and ``CARROT["task_defaults"]``. None means: nothing said.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import random
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import MAXYEAR, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from carrot_twisted.exceptions import InvalidMessage, PermanentFailure, PoisonMessage, Retry
from carrot_twisted.kinds import is_bool, is_int, is_number, is_seconds, plain_name
from carrot_twisted.limits import MAX_SECONDS
from carrot_twisted.task_limits import RATE, SLOT, Concurrency, Rate, group_of, name_of
from carrot_twisted.task_paths import without_context

if TYPE_CHECKING:
    Moment: TypeAlias = datetime | timedelta | float
    """A moment: an aware datetime, or the time until then, in seconds if it is a number."""
    Unique: TypeAlias = bool | str | Callable[..., str]
    RetryOn: TypeAlias = Sequence[type[BaseException]] | Mapping[type[BaseException], float]

#: Retries of a task that says nothing of their number.
MAX_RETRIES = 3
#: Seconds until the first retry; each further one takes twice as long, up to the second number.
RETRY_BACKOFF, RETRY_BACKOFF_MAX = 5.0, 600.0
#: Up to this share of a delay is left out, at random: what failed together shall not come together.
RETRY_JITTER = 0.25
#: Moment a key is free again: when the task starts for the first time, or when it has ended.
START, END = "start", "end"
#: What comes of publishing a duplicate: the task that is there already, or ``DuplicateTask``.
RETURN, RAISE = "return", "raise"
#: Characters of a key that are kept as they are; of longer ones a digest is kept.
MAX_KEY = 99
#: Name of the parameter that django.tasks gives its context to: the first one.
CONTEXT = "context"
#: Of a task's function. ``functools.wraps`` hands it on to decorators above.
ATTRIBUTE = "carrot_options"
#: Never tried again: the task, or its message, says that this would not help.
_HOPELESS = (PermanentFailure, PoisonMessage)

Options = TypeVar("Options", "TaskOptions", "PublishOptions")


def _given(value: float | None, default: float) -> float:
    return default if value is None else float(value)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def _names_in(what: str, template: str) -> frozenset[str]:
    """The parameters that a format string names."""
    try:
        found = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise InvalidMessage(f"{what} is {template!r}, which is no format: {error}.") from None
    names = frozenset(name.partition(".")[0].partition("[")[0] for name in found)
    if any(name.isdigit() or not name for name in names):
        raise InvalidMessage(f"{what} is {template!r}: {_NAME_SOME}.")
    return names


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def _check(name: str, value: Any, wanted: str, test: Callable[[Any], bool]) -> None:
    if value is not None and not test(value):
        raise InvalidMessage(f"{name} is {_shortened(value)}. It must be {wanted}.")


def _is_duration(value: Any) -> bool:
    if isinstance(value, timedelta):
        return 0 < value.total_seconds() <= MAX_SECONDS
    return is_seconds(value)


def _is_when(value: Any) -> bool:
    if isinstance(value, datetime):
        # Near the ends of the calendar it could not be told in every time zone.
        return value.utcoffset() is not None and value.year < MAXYEAR - 1
    return _is_duration(value)


def _is_retry_on(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_exception, value)) and all(map(is_seconds, value.values()))
    return isinstance(value, list | tuple) and all(map(_is_exception, value))


def _is_exception(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


_NAME_SOME = "name parameters of the task in it, for example 'customer {customer_id}'"
_QUEUE = ("queue", "the name of a queue of the settings", lambda v: isinstance(v, str) and v != "")
_PRIORITY = ("priority", "a whole number from 0 to 255", lambda v: is_int(v) and 0 <= v <= 255)
_DURATION = "a number of seconds above 0, or a timedelta, 100 years at most"
_WHEN = f"a datetime with a time zone, or {_DURATION}"
_ON_DUPLICATE = ("on_duplicate", "'return' or 'raise'", lambda v: v in (RETURN, RAISE))
_RETENTION = ("retention", _DURATION, _is_duration)
_WANTED: Sequence[tuple[str, str, Callable[[Any], bool]]] = (
    _QUEUE,
    _PRIORITY,
    ("max_retries", "a whole number, 0 or more", lambda v: is_int(v) and 0 <= v < 2**15),
    (
        "retry_on",
        "a list of exception classes, or a dictionary from these to the seconds until the first "
        "retry",
        _is_retry_on,
    ),
    ("retry_backoff", "a number of seconds above 0, 100 years at most", is_seconds),
    ("retry_backoff_max", "a number of seconds above 0, 100 years at most", is_seconds),
    ("retry_jitter", "a number from 0 to 1", lambda v: is_number(v) and 0 <= v <= 1),
    ("expires", _DURATION, _is_duration),
    (
        "unique",
        "True, a text such as 'customer {customer_id}', or a function of the task's arguments",
        lambda v: is_bool(v) or isinstance(v, str) or callable(v),
    ),
    ("unique_until", "'start' or 'end'", lambda v: v in (START, END)),
    (
        "concurrency",
        "a Concurrency, such as Concurrency(3, key='account:{account_id}')",
        lambda v: isinstance(v, Concurrency),
    ),
    ("rate", "a Rate, such as Rate(100, per=60)", lambda v: isinstance(v, Rate)),
    _ON_DUPLICATE,
    _RETENTION,
    ("ignore_result", "True or False", is_bool),
    ("cooperative_cancel", "True or False", is_bool),
)
_WANTED_AT_PUBLISH: Sequence[tuple[str, str, Callable[[Any], bool]]] = (
    _QUEUE,
    _PRIORITY,
    ("run_after", _WHEN, _is_when),
    ("expires", _WHEN, _is_when),
    _ON_DUPLICATE,
    _RETENTION,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """Of a task, from its decorator or the settings; see ``tasks.task``.

    Raises:
        InvalidMessage: a value makes no sense; the text says what to write.
    """

    queue: str | None = None
    priority: int | None = None
    max_retries: int | None = None
    retry_on: RetryOn | None = None
    retry_backoff: float | None = None
    retry_backoff_max: float | None = None
    retry_jitter: float | None = None
    expires: timedelta | float | None = None
    unique: Unique | None = None
    unique_until: str | None = None
    concurrency: Concurrency | None = None
    rate: Rate | None = None
    on_duplicate: str | None = None
    retention: timedelta | float | None = None
    ignore_result: bool | None = None
    cooperative_cancel: bool | None = None

    def __post_init__(self) -> None:
        if isinstance(self.expires, datetime):
            raise InvalidMessage(
                "expires of a task is a number of seconds; for a moment use "
                ".options(expires=...) when it is published."
            )
        for name, wanted, test in _WANTED:
            _check(name, getattr(self, name), wanted, test)
        if self.unique is None and self.unique_until is not None:
            raise InvalidMessage("unique_until makes sense together with unique only.")

    def retry_delay(self, error: BaseException, retries: int) -> float | None:
        """Seconds until a task that has raised is tried again; None: it has failed.

        Args:
            error: what it has raised.
            retries: how often it was tried again before.
        """
        limit = MAX_RETRIES if self.max_retries is None else self.max_retries
        if retries >= limit or isinstance(error, _HOPELESS):
            return None
        if isinstance(error, Retry):
            if error.delay is not None:
                return error.delay
            first: float | None = self.first_delay
        else:
            first = self._first_delay_after(error)
        if first is None:
            return None
        longest = _given(self.retry_backoff_max, RETRY_BACKOFF_MAX)
        # A first delay above the longest one was meant.
        delay = min(first * 2.0 ** min(retries, 64), max(first, longest))
        return delay * (1 - _given(self.retry_jitter, RETRY_JITTER) * random.random())  # noqa: S311

    @property
    def first_delay(self) -> float:
        """Seconds until the first retry, unless ``retry_on`` has others for an exception."""
        return _given(self.retry_backoff, RETRY_BACKOFF)

    def _first_delay_after(self, error: BaseException) -> float | None:
        """None: this exception is no reason to try again."""
        if isinstance(self.retry_on, Mapping):
            # The class itself, or else the nearest of those that it is derived from.
            kinds = (kind for kind in type(error).__mro__ if kind in self.retry_on)
            nearest = next(kinds, None)
            return None if nearest is None else float(self.retry_on[nearest])
        wanted = self.retry_on
        if wanted is None:
            wanted = () if self.max_retries is None else (Exception,)
        return self.first_delay if isinstance(error, tuple(wanted)) else None


#: Of a task without a decorator: only ``raise Retry`` has it tried again.
NOTHING_SAID = TaskOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishOptions:
    """Of one publishing; see ``tasks.Task.options``.

    Raises:
        InvalidMessage: a value makes no sense; the text says what to write.
    """

    queue: str | None = None
    priority: int | None = None
    run_after: Moment | None = None
    expires: Moment | None = None
    on_duplicate: str | None = None
    retention: timedelta | float | None = None

    def __post_init__(self) -> None:
        for name, wanted, test in _WANTED_AT_PUBLISH:
            _check(name, getattr(self, name), wanted, test)
        start, end = self.run_after, self.expires
        if isinstance(start, datetime) and isinstance(end, datetime) and end <= start:
            raise InvalidMessage(
                f"It could never start: it expires at {end}, and is to run after {start}."
            )


#: Of a publishing that says nothing.
AS_DECLARED = PublishOptions()
_NAMES: dict[type, list[str]] = {
    kind: [one.name for one in fields(kind)] for kind in (TaskOptions, PublishOptions)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """A task that has a decorator."""

    path: str
    function: Callable[..., Any]
    options: TaskOptions
    signature: inspect.Signature = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "signature", inspect.signature(self.function))
        unique = self.options.unique
        if isinstance(unique, str) and not self._check_key("unique", unique):
            raise InvalidMessage(
                f"unique is {unique!r}: {_NAME_SOME}; or True for all its arguments."
            )
        for _, limit in self.limits():
            if isinstance(limit.key, str):
                self._check_key(f"key of {type(limit).__name__}", limit.key)

    @property
    def is_limited(self) -> bool:
        """Whether not any number of its runs may start at any time."""
        return self.options.concurrency is not None or self.options.rate is not None

    def limits(self) -> Iterator[tuple[str, Concurrency | Rate]]:
        """Those that it has, each with its kind."""
        if self.options.concurrency is not None:
            yield SLOT, self.options.concurrency
        if self.options.rate is not None:
            yield RATE, self.options.rate

    def _check_key(self, what: str, template: str) -> frozenset[str]:
        """The parameters that a key names."""
        names = _names_in(what, template)
        unknown = names - {*self.signature.parameters}
        if unknown:
            raise InvalidMessage(
                f"{what} of {self.path} is {template!r}, and the task has no parameter "
                f"{sorted(unknown)[0]!r}. It has: {', '.join(self.signature.parameters)}."
            )
        return names

    def unique_key(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], redact: Sequence[str] = ()
    ) -> str | None:
        """The key of which one may wait at a time; None: it is not unique.

        It begins with the task's path, so that tasks never meet each other's keys.

        Args:
            args: positional arguments of the task.
            kwargs: keyword arguments of the task.
            redact: words of parameters whose values are shown nowhere, as in the settings. A key
                with one of those in it is told by its digest.

        Raises:
            InvalidMessage: the arguments do not fit the task, or ``unique`` makes no text of them.
        """
        unique = self.options.unique
        if unique is None or unique is False:
            return None
        if unique is True:
            # Told by position or by name, given or left to its default: the same call.
            text = json.dumps(self._arguments(args, kwargs), sort_keys=True, default=repr)
            return f"{self.path} arguments {_digest(text)}"
        return f"{self.path} {self._key('unique', unique, args, kwargs, redact)}"

    def limit_names(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], redact: Sequence[str] = ()
    ) -> tuple[str | None, str | None]:
        """The names of the limits that a run of it is under: of its concurrency, and of its rate.

        Args:
            args: positional arguments of the task.
            kwargs: keyword arguments of the task.
            redact: as of ``unique_key``.

        Raises:
            InvalidMessage: the arguments do not fit the task, or a key is no text.
        """
        names: dict[str, str] = {}
        for kind, limit in self.limits():
            key = ""
            if limit.key is not None:
                what = f"key of {type(limit).__name__}"
                key = self._key(what, limit.key, args, kwargs, redact)
            names[kind] = name_of(kind, limit.group or self.path, key)
        return names.get(SLOT), names.get(RATE)

    def _arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InvalidMessage(f"{self.path} does not take these arguments: {error}.") from None
        bound.apply_defaults()
        return bound.arguments

    def _key(
        self,
        what: str,
        key: str | Callable[..., str],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        redact: Sequence[str],
    ) -> str:
        """The text of a key that an option says in its own way; a digest if it is not to be seen.

        Arguments that do not fit the task are told in any case.
        """
        arguments = self._arguments(args, kwargs)
        is_secret = False
        if isinstance(key, str):
            names = _names_in(what, key)
            is_secret = any(word in plain_name(name) for name in names for word in redact)
            text = key.format(**arguments)
        else:
            text = key(*args, **kwargs)
            if not isinstance(text, str):
                raise InvalidMessage(
                    f"{what} of {self.path} is to return a text, not {_shortened(text)}."
                )
        if len(text) > MAX_KEY or not text.isprintable() or is_secret:
            return f"text {_digest(text)}"
        return text


_declared: dict[str, Declared] = {}
#: The limits of tasks, by kind and group.
_limits: dict[tuple[str, str], Concurrency | Rate] = {}
#: Paths of tasks that have a concurrency and a rate.
_with_two: set[str] = set()


def declare(one: Declared) -> None:
    """Note what a decorator says; of a path, what was said last: modules are reloaded."""
    _declared[one.path] = one
    found = [*one.limits()]
    _limits.update(((kind, limit.group or one.path), limit) for kind, limit in found)
    if len(found) > 1:
        _with_two.add(one.path)


def declared(path: str) -> Declared | None:
    """What the decorator of the task with this path has said; None: there is none."""
    return _declared.get(path)


def declare_standard(
    path: str, function: Callable[..., Any], queue: str, takes_context: bool
) -> None:
    """Note a task of django.tasks, when it is made: it has a decorator, too.

    Args:
        path: of the task.
        function: what Django's decorator stands on. Below it may stand ours.
        queue: for those who publish the task in another way, and do not say one.
        takes_context: its first argument is Django's context, and none that is published.
    """
    one = _declared.get(path)
    if one is None or one.function is not function or one.options.queue is None:
        said = getattr(function, ATTRIBUTE, None) or TaskOptions()
        options = first_said(said, TaskOptions(queue=queue))
        setattr(function, ATTRIBUTE, options)
        one = Declared(path=path, function=function, options=options)
        declare(one)
    if takes_context and next(iter(one.signature.parameters), "") == CONTEXT:
        object.__setattr__(one, "signature", without_context(one.signature))


def all_declared() -> list[Declared]:
    """All tasks that have a decorator, of modules that are imported."""
    return [*_declared.values()]


def limit_named(name: str) -> Concurrency | Rate | None:
    """The numbers of the limit with this name, as the decorators say them in this process.

    None: no task here is under it, any more.
    """
    return _limits.get(group_of(name))


def any_limited() -> bool:
    """Whether some task is under a limit."""
    return bool(_limits)


def any_with_two_limits() -> bool:
    """Whether some task has a concurrency and a rate."""
    return bool(_with_two)


def first_said(first: Options, *then: TaskOptions) -> Options:
    """The options of ``first``, and where that says nothing, those of the first that does."""
    missing: dict[str, Any] = {}
    for name in _NAMES[type(first)]:
        if getattr(first, name) is None:
            for other in then:
                value = getattr(other, name, None)
                if value is not None:
                    missing[name] = value
                    break
    return replace(first, **missing) if missing else first


def seconds_of(value: timedelta | float) -> float:
    """A length of time as a number."""
    return value.total_seconds() if isinstance(value, timedelta) else float(value)
